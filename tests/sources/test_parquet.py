"""Reading images from Parquet: slices of row groups, damaged files, reuse of a reader."""

from __future__ import annotations

import copy
import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvbatch.core.types import Chunk, Item
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage
from tests.support.reading import LIMIT, kinds, read
from tests.support.s3_server import S3Server

ROWS: list[bytes | None] = [b"%d" % i * i for i in range(40)]
ROWS[7] = None
ROWS[9] = b"x" * (LIMIT + 1)


@pytest.fixture(
    params=[pa.binary(), pa.large_binary(), pa.binary_view(), pa.struct({"bytes": pa.binary()})]
)
def parquet(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of 40 images in row groups of 15, for each type of image column."""
    is_struct = pa.types.is_struct(request.param)
    values = [{"bytes": row} for row in ROWS] if is_struct else ROWS
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(40), "image": pa.array(values, request.param)}), path, 15)
    return path


def slices(path: Path | str, step: int) -> list[Item]:
    items = []
    for group, rows in enumerate([15, 15, 10]):
        for start in range(0, rows, step):
            count = min(step, rows - start)
            items.append(Item(str(path), "a.parquet", 1, group, start, count, 15 * group + start))
    return items


@pytest.mark.parametrize("step", [1, 4, 15])
def test_slices_return_every_row_once(parquet: Path, step: int) -> None:
    items = slices(parquet, step)
    images = read(items, "parquet")
    assert [i.image_id for i in images] == [f"a.parquet#{n}" for n in range(40)]
    assert {i.uri for i in images} == {str(parquet)}
    assert kinds(images) == [{7: "missing", 9: "too_large"}.get(n) for n in range(40)]
    assert [i.data for i in images if not i.failure] == [
        row for n, row in enumerate(ROWS) if n not in (7, 9)
    ]
    backwards = [image for item in items[::-1] for image in read([item], "parquet")]
    assert sorted(backwards, key=lambda i: int(i.image_id[10:])) == images


def test_a_reader_decodes_a_row_group_once_and_a_copy_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"%d" % i for i in range(40)]}), path, row_group_size=15)
    opened: list[str] = []

    class Counting(Storage):
        def open_input(self, uri: str) -> io.RawIOBase:
            opened.append(uri)
            return super().open_input(uri)

    reader = ChunkReader(Counting(), "parquet", "image")
    for item in slices(path, 2):  # each in a separate chunk
        read([item], "parquet", reader=reader)
    assert len(opened) == 3
    for item in slices(path, 1):
        chunk = Chunk("0" * 16, (item,))
        image_ids = [f"a.parquet#{item.first_row}"]
        assert [i.image_id for i in reader.read_some(chunk, image_ids, LIMIT)] == image_ids
    assert len(opened) == 6
    copied = copy.copy(reader)  # uses the same protocol as pickle
    assert read(slices(path, 15)[2:], "parquet", reader=copied)[-1].data == b"39"
    assert len(opened) == 7


def test_iterators_that_alternate_on_one_row_group_are_independent(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"%d" % i for i in range(20)]}), path)
    first, last = Item(str(path), "a", 1, 0, 0, 10, 0), Item(str(path), "a", 1, 0, 10, 10, 10)
    reader = ChunkReader(Storage(), "parquet", "image")
    iterators = [
        reader.read(Chunk("0" * 16, (item,)), LIMIT) for item in (first, last, last, first)
    ]
    rows = [[image.data for image in images] for images in zip(*iterators, strict=True)]
    assert rows == [[b"%d" % n for n in (i, i + 10, i + 10, i)] for i in range(10)]


def test_a_damaged_or_shortened_file_has_a_failure_per_missing_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [os.urandom(5000) for _ in range(40)]}), path, 15)
    items = slices(path, 5)
    data = bytearray(path.read_bytes())
    assert kinds(read(items, "parquet")) == [None] * 40
    path.write_bytes(data[:10_000] + b"\0" * 100_000 + data[110_000:])
    damaged = read(items, "parquet")
    assert [i.image_id for i in damaged] == [f"a.parquet#{n}" for n in range(40)]
    pq.write_table(pa.table({"image": [b"x"] * 20}), path, row_group_size=15)
    shortened = kinds(read(items, "parquet"))
    assert shortened[:20] == [None] * 20
    assert len(shortened) == 40
    assert None not in shortened[20:]
    path.write_bytes(b"not a Parquet file")
    assert kinds(read(items, "parquet")) == ["corrupt"] * 40
    path.unlink()
    assert kinds(read(items, "parquet")) == ["missing"] * 40


def test_parquet_is_read_from_s3(s3: S3Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [b"%d" % i for i in range(40)]}), buffer, row_group_size=15)
    uri = f"s3://bucket/{tmp_path.name}/a.parquet"
    Storage().put_bytes(uri, buffer.getvalue())
    assert [i.data for i in read(slices(uri, 4), "parquet")] == [b"%d" % i for i in range(40)]
