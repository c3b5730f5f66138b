"""Chunk readers: some images of a chunk equal those of reading all of it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvbatch.core.types import Chunk, Item
from cvbatch.sources.discovery import find_files
from cvbatch.sources.formats import INPUT_FORMATS
from cvbatch.sources.readers import ChunkReader
from cvbatch.sources.units import UNITS
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.reading import LIMIT, read

IMAGES = {f"{n}.jpg": b"%d" % n * n for n in range(13)}


@pytest.mark.parametrize("key", INPUT_FORMATS)
def test_no_items_give_no_images(key: str) -> None:
    assert read([], key) == []
    assert INPUT_FORMATS[key].select([], ["a.jpg"]) == ()
    files = pa.schema([UNITS.field(name) for name in UNITS.names[:4]]).empty_table()
    assert INPUT_FORMATS[key].expand(Storage(), files, "image", 4).equals(UNITS.empty_table())


def chunk_of(folder: Path, key: str) -> Chunk:
    """Return all images of a small archive of one format as one chunk."""
    source = folder / "in"
    if not source.exists():
        match key:
            case "parquet":
                jobs.write_parquet(source / "a.parquet", IMAGES, row_group_size=9)
            case "zip":
                jobs.write_zip(source / "a.zip", IMAGES)
            case "webdataset":
                jobs.write_tar(source / "a.tar", IMAGES)
            case _:
                jobs.write_files(source, IMAGES)
                (source / "list.txt").write_text("\n".join(IMAGES))
    uri = source / "list.txt" if key == "manifest" else source
    suffix = "/*.jpg" if key == "images" else ""
    source_files = find_files(Storage(), [f"{uri}{suffix}"], key, str(folder / "out"))
    units = source_files.format.expand(Storage(), source_files.files, "image", 4).drop(["version"])
    return Chunk("0" * 16, tuple(Item(**unit) for unit in units.to_pylist()))


@pytest.mark.parametrize("key", INPUT_FORMATS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(numbers=st.sets(st.integers(0, len(IMAGES) - 1)))
def test_selected_images_equal_those_of_a_full_read(
    tmp_path: Path, key: str, numbers: set[int]
) -> None:
    chunk = chunk_of(tmp_path, key)
    reader = ChunkReader(Storage(), key, "image")
    images = list(reader.read(chunk, LIMIT))
    assert sorted(image.data for image in images) == sorted(IMAGES.values())
    image_ids = {images[n].image_id for n in numbers}
    selected = list(reader.read_some(chunk, image_ids | {"of another chunk"}, LIMIT))
    assert selected == [image for image in images if image.image_id in image_ids]
