"""Picture names are safe and unique; table rows contain the given arrays."""

import posixpath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvbatch.core.types import Failure, ImageBatch
from cvbatch.explain import tables

FORMATS = ("images", "parquet", "webdataset")
FRAGMENTS = [*"ab.#/\\ ~-_é0\n", ".jpg", ".png", "..", "/", "-0123456789abcdef"]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)


@pytest.mark.parametrize(
    ("image_id", "source_format", "name"),
    [
        ("a.jpg", "images", "a.jpg"),
        ("set 0/é.png", "images", "set 0/é.png"),
        ("rows.parquet#17", "parquet", "rows.parquet/17"),
        ("s.tar#a/b.jpg", "webdataset", "s.tar/a/b.jpg"),
    ],
)
def test_safe_image_id_is_the_name(image_id, source_format, name):
    assert tables.image_name(image_id, source_format) == name


@pytest.mark.parametrize("image_id", ["../x.jpg", "a//b.jpg", ".a.jpg", "x.jpg/y.png", "a#b.jpg#"])
@pytest.mark.parametrize("source_format", ["images", "webdataset"])
def test_unsafe_image_id_gets_a_hash_and_a_hashed_name_another(image_id, source_format):
    name = tables.image_name(image_id, source_format)
    assert name != image_id.replace("#", "/", 1)
    assert tables.image_name(name, source_format) != name


def test_name_of_an_image_is_not_the_folder_of_another():
    inner = tables.image_name("s.tar#x/conv.png", "webdataset")
    assert not inner.startswith(tables.image_name("s.tar#x", "webdataset") + "/")


@given(texts, st.sampled_from(FORMATS))
def test_names_stay_in_their_folder(image_id, source_format):
    name = tables.image_name(image_id, source_format)
    assert posixpath.normpath(name) == name
    assert not name.startswith(("/", "."))
    assert all(part not in ("", ".", "..") for part in name.split("/"))
    file_name = tables.safe_file_name(image_id)
    assert file_name not in ("", ".", "..")
    assert "/" not in file_name
    assert "\\" not in file_name


@given(st.sets(texts, min_size=2, max_size=6), st.sampled_from(["images", "webdataset"]))
def test_names_are_unique(ids, source_format):
    names = {image_id: tables.image_name(image_id, source_format) for image_id in ids}
    assert len({*names.values()}) == len(ids)
    files = {f"{name}.png" for name in names.values()} | {
        f"{name}/x.png" for name in names.values()
    }
    folders = {posixpath.dirname(file) for file in files}
    assert not files & folders
    assert len({tables.safe_file_name(image_id) for image_id in ids}) == len(ids)


def batch(count):
    ids = [f"{i}.png" for i in range(count)]
    sides = np.full(count, 9, np.int32)
    return ImageBatch("c", ids, ids, sides, sides, {}, {})


@pytest.mark.parametrize("sections", [(), ("gradcam",), ("activations", "gradcam", "dream")])
def test_empty_batch_gives_an_empty_table(sections):
    table = tables.image_rows(batch(0), {}, {}, sections)
    assert table.num_rows == 0
    assert table.schema == tables.images_schema(sections)
    columns = {"gradcam": "heatmaps"}
    assert table.column_names[6:] == [columns.get(name, name) for name in sections]


def test_image_rows_contain_arrays_or_the_error():
    rng = np.random.default_rng(0)
    maps = {name: rng.normal(0, 1, shape).astype(np.float32)
            for name, shape in (("a", (2, 3, 4)), ("b/c", (1, 1, 5)))}  # fmt: skip
    heat = rng.random((3, 2)).astype(np.float32)
    box = np.array([1, 2, 3, 4], np.float32)
    heatmap = tables.ClassHeatmap("a", 1, "cup", 0.5, heat, box, box)
    explained = tables.ImageRow(
        [tables.LayerActivations(name, values, f"{name}.png") for name, values in maps.items()],
        [tables.HeatmapPicture("m", heatmap, "p.png")],
        (b"png", "d.png"),
    )
    nothing = tables.ImageRow([], [], None)
    failures = {1: Failure("decode", "corrupt", "why")}
    sections = ("activations", "gradcam", "dream")
    rows = tables.image_rows(batch(3), failures, {0: explained, 2: nothing}, sections).to_pylist()
    first, failed, empty = rows
    for activations, (name, values) in zip(first["activations"], maps.items(), strict=True):
        assert activations["layer"] == name
        shape = activations["height"], activations["width"], activations["channels"]
        assert np.array_equal(np.array(activations["values"], np.float32).reshape(shape), values)
    (stored,) = first["heatmaps"]
    assert np.array_equal(np.array(stored["values"], np.float32).reshape(3, 2), heat)
    assert stored["box"] == {"x_min": 1, "y_min": 2, "x_max": 3, "y_max": 4}
    assert first["dream"] == {"bytes": b"png", "path": "d.png"}
    assert failed["status"] == "failed"
    assert failed["error"] == {"stage": "decode", "kind": "corrupt", "message": "why"}
    assert failed["activations"] is failed["heatmaps"] is failed["dream"] is None
    assert (empty["status"], empty["activations"], empty["heatmaps"]) == ("ok", [], [])


def test_filter_rows_are_in_the_order_of_filters():
    kernels = np.random.default_rng(1).normal(0, 1, (4, 3, 3, 2)).astype(np.float32)
    rows = tables.filter_rows("inner/conv", kernels, "p.png").to_pylist()
    assert [row["filter"] for row in rows] == [0, 1, 2, 3]
    for row, kernel in zip(rows, kernels, strict=True):
        assert np.array_equal(np.array(row["values"], np.float32), kernel.reshape(-1))
