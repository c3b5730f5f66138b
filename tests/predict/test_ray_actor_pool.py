"""Chunks survive their workers: dead actors are replaced, and a crashing chunk stops the job."""

import os
import sys
import time
from types import SimpleNamespace

import pytest

from cvbatch.core.errors import CvbatchError, SinkError
from cvbatch.core.types import Chunk, ChunkRef, ChunkReport, Item
from cvbatch.distributed.resources import Allocation
from cvbatch.predict import ray_actor_pool
from cvbatch.storage.store import Storage

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def _pickle_by_value(ray_session):
    """Workers cannot import this module, so Ray must send its classes by value."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Worker:
    """A stub of FusedWorker that behaves as the id of the chunk says.

    It writes a file for each attempt into the folder of its spec.
    """

    def load(self, spec):
        self._folder = folder = spec.folder
        if (folder / "no start").exists():
            os._exit(1)

    def work(self, ref, *, is_isolated):
        name = ref.chunk_id
        (self._folder / f"{name} {'isolated' if is_isolated else 'plain'} {os.getpid()}").touch()
        num_attempts = len(list(self._folder.glob(f"{name} *")))
        if name == "refused":
            raise SinkError("the sink is full")
        if name == "together":
            deadline = time.monotonic() + 60
            while len(list(self._folder.glob("together *"))) < 2:  # until another actor starts it
                if time.monotonic() > deadline:
                    raise TimeoutError
                time.sleep(0.01)
        if name.startswith("dies") and num_attempts <= int(name[-1]):
            os._exit(1)
        return ChunkReport(name, 1, {}, 0, {})


def run(monkeypatch, folder, names, num_actors=1, max_actors=1):
    monkeypatch.setattr(ray_actor_pool, "FusedWorker", Worker)
    monkeypatch.setattr(ray_actor_pool, "_POLL_INTERVAL_S", 0.1)
    refs = [ChunkRef(name, "", 0, 0, 1, 1, 1) for name in names]
    spec = SimpleNamespace(folder=folder, storage=Storage())
    allocation = Allocation("fused", num_actors, 0.5, 0.0, max_actors)
    return [report.chunk_id for report in ray_actor_pool.ActorPool(allocation).run(refs, spec)]


def attempts(folder, name):
    """Return the decoding mode of each attempt of a chunk, in order of time."""
    paths = sorted(folder.glob(f"{name} *"), key=lambda path: path.stat().st_mtime_ns)
    return [path.name.split()[1] for path in paths]


def test_no_chunks_no_reports(monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path, []) == []


def test_every_chunk_is_processed_once(monkeypatch, tmp_path):
    names = [f"chunk{i}" for i in range(20)]
    assert sorted(run(monkeypatch, tmp_path, names, 2, 2)) == sorted(names)
    assert [attempts(tmp_path, name) for name in names] == [["plain"]] * 20


@pytest.mark.parametrize(
    ("deaths", "expected"),
    [
        (1, ["plain", "plain"]),
        (2, ["plain", "plain", "isolated"]),
        (3, ["plain", "plain", "isolated", "isolated"]),
    ],
)
def test_a_chunk_is_retried_and_then_isolated(monkeypatch, tmp_path, deaths, expected):
    name = f"dies{deaths}"
    assert run(monkeypatch, tmp_path, [name, "after"]) == [name, "after"]  # it stays first
    assert attempts(tmp_path, name) == expected
    assert attempts(tmp_path, "after") == ["plain"]


def test_a_chunk_that_crashes_when_isolated_stops_the_job(monkeypatch, tmp_path):
    items = (Item("/a/first.jpg", "first.jpg", 1), Item("/a/last.jpg", "last.jpg", 1))
    monkeypatch.setattr(
        ray_actor_pool, "read_chunk", lambda storage, ref: Chunk(ref.chunk_id, items)
    )
    message = "chunk dies4 crashed its worker 4 times.* 'first.jpg' to 'last.jpg'"
    with pytest.raises(CvbatchError, match=message):
        run(monkeypatch, tmp_path, ["before", "dies4", "after"])
    assert attempts(tmp_path, "dies4") == ["plain", "plain", "isolated", "isolated"]
    assert attempts(tmp_path, "after") == []


def test_workers_that_die_before_they_are_ready_stop_the_job(monkeypatch, tmp_path):
    (tmp_path / "no start").touch()
    with pytest.raises(CvbatchError, match="3 workers in a row died before they were ready"):
        run(monkeypatch, tmp_path, ["a", "b", "c", "d"])
    assert attempts(tmp_path, "a") == []


def test_the_message_has_the_exception_of_a_constructor(monkeypatch, tmp_path):
    monkeypatch.setattr(Worker, "__init__", lambda self: 1 / 0)
    with pytest.raises(CvbatchError, match="the last: ZeroDivisionError: division by zero; look"):
        run(monkeypatch, tmp_path, ["a"])


def test_the_job_stops_if_no_actor_can_start(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_actor_pool, "_NO_ACTOR_TIMEOUT_S", 0.5)
    monkeypatch.setattr(ray_actor_pool, "FusedWorker", Worker)
    refs = [ChunkRef("a", "", 0, 0, 1, 1, 1)]
    pool = ray_actor_pool.ActorPool(Allocation("fused", 1, 64.0, 0.0, 1))
    monkeypatch.setattr(ray_actor_pool, "_POLL_INTERVAL_S", 0.1)
    with pytest.raises(CvbatchError, match=r"no worker: each needs 64 CPU and 0 GPU"):
        list(pool.run(refs, SimpleNamespace(storage=Storage())))


def test_an_exception_of_a_worker_is_not_retried(monkeypatch, tmp_path):
    with pytest.raises(SinkError, match="the sink is full"):
        run(monkeypatch, tmp_path, ["refused"])
    assert attempts(tmp_path, "refused") == ["plain"]


def test_actors_are_added_if_the_cluster_has_grown(monkeypatch, tmp_path):
    """Two chunks wait for each other: with one actor the job would never end."""
    names = ["together", "together"]
    assert run(monkeypatch, tmp_path, names, num_actors=1, max_actors=2) == names


def test_no_more_actors_than_allowed(monkeypatch, tmp_path):
    names = [f"chunk{i}" for i in range(8)]
    assert sorted(run(monkeypatch, tmp_path, names, num_actors=1, max_actors=1)) == names
    pids = {path.name.split()[2] for path in tmp_path.glob("chunk*")}
    assert len(pids) == 1
