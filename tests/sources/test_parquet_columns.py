"""Image columns of every shape, ids and columns for the result, against pyarrow's own rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvbatch.core.errors import SourceError
from cvbatch.core.types import Chunk, EncodedImage, Item, SourceOptions
from cvbatch.sources.base import options_of
from cvbatch.sources.discovery import find_files
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage
from tests.support.reading import LIMIT, kinds

NUM_ROWS, GROUP_ROWS = 11, 4
BYTES = [b"%d" % i * (i + 1) if i != 5 else None for i in range(NUM_ROWS)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def plan(path: Path, column: str = "image", chunk_images: int = 3, **options: Any) -> list[Item]:
    """Return the slices of the Parquet files in a folder."""
    source = SourceOptions(**options)
    files = find_files(Storage(), [str(path)], "parquet", "/nowhere", None, source)
    units = files.format.expand(Storage(), files.files, column, chunk_images).drop(["version"])
    return [Item(**unit) for unit in units.to_pylist()]


def read_all(path: Path, column: str = "image", **options: Any) -> list[EncodedImage]:
    """Read every slice; check that as many images are read as were planned, and some alone."""
    reader = ChunkReader(Storage(), "parquet", column, options=SourceOptions(**options))
    images = []
    for item in plan(path, column, **options):
        chunk = Chunk("0" * 16, (item,))
        of_slice = list(reader.read(chunk, LIMIT))
        assert len(of_slice) == item.num_rows
        for image in of_slice[::2]:
            again = ChunkReader(Storage(), "parquet", column, options=SourceOptions(**options))
            assert list(again.read_some(chunk, [image.image_id], LIMIT)) == [image]
        images += of_slice
    assert len({image.image_id for image in images}) == len(images)
    return images


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path, GROUP_ROWS)
    return path.parent


IMAGE_STRUCTS = [{"bytes": data, "path": None} for data in BYTES]
LISTS = [[1] * (i % 3) for i in range(NUM_ROWS)]
COLUMNS: dict[str, tuple[pa.Array, str]] = {
    "binary": (pa.array(BYTES, pa.binary()), "image"),
    "large_binary": (pa.array(BYTES, pa.large_binary()), "image"),
    "binary_view": (pa.array(BYTES, pa.binary_view()), "image"),
    "dictionary": (pa.array(BYTES, pa.binary()).dictionary_encode(), "image"),
    "struct": (pa.array(IMAGE_STRUCTS, STRUCT), "image"),
    "struct with a list": (
        pa.array(
            [{**s, "boxes": b, "path": None} for s, b in zip(IMAGE_STRUCTS, LISTS, strict=True)],
            pa.struct([*STRUCT, ("boxes", pa.list_(pa.int64()))]),
        ),
        "image",
    ),
    "nested": (pa.array([{"image": s, "n": 1} for s in IMAGE_STRUCTS]), "image.image"),
    "nested binary": (pa.array([{"jpg": data, "l": [1, 2]} for data in BYTES]), "image.jpg"),
    "null structs": (
        pa.array([None if s["bytes"] is None else s for s in IMAGE_STRUCTS], STRUCT),
        "image",
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_row_is_an_image_whatever_the_type_of_its_column(tmp_path: Path, name: str) -> None:
    column, key = COLUMNS[name]
    folder = write(tmp_path / "in" / "a.parquet", image=column, beside=LISTS)
    images = read_all(folder, key)
    assert [i.image_id for i in images] == [f"a.parquet#{n}" for n in range(NUM_ROWS)]
    assert [i.data or None for i in images] == BYTES
    assert kinds(images) == ["missing" if data is None else None for data in BYTES]


@pytest.mark.parametrize(
    "type_",
    [pa.list_(pa.binary()), pa.large_list(pa.binary()), pa.list_(STRUCT)],
)
def test_a_row_may_have_several_images(tmp_path: Path, type_: pa.DataType) -> None:
    """Oracle: the rows as pyarrow reads them. An empty row is a failed row."""
    rows: list[Any] = [[b"%d.%d" % (i, k) for k in range(i % 4)] for i in range(NUM_ROWS)]
    rows[3][1], rows[6] = None, None
    stored = rows
    if pa.types.is_struct(type_.value_type):
        stored = [r and [{"bytes": data, "path": None} for data in r] for r in rows]
    folder = write(tmp_path / "in" / "a.parquet", image=pa.array(stored, type_))
    expected: dict[str, bytes | None] = {}
    for n, row in enumerate(rows):
        expected |= {f"a.parquet#{n}#{k}": data for k, data in enumerate(row or [])}
        expected |= {} if row else {f"a.parquet#{n}": None}
    images = read_all(folder)
    assert {i.image_id: i.data or None for i in images} == expected
    assert all((i.failure is None) == bool(i.data) for i in images)
    items = plan(folder)
    (folder / "a.parquet").unlink()
    reader = ChunkReader(Storage(), "parquet", "image")
    missing = list(reader.read(Chunk("0" * 16, tuple(items)), LIMIT))
    assert len({i.image_id for i in missing}) == len(images)
    assert set(kinds(missing)) == {"missing"}


def test_a_path_beside_the_file_is_read_and_others_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "1.jpg").write_bytes(b"one")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    paths = {
        "images/1.jpg": None,
        "./images//1.jpg": None,
        f"{folder}/images/1.jpg": None,
        "images/2.jpg": "missing",
        "../secret.jpg": "denied",
        "images/../../secret.jpg": "denied",
        f"{tmp_path}/secret.jpg": "denied",
        f"{folder}/../secret.jpg": "denied",
        "file:///etc/passwd": "denied",
        "s3://bucket/x.jpg": "denied",
        "": "denied",
        "images": "missing",
        "a\0b": "missing",
        "x" * 5000: "missing",
        "images/é\n .jpg": "missing",
    }
    stored = [{"bytes": None, "path": path} for path in paths]
    write(folder / "a.parquet", image=pa.array(stored, STRUCT))
    images = read_all(folder)
    assert kinds(images) == list(paths.values())
    assert {i.data for i in images} == {b"one", b""}


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        (range(100, 100 + NUM_ROWS), [str(n) for n in range(100, 100 + NUM_ROWS)]),
        ([f"c/{n}#é" for n in range(NUM_ROWS)], [f"c/{n}#é" for n in range(NUM_ROWS)]),
    ],
)
def test_an_id_column_gives_the_keys(tmp_path: Path, values: Any, keys: list[str]) -> None:
    folder = write(tmp_path / "in" / "a.parquet", image=BYTES, customer=list(values))
    images = read_all(folder, id_column="customer")
    assert [i.image_id for i in images] == [f"a.parquet#{key}" for key in keys]
    assert [i.data or None for i in images] == BYTES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id_column": "twice"}, "more than once, such as 'x'"),
        ({"id_column": "null"}, "1 nulls"),
        ({"id_column": "float"}, "must be strings or integers"),
        ({"id_column": "nope"}, "no column 'nope'.*source.id_column"),
        ({"keep_columns": ("float", "nope")}, "no column 'nope'.*source.keep_columns"),
    ],
)
def test_a_column_that_cannot_be_used_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    names = [f"{n}" for n in range(NUM_ROWS)]
    folder = write(
        tmp_path / "in" / "a.parquet",
        image=BYTES,
        twice=["x", "x", *names[2:]],
        null=[None, *names[1:]],
        float=[0.5] * NUM_ROWS,
    )
    with pytest.raises(SourceError, match=message):
        plan(folder, **options)


def test_the_refusal_names_columns_that_may_have_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "in" / "a.parquet", jpg=BYTES, n=range(NUM_ROWS))
    with pytest.raises(SourceError, match=r"images may be in jpg"):
        plan(folder)
    with pytest.raises(SourceError, match=r"is int64; it must be binary"):
        plan(folder, "n")


def test_the_manifest_stores_the_options_that_read_the_images_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "in" / "a.parquet", image=BYTES, c=range(NUM_ROWS))
    options = SourceOptions(id_column="c", keep_columns=("c",))
    files = find_files(Storage(), [str(folder)], "auto", "/nowhere", None, options)
    reading = files.format.reading("image")
    assert reading == {"format": "parquet", "image_column": "image", "id_column": "c"}
    assert options_of(reading) == SourceOptions(id_column="c")


def test_a_file_that_lost_its_column_is_not_called_damaged(tmp_path: Path) -> None:
    folder = write(tmp_path / "in" / "a.parquet", image=BYTES)
    items = plan(folder)
    write(tmp_path / "in" / "a.parquet", other=BYTES)
    images = list(
        ChunkReader(Storage(), "parquet", "image").read(Chunk("0" * 16, tuple(items)), LIMIT)
    )
    assert kinds(images) == ["changed"] * NUM_ROWS
    assert "has no column 'image'" in str(images[0].failure)


def test_a_path_that_is_no_text_is_no_path(tmp_path: Path) -> None:
    images = [{"bytes": None if n else b"x", "path": n} for n in range(NUM_ROWS)]
    folder = write(tmp_path / "in" / "a.parquet", image=images)
    assert kinds(read_all(folder)) == [None] + ["missing"] * (NUM_ROWS - 1)
