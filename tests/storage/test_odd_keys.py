"""Keys of S3 that are no paths: each is listed once and read, or planned as one image."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pyarrow.fs as pafs
import pytest

from cvbatch.core.errors import NotFoundError
from cvbatch.core.types import Item
from cvbatch.sources.discovery import find_files
from cvbatch.storage import listing
from cvbatch.storage.listing import list_files
from cvbatch.storage.local_walk import Skipped
from cvbatch.storage.store import Storage
from tests.support.key_store import serve_keys
from tests.support.reading import kinds, read
from tests.support.retries import fast_storage
from tests.support.s3_server import s3_env

EMPTY = "e//empty.jpg"
KEYS = [
    EMPTY,
    "a/1.jpg",
    "a//2.jpg",
    "/3.jpg",
    "a/./4.jpg",
    "a/../5.jpg",
    "a/b//c/6.jpg",
    "7.jpg",
    "a///8.jpg",
    "./9.jpg",
    "../10.jpg",
    "x/y/z/w/v//11.jpg",
    "x/y/12.jpg",
    "a b%2F//é#?.jpg",
]


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    objects = {key: b"" if key == EMPTY else key.encode() * 9 for key in KEYS}
    with serve_keys(objects) as endpoint:
        for name, value in s3_env(endpoint).items():
            monkeypatch.setenv(name, value)
        yield fast_storage([])


def test_each_key_is_listed_once_and_read(storage: Storage) -> None:
    files = list_files(storage, "s3://keys").files
    assert sorted(files["uri"].to_pylist()) == sorted(f"s3://keys/{key}" for key in KEYS)
    sizes = [0 if key == EMPTY else len(key.encode()) * 9 for key in KEYS]
    assert sorted(files["size"].to_pylist()) == sorted(sizes)
    assert storage.read_bytes(f"s3://keys/{EMPTY}") == b""
    for key in KEYS[1:]:
        assert storage.read_bytes(f"s3://keys/{key}") == key.encode() * 9
        with storage.open_input(f"s3://keys/{key}") as file:
            file.seek(3)
            assert file.read(5) == (key.encode() * 9)[3:8]
        assert list_files(storage, f"s3://keys/{key}").files.num_rows == 1  # named explicitly
    with pytest.raises(NotFoundError):
        storage.read_bytes("s3://keys/a//none.jpg")


def test_each_key_is_one_image(storage: Storage) -> None:
    files = find_files(storage, ["s3://keys"], "auto", "s3://sink/x").files
    assert sorted(files["image_id"].to_pylist()) == sorted(KEYS)
    items = [Item(f"s3://keys/{key}", key, 1) for key in [*KEYS, "a//none.jpg"]]
    assert kinds(read(items, "images", storage=storage)) == [None] * len(KEYS) + ["missing"]


def test_such_keys_of_other_stores_are_counted() -> None:
    """pyarrow has no client that reads them, and tests have no server of Google's."""
    infos = [
        SimpleNamespace(path=f"bucket/{key}", size=1, mtime_ns=1, type=pafs.FileType.File)
        for key in KEYS
    ]
    skipped: list[Skipped] = []
    batches = list(listing._batches("gs", infos, skipped))
    kept = [uri for batch in batches for uri in batch["uri"].to_pylist()]
    assert sorted(kept) == sorted(f"gs://bucket/{k}" for k in ("a/1.jpg", "7.jpg", "x/y/12.jpg"))
    assert {skip.kind for skip in skipped} == {"unreadable_key"}
    assert len(skipped) == len(KEYS) - 3
