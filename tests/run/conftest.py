"""Fixtures of the tests that run whole jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.poison import poisoned_env, write_stub
from tests.run.nodes import LocalCluster, local_cluster
from tests.run.stored import StoredJob
from tests.s3_server import S3Server


@pytest.fixture(scope="session")
def stored(
    s3_server: S3Server, keras_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StoredJob]:
    """A job from S3 to S3 that ran once, undisturbed, into the sink `calm`: its programs are there.

    Credentials came from the environment.
    """
    job = StoredJob(s3_server, keras_files, tmp_path_factory.mktemp("stored"))
    ran = job.run(job.values("calm"), job.env(s3_server.endpoint), "--json")
    assert ran.status == 0, ran.told
    yield job
    job.remove()


@pytest.fixture(scope="session")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster that jobs are submitted to, where images marked "wait" hold their workers up."""
    env = poisoned_env(write_stub(tmp_path_factory.mktemp("poison") / "stub"))
    extra = {name: env[name] for name in ("PYTHONPATH", "POISON")}
    with local_cluster(extra, tmp_path_factory.mktemp("hidden")) as cluster:
        yield cluster
