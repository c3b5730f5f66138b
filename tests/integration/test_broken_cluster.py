"""Nodes go and come while a job runs, and nothing is missing."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.support import jobs
from tests.support.crashing_images import poisoned, poisoned_env, write_stub

pytestmark = [pytest.mark.ray, pytest.mark.keras]

LIMIT_S = 240.0  # of whatever is awaited: other work may hold the cores
CHUNKS = 6
RUN = {"chunk_images": 2, "batch_size": 2, "image_timeout_s": LIMIT_S, "engine": "litert"}


def until(look, what):
    deadline = time.monotonic() + LIMIT_S
    while not (found := look()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Six chunks; the first two keep their workers waiting."""
    files = {f"{i:02}.jpg": jobs.encoded_image(i) for i in range(2 * CHUNKS)}
    files |= {f"{i:02}.jpg": poisoned(i, "wait") for i in (1, 3)}
    return jobs.write_files(tmp_path_factory.mktemp("archive"), files)


def job_file(folder, archive, sink, models, **changes):
    values = jobs.job(archive, sink, models, **{**RUN, **changes})
    del values["models"][1:]
    return jobs.write_job(folder / "job.yaml", values)


@pytest.fixture(scope="module")
def done(archive, keras_files, tmp_path_factory):
    """The result of a run that nothing disturbs, without the stub."""
    folder = tmp_path_factory.mktemp("done")
    path = job_file(folder, archive, folder / "sink", keras_files)
    status, _, told = jobs.cvbatch("predict", "--config", path)
    assert status == 0, told
    assert len(jobs.parts(folder / "sink")) == CHUNKS
    return folder / "sink"


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return poisoned_env(write_stub(tmp_path_factory.mktemp("poison") / "stub"))


@pytest.fixture
def stub(env):
    """The stub's folder, where nobody waits yet and nobody may go."""
    folder = Path(env["PYTHONPATH"].split(os.pathsep)[0])
    for path in [*folder.glob("waiting-*"), *folder.glob("go")]:
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def head(env):
    """A head of one CPU, where the drivers run; its own folder, so that no other job finds it."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a socket's path must be short
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
    """The head alone, whatever nodes the test before has added."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)


class Job:
    """The command at work on the cluster."""

    def __init__(self, config, cluster, env):
        self._told = config.with_suffix(".log")
        with self._told.open("w") as log:
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
        assert self._process.poll() is None, self._told.read_text()

    def assert_ends_well(self):
        assert self._process.wait(LIMIT_S) == 0, self._told.read_text()


def waiting(stub, node=None):
    """Return the workers, of one node or of all, that wait in an image."""
    pids = {int(path.name.split("-")[1]) for path in stub.glob("waiting-*")}
    if node is None:
        return pids
    (raylet,) = node.all_processes["raylet"]
    return {one.pid for one in psutil.Process(raylet.process.pid).children()} & pids


def test_a_node_that_dies_and_does_not_come_back(
    archive, done, keras_files, cluster, env, stub, tmp_path
):
    node = cluster.add_node(num_cpus=1)
    sink = jobs.carry_programs(done, tmp_path / "sink")
    with Job(job_file(tmp_path, archive, sink, keras_files), cluster, env) as job:
        until(lambda: len(waiting(stub)) == 2, "both workers have a chunk")
        (lost,) = waiting(stub, node)
        cluster.remove_node(node, allow_graceful=False)
        until(lambda: not psutil.pid_exists(lost), "the node's worker ends with it")
        job.assert_runs()
        assert jobs.parts(sink) == {}
        (stub / "go").touch()
        job.assert_ends_well()
    assert jobs.parts(sink) == jobs.parts(done)


def test_a_node_that_joins_is_used(archive, done, keras_files, cluster, env, stub, tmp_path):
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
def test_a_node_that_dies_under_a_streaming_job(
    archive, done, keras_files, cluster, env, stub, tmp_path
):
    cluster.add_node(num_cpus=1)  # as many as decoding, predicting and writing can do with
    node = cluster.add_node(num_cpus=2)
    sink = jobs.carry_programs(done, tmp_path / "sink")
    wiring = {"arrangement": "streaming", "cpus_per_actor": 0.5, "actors": 2}
    path = job_file(tmp_path, archive, sink, keras_files, **wiring)
    with Job(path, cluster, env) as job:
        until(lambda: waiting(stub, node), "a chunk is decoded on the node")
        cluster.remove_node(node, allow_graceful=False)
        (stub / "go").touch()
        job.assert_ends_well()
    assert jobs.parts(sink) == jobs.parts(done)
