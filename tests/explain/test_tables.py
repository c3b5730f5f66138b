"""Names never lead out of their folder or meet; rows hold the arrays they were given."""

import posixpath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvbatch.core.types import Failure, ImageBatch
from cvbatch.explain import tables

FORMATS = ("images", "parquet", "webdataset")
SIGNS = [*"ab.#/\\ ~-_é0\n", ".jpg", ".png", "..", "/", "-0123456789abcdef"]
texts = st.lists(st.sampled_from(SIGNS), max_size=8).map("".join)


@pytest.mark.parametrize(
    ("image_id", "source_format", "name"),
    [
        ("a.jpg", "images", "a.jpg"),
        ("set 0/é.png", "images", "set 0/é.png"),
        ("rows.parquet#17", "parquet", "rows.parquet/17"),
        ("s.tar#a/b.jpg", "webdataset", "s.tar/a/b.jpg"),
    ],
)
def test_a_harmless_name_stays(image_id, source_format, name):
    assert tables.image_name(image_id, source_format) == name


@pytest.mark.parametrize("odd", ["../x.jpg", "a//b.jpg", ".a.jpg", "x.jpg/y.png", "a#b.jpg#"])
@pytest.mark.parametrize("source_format", ["images", "webdataset"])
def test_a_name_that_looks_made_safe_is_made_safe_again(odd, source_format):
    name = tables.image_name(odd, source_format)
    assert name != odd.replace("#", "/", 1)
    assert tables.image_name(name, source_format) != name


def test_an_image_is_no_folder_of_others():
    inner = tables.image_name("s.tar#x/conv.png", "webdataset")
    assert not inner.startswith(tables.image_name("s.tar#x", "webdataset") + "/")


@given(texts, st.sampled_from(FORMATS))
def test_no_name_leads_out(image_id, source_format):
    name = tables.image_name(image_id, source_format)
    assert posixpath.normpath(name) == name
    assert not name.startswith(("/", "."))
    assert all(part not in ("", ".", "..") for part in name.split("/"))
    layer = tables.layer_name(image_id)
    assert layer not in ("", ".", "..")
    assert "/" not in layer
    assert "\\" not in layer


@given(st.sets(texts, min_size=2, max_size=6), st.sampled_from(["images", "webdataset"]))
def test_no_two_images_meet(ids, source_format):
    names = {image_id: tables.image_name(image_id, source_format) for image_id in ids}
    assert len({*names.values()}) == len(ids)
    files = {f"{name}.png" for name in names.values()} | {
        f"{name}/x.png" for name in names.values()
    }
    folders = {posixpath.dirname(file) for file in files}
    assert not files & folders
    assert len({tables.layer_name(one) for one in ids}) == len(ids)


def batch(count):
    ids = [f"{i}.png" for i in range(count)]
    sides = np.full(count, 9, np.int32)
    return ImageBatch("c", ids, ids, sides, sides, {}, {})


@pytest.mark.parametrize("sections", [(), ("gradcam",), ("activations", "gradcam", "dream")])
def test_no_images_are_no_rows(sections):
    table = tables.image_rows(batch(0), {}, {}, sections)
    assert table.num_rows == 0
    assert table.schema == tables.images_schema(sections)
    wanted = {"gradcam": "heatmaps"}
    assert table.column_names[6:] == [wanted.get(name, name) for name in sections]


def test_a_row_holds_what_was_found_and_a_failed_one_its_error():
    rng = np.random.default_rng(0)
    maps = {name: rng.normal(0, 1, shape).astype(np.float32)
            for name, shape in (("a", (2, 3, 4)), ("b/c", (1, 1, 5)))}  # fmt: skip
    heat = rng.random((3, 2)).astype(np.float32)
    box = np.array([1, 2, 3, 4], np.float32)
    explained = tables.Explained(
        [tables.Map(name, values, f"{name}.png") for name, values in maps.items()],
        [tables.Seen("m", tables.Located("a", 1, "cup", 0.5, heat, box, box), "p.png")],
        (b"png", "d.png"),
    )
    nothing = tables.Explained([], [], None)
    failures = {1: Failure("decode", "corrupt", "why")}
    sections = ("activations", "gradcam", "dream")
    rows = tables.image_rows(batch(3), failures, {0: explained, 2: nothing}, sections).to_pylist()
    first, failed, empty = rows
    for one, (name, values) in zip(first["activations"], maps.items(), strict=True):
        assert one["layer"] == name
        shape = one["height"], one["width"], one["channels"]
        assert np.array_equal(np.array(one["values"], np.float32).reshape(shape), values)
    (seen,) = first["heatmaps"]
    assert np.array_equal(np.array(seen["values"], np.float32).reshape(3, 2), heat)
    assert seen["box"] == {"x_min": 1, "y_min": 2, "x_max": 3, "y_max": 4}
    assert first["dream"] == {"bytes": b"png", "path": "d.png"}
    assert failed["status"] == "failed"
    assert failed["error"] == {"stage": "decode", "kind": "corrupt", "message": "why"}
    assert failed["activations"] is failed["heatmaps"] is failed["dream"] is None
    assert (empty["status"], empty["activations"], empty["heatmaps"]) == ("ok", [], [])


def test_filters_are_rows_in_their_order():
    kernels = np.random.default_rng(1).normal(0, 1, (4, 3, 3, 2)).astype(np.float32)
    rows = tables.filter_rows("inner/conv", kernels, "p.png").to_pylist()
    assert [row["filter"] for row in rows] == [0, 1, 2, 3]
    for row, kernel in zip(rows, kernels, strict=True):
        assert np.array_equal(np.array(row["values"], np.float32), kernel.reshape(-1))
