"""Fixtures of more than one test folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import networks
from tests.support.crashing_images import poisoned_env, write_stub
from tests.support.local_cluster import LocalCluster, local_cluster
from tests.support.s3_job import StoredJob
from tests.support.s3_server import S3Server, serve_s3

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CVBATCH_CACHE"] = "off"  # no test uses what another one compiled
# A background process ignores SIGINT, and so would the jobs that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


SERVERS = {"s3_server", "browser"}  # fixtures that start a process


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server; run the slowest kinds first, so that they end together."""
    for item in items:
        if SERVERS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.process)
    kinds = ("ray", "keras")
    files: dict[Path, set[str]] = {}
    for item in items:
        marked = {kind for kind in kinds if item.get_closest_marker(kind)}
        files.setdefault(item.path, set()).update(marked)
    items.sort(key=lambda item: [kind not in files[item.path] for kind in kinds])


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server for the whole session; the environment does not point to it yet."""
    with serve_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with the environment of this test pointing to it."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(scope="session")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small untrained networks as .keras files, one for each task."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("nested_classifier", "segmenter", "detector", "localizer"):
        getattr(networks, name)().save(folder / f"{name}.keras")
    return folder


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One Ray for a file: two CPUs, and a GPU that is only a number to it.

    Not for all files: while Ray runs, evaluations and explanations start workers.
    """
    import ray

    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def stored(
    s3_server: S3Server, keras_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StoredJob]:
    """A job from S3 to S3 that ran once, undisturbed, into the sink `calm`: its programs are there.

    Credentials came from the environment.
    """
    job = StoredJob(s3_server, keras_files, tmp_path_factory.mktemp("stored"))
    ran = job.run(job.values("calm"), job.env(s3_server.endpoint), "--json")
    assert ran.status == 0, ran.stderr
    yield job
    job.remove()


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster that jobs are submitted to, where images marked "wait" hold their workers up."""
    env = poisoned_env(write_stub(tmp_path_factory.mktemp("poison") / "stub"))
    extra = {name: env[name] for name in ("PYTHONPATH", "POISON")}
    with local_cluster(extra, tmp_path_factory.mktemp("hidden")) as cluster:
        yield cluster
