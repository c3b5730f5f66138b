"""Fixtures of the tests that run whole jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
