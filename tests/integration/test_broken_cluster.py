"""Nodes leave and join while a job runs: the results are the same."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.support import jobs
from tests.support.crashing_images import poisoned, poisoned_env, write_stub
from tests.support.waiting import LIMIT_S, has_ended, until

pytestmark = [pytest.mark.ray, pytest.mark.keras]

CHUNKS = 6
RUN = {"chunk_images": 2, "batch_size": 2, "image_timeout_s": LIMIT_S, "engine": "litert"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Six chunks; the workers of the first two wait."""
    files = {f"{i:02}.jpg": jobs.encoded_image(i) for i in range(2 * CHUNKS)}
    files |= {f"{i:02}.jpg": poisoned(i, "wait") for i in (1, 3)}
    return jobs.write_files(tmp_path_factory.mktemp("archive"), files)


def job_file(folder, archive, sink, models, **changes):
    values = jobs.job(archive, sink, models, **{**RUN, **changes})
    del values["models"][1:]
    return jobs.write_job(folder / "job.yaml", values)


@pytest.fixture(scope="module")
def done(archive, keras_files, tmp_path_factory):
    """The sink of an uninterrupted run, without the stub."""
    folder = tmp_path_factory.mktemp("done")
    path = job_file(folder, archive, folder / "sink", keras_files)
    status, _, stderr = jobs.cvbatch("predict", "--config", path)
    assert status == 0, stderr
    assert len(jobs.parts(folder / "sink")) == CHUNKS
    return folder / "sink"


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return poisoned_env(write_stub(tmp_path_factory.mktemp("poison") / "stub"))


@pytest.fixture
def stub(env):
    """The stub's folder, without waiting workers and without the file that releases them."""
    folder = Path(env["PYTHONPATH"].split(os.pathsep)[0])
    for path in [*folder.glob("waiting-*"), *folder.glob("go")]:
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def head(env):
    """A head node of one CPU, where the drivers run; a separate folder hides it from other jobs."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, because socket paths are limited
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        for name in ("PYTHONPATH", "POISON"):
            patch.setenv(name, env[name])
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        yield cluster
        cluster.shutdown()
    shutil.rmtree(folder)


@pytest.fixture
def cluster(head):
    """The head node without the nodes of earlier tests."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)


class Job:
    """A running command on the cluster."""

    def __init__(self, config, cluster, env):
        self._log = config.with_suffix(".log")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cvbatch", "predict", "--config", str(config)],
                env={**env, "RAY_ADDRESS": cluster.address},
                stdout=log,
                stderr=log,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()

    def assert_runs(self):
        assert self._process.poll() is None, self._log.read_text()

    def assert_ends_well(self):
        assert self._process.wait(LIMIT_S) == 0, self._log.read_text()


def waiting(stub, node=None):
    """Return the pids of waiting workers, of one node or of all."""
    pids = {int(path.name.split("-")[1]) for path in stub.glob("waiting-*")}
    if node is None:
        return pids
    (raylet,) = node.all_processes["raylet"]
    return {child.pid for child in psutil.Process(raylet.process.pid).children()} & pids


def test_a_lost_node(archive, done, keras_files, cluster, env, stub, tmp_path):
    node = cluster.add_node(num_cpus=1)
    sink = jobs.carry_programs(done, tmp_path / "sink")
    with Job(job_file(tmp_path, archive, sink, keras_files), cluster, env) as job:
        until(lambda: len(waiting(stub)) == 2, "both workers have a chunk")
        (lost,) = waiting(stub, node)
        cluster.remove_node(node, allow_graceful=False)
        until(lambda: has_ended(lost), "the node's worker ends with it")
        job.assert_runs()
        assert jobs.parts(sink) == {}
        (stub / "go").touch()
        job.assert_ends_well()
    assert jobs.parts(sink) == jobs.parts(done)


def test_a_new_node_is_used(archive, done, keras_files, cluster, env, stub, tmp_path):
    sink = jobs.carry_programs(done, tmp_path / "sink")
    with Job(job_file(tmp_path, archive, sink, keras_files), cluster, env) as job:
        until(lambda: waiting(stub), "the only worker has a chunk")
        node = cluster.add_node(num_cpus=1)
        until(lambda: waiting(stub, node), "the new node's worker has a chunk")
        assert jobs.parts(sink) == {}
        (stub / "go").touch()
        job.assert_ends_well()
    assert jobs.parts(sink) == jobs.parts(done)


@pytest.mark.soak
def test_a_lost_node_of_a_streaming_job(archive, done, keras_files, cluster, env, stub, tmp_path):
    cluster.add_node(num_cpus=1)  # enough for decoding, predicting and writing
    node = cluster.add_node(num_cpus=2)
    sink = jobs.carry_programs(done, tmp_path / "sink")
    allocation = {"arrangement": "streaming", "cpus_per_actor": 0.5, "actors": 2}
    path = job_file(tmp_path, archive, sink, keras_files, **allocation)
    with Job(path, cluster, env) as job:
        until(lambda: waiting(stub, node), "a chunk is decoded on the node")
        cluster.remove_node(node, allow_graceful=False)
        (stub / "go").touch()
        job.assert_ends_well()
    assert jobs.parts(sink) == jobs.parts(done)
