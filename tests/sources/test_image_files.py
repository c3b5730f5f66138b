"""Reading image files: order, failures of single files, errors of the store, read-ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvbatch.core.errors import StoreError
from cvbatch.core.types import Chunk, Item
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage import retry, store
from cvbatch.storage.store import Storage
from tests.support.reading import LIMIT, kinds, read
from tests.support.s3_server import S3Server


def put_files(folder: str, count: int) -> list[Item]:
    for i in range(count):
        Storage().put_bytes(f"{folder}/{i} #é.jpg", b"%d" % i * i)
    return [Item(f"{folder}/{i} #é.jpg", f"{i} #é.jpg", i) for i in range(count)]


def test_files_are_read_in_order(tmp_path: Path) -> None:
    items = put_files(str(tmp_path), 40)
    images = read(items, "images")
    assert [(i.image_id, i.uri) for i in images] == [(i.image_id, i.uri) for i in items]
    assert [i.data for i in images] == [b"%d" % i * i for i in range(40)]
    assert read(items[::-1], "images") == images[::-1]


def test_a_bad_file_fails_only_its_image(tmp_path: Path) -> None:
    items = put_files(str(tmp_path), 6)
    (tmp_path / "1 #é.jpg").unlink()
    (tmp_path / "3 #é.jpg").write_bytes(b"x" * (LIMIT + 1))
    (tmp_path / "4 #é.jpg").unlink()
    (tmp_path / "4 #é.jpg").mkdir()
    images = read(items, "images")
    assert kinds(images) == [None, "missing", None, "too_large", "missing", None]
    assert [i.image_id for i in images] == [i.image_id for i in items]


def test_errors_of_one_file_are_failures_and_errors_of_the_store_are_raised(tmp_path: Path) -> None:
    items = put_files(str(tmp_path), 3)
    errors: dict[str, StoreError] = {
        items[0].uri: store.ShortReadError("half"),
        items[1].uri: retry.AccessDeniedError("no"),
    }

    class Failing(Storage):
        def read_bytes(self, uri: str, max_bytes: int | None = None) -> bytes:
            if uri in errors:
                raise errors[uri]
            return b"x"

    assert kinds(read(items, "images", storage=Failing())) == ["short_read", "denied", None]
    for fatal in (StoreError("gone"), store.CredentialsError("expired")):
        errors[items[2].uri] = fatal
        with pytest.raises(type(fatal), match=str(fatal)):
            read(items, "images", storage=Failing())


def test_read_ahead_is_bounded(tmp_path: Path) -> None:
    items = put_files(str(tmp_path), 50)
    fetched: list[str] = []
    lock = threading.Lock()

    class Counting(Storage):
        def read_bytes(self, uri: str, max_bytes: int | None = None) -> bytes:
            with lock:
                fetched.append(uri)
            return super().read_bytes(uri, max_bytes)

    images = ChunkReader(Counting(), "images", "image", threads=3).read(
        Chunk("0" * 16, tuple(items)), LIMIT
    )
    for num_read, _ in enumerate(images, 1):
        assert len(fetched) <= num_read + 2 * 3
        if num_read == 10:
            break
    assert isinstance(images, Iterator)
    images.close()  # type: ignore[attr-defined]
    assert len(fetched) <= 10 + 2 * 3


def test_files_are_read_from_s3(s3: S3Server, tmp_path: Path) -> None:
    items = put_files(f"s3://bucket/{tmp_path.name}", 12)
    items.insert(5, Item(f"s3://bucket/{tmp_path.name}/missing.jpg", "missing.jpg", 1))
    images = read(items, "images")
    assert kinds(images) == [None] * 5 + ["missing"] + [None] * 7
    assert images[12].data == b"11" * 11
