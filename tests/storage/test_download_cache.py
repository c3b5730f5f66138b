"""A downloaded file is used again only if URI, size and modification time are the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cvbatch.storage.clients import Location
from cvbatch.storage.store import Storage
from tests.support.s3_server import S3Server
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder for this test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def put(server: S3Server, key: str, data: bytes, modified_s: int) -> str:
    """Put an object with a modification time; return its URI once the server lists it."""
    path = server.bucket / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (modified_s, modified_s))
    location = Location.of(f"{server.bucket_uri}/{key}")

    def is_listed() -> bool:
        info = Storage().file_system(location).get_file_info(location.path)
        return bool(info.size == len(data) and info.mtime_ns == modified_s * 10**9)

    until(is_listed, "the listing")
    return location.uri


@pytest.mark.parametrize(
    ("name", "data", "modified_s", "is_same"),
    [
        ("a.keras", b"first", 1_700_000_000, True),
        ("b.keras", b"other", 1_700_000_000, False),
        ("a.keras", b"longer", 1_700_000_000, False),
        ("a.keras", b"other", 1_700_000_001, False),
    ],
)
def test_a_copy_is_used_again_only_for_the_same_file(
    s3: S3Server, tmp_path: Path, name: str, data: bytes, modified_s: int, is_same: bool
) -> None:
    first = Storage().fetch(put(s3, f"{tmp_path.name}/a.keras", b"first", 1_700_000_000))
    assert first.read_bytes() == b"first"
    second = Storage().fetch(put(s3, f"{tmp_path.name}/{name}", data, modified_s))
    assert (second == first) == is_same
    assert second.read_bytes() == data
