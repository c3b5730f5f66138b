"""The number of actors follows from the job, the source format and the cluster."""

import subprocess
import sys

import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ConfigError
from cvbatch.distributed.resources import Node, Resources
from cvbatch.distributed.session import connect_ray
from cvbatch.predict.allocation import choose_allocation


def job(tiles=None, **run):
    model = {"task": "classification", "model": "a.keras", **({"tiles": tiles} if tiles else {})}
    return parse_job(
        {"source": {"uri": "in"}, "sink": {"uri": "out"}, "models": [model], "run": run}
    )


@pytest.mark.parametrize(
    ("settings", "source_format", "num_gpus", "arrangement"),
    [
        ({}, "images", 0, "fused"),
        ({}, "images", 1, "streaming"),
        ({}, "images", 0.5, "streaming"),
        ({}, "webdataset", 1, "fused"),  # chunks of unknown length
        ({"tiles": {"size": 64}}, "images", 1, "fused"),  # all tiles of a chunk at once
        ({"tiles": {"size": 64}, "arrangement": "streaming"}, "images", 1, "streaming"),
        ({"arrangement": "fused"}, "images", 1, "fused"),
        ({"arrangement": "streaming"}, "images", 0, "streaming"),
    ],
)
def test_the_arrangement(settings, source_format, num_gpus, arrangement):
    allocation = choose_allocation(job(**settings), source_format, Resources(4, num_gpus), 10)

    assert allocation.arrangement == arrangement
    assert allocation.gpus_per_actor == min(num_gpus, 1)


@pytest.mark.parametrize(
    ("settings", "resources", "num_chunks", "num_actors"),
    [
        ({}, Resources(4, 0), 10, 4),
        ({}, Resources(4, 0), 2, 2),  # at most one per chunk
        ({}, Resources(4, 2), 10, 2),  # one per GPU
        ({"gpus_per_actor": 0.5}, Resources(8, 2), 10, 4),
        ({"cpus_per_actor": 2}, Resources(5, 0), 10, 2),
        ({"arrangement": "streaming"}, Resources(4, 0), 10, 3),  # one CPU reads and writes
        ({"actors": 1}, Resources(4, 0), 10, 1),
    ],
)
def test_the_number_of_actors(settings, resources, num_chunks, num_actors):
    assert (
        choose_allocation(job(**settings), "images", resources, num_chunks).num_actors == num_actors
    )


@pytest.mark.parametrize(
    ("settings", "num_chunks", "max_actors"),
    [
        ({}, 10, 10),  # new nodes are used while there are chunks
        ({}, 1, 1),
        ({"actors": 3}, 10, 3),
        ({"actors": 3}, 2, 2),
    ],
)
def test_the_maximum_number_of_actors(settings, num_chunks, max_actors):
    assert (
        choose_allocation(job(**settings), "images", Resources(4, 0), num_chunks).max_actors
        == max_actors
    )


def test_actors_that_do_not_fit_are_refused_with_the_number_that_fits():
    with pytest.raises(ConfigError, match=r"run.actors: 9 .* 4 CPU and 0 GPU; 4 would"):
        choose_allocation(job(actors=9), "images", Resources(4, 0), 10)
    with pytest.raises(ConfigError, match=r"1 GPU each .* 0 would"):
        choose_allocation(job(gpus_per_actor=1), "images", Resources(4, 0), 10)
    with pytest.raises(ConfigError, match="streaming cannot take tars"):
        choose_allocation(job(arrangement="streaming"), "webdataset", Resources(4, 0), 10)


def test_actors_are_counted_per_node():
    cluster = Resources(5, 2, (Node(4, 0, None), Node(1, 2, None)))
    assert (
        choose_allocation(job(), "images", cluster, 10).num_actors == 1
    )  # the other GPU has no CPU
    assert choose_allocation(job(cpus_per_actor=0.5), "images", cluster, 10).num_actors == 2
    with pytest.raises(ConfigError, match=r"2 CPU and 1 GPU each .* 0 would: each needs its CPUs"):
        choose_allocation(job(cpus_per_actor=2), "images", cluster, 10)
    with pytest.raises(ConfigError, match=r"0 would: start nodes with GPUs, or set run\.gpus_per"):
        choose_allocation(job(gpus_per_actor=1), "images", Resources(4, 0, (Node(4, 0, None),)), 10)


def test_a_cluster_with_another_version_of_ray_is_refused(monkeypatch):
    import ray
    from ray._private.utils import check_version_info

    def init(**options):
        check_version_info({"ray_version": "2.1.0", "python_version": "3.8.1"}, "this host")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ConfigError, match=r"Ray: 2\.1\.0 Python: 3\.8\.1") as caught, connect_ray():
        pass
    assert "\n" not in str(caught.value)


LIST_PROCESSES = """
import psutil
from cvbatch.distributed.session import connect_ray

with connect_ray():
    import ray
    from ray._private.node import Node

    ray.get(ray.remote(lambda: None).remote())
    for process in psutil.Process().children(recursive=True):
        print(*process.cmdline()[:4])
assert Node.start_monitor.__name__ == "start_monitor"
"""


@pytest.mark.ray
def test_a_local_ray_has_no_autoscaler_no_log_monitor_and_no_dashboard():
    command = [sys.executable, "-c", LIST_PROCESSES]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "gcs_server" in printed and "raylet" in printed
    assert not [name for name in ("monitor.py", "dashboard.py") if name in printed], printed
