"""Fixtures of more than one test folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.s3_server import S3Server, serve_s3


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
