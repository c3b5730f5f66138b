"""`cvbatch.read`: rows, arrays, images and overlays at the size of the original."""

import base64
import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

import cvbatch
from cvbatch.config.predict import SourceConfig
from cvbatch.core.errors import SourceError
from cvbatch.datasets.reader import list_parquet_files
from cvbatch.images.drawing import PALETTE
from cvbatch.images.masks import decode_png, encode_png
from cvbatch.planning import part_files
from cvbatch.planning.plan import make_plan
from cvbatch.results import writer
from cvbatch.results.result import Result
from cvbatch.storage import store
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.datasets import picture
from tests.support.results import (
    SIZE,
    boxes_at,
    random_predictions,
    random_row,
    write_predictions,
)

HEATMAP = {"heatmap": {"layer": "auto"}}
NAMES = [f"set/i {n:02d}.png" for n in range(9)]
_BELOW_RIGHT = np.zeros(SIZE, np.uint8, order="F")
_BELOW_RIGHT[30:, 50:] = 1
CORNER = {
    "size": list(SIZE),
    "counts": coco_masks.encode(_BELOW_RIGHT)["counts"].decode(),
}  # a mask of the last rows and columns


@pytest.fixture(scope="module")
def files():
    return {name: picture(*SIZE, seed=n) for n, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, files):
    """A result with all columns over image files, two of which failed."""
    root = tmp_path_factory.mktemp("read")
    jobs.write_files(root / "images", files | jobs.BROKEN)
    predictions = {name: random_row(n) for n, name in enumerate(NAMES)}
    return write_predictions(root / "result", root / "images", predictions, classification=HEATMAP)


@pytest.fixture(scope="module")
def rows(folder):
    """The rows as pyarrow reads them."""
    return {row["image_id"]: row for row in jobs.rows(folder)}


def planned(folder, files):
    """Plan a source of files; return the sink, in which no chunk is done."""
    jobs.write_files(folder / "images", files)
    source = SourceConfig(uri=str(folder / "images"), format="images")
    make_plan(Storage(), source, str(folder / "out"), 2, 1 << 30).commit()
    return folder / "out"


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_result_without_done_chunks_has_no_rows(tmp_path, files):
    result = cvbatch.read(planned(tmp_path, files))
    assert list(result) == []
    assert result.table().num_rows == 0
    assert result.metadata == {}
    assert result.num_chunks_left == 5


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"holds no result of a prediction"):
        cvbatch.read(tmp_path)
    with pytest.raises(SourceError, match=r"absent does not exist"):
        cvbatch.read(tmp_path / "absent")


def interpolate(values, y, x):
    """Return a heatmap at a position in cells, interpolated between four cell centres."""
    height, width = values.shape
    y, x = np.clip(y - 0.5, 0, height - 1), np.clip(x - 0.5, 0, width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = values[top, left] * (1 - across) + values[top, right] * across
    lower = values[bottom, left] * (1 - across) + values[bottom, right] * across
    return upper * (1 - down) + lower * down


def test_a_heatmap_covers_the_image_as_letterboxed_for_the_network(folder):
    row = next(row for row in cvbatch.read(folder) if row.error is None)
    values, heat = row.heatmaps[0]["values"], row.heat()
    # 40 × 60 pixels in the middle of an input of 20 × 20: 13 of its rows, from the third on
    expected = [
        [
            interpolate(values, (3 + (y + 0.5) * 13 / 40) * 2 / 20, (x + 0.5) * 3 / 60)
            for x in range(60)
        ]
        for y in range(40)
    ]
    assert np.allclose(heat, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("tiles", "is_tiled"), [({"size": 30}, True), ({"size": [40, 60]}, False), ({}, True)]
)
def test_a_heatmap_of_a_tiled_image_covers_the_image(tmp_path, files, tiles, is_tiled):
    name = NAMES[0]
    jobs.write_files(tmp_path / "images", {name: files[name]})
    options = {**HEATMAP, "tiles": tiles}
    out = write_predictions(
        tmp_path / "out", tmp_path / "images", {name: random_row(0)}, classification=options
    )
    (row,) = cvbatch.read(out)
    values = row.heatmaps[0]["values"]
    expected = [
        [interpolate(values, (y + 0.5) * 2 / 40, (x + 0.5) * 3 / 60) for x in range(60)]
        for y in range(40)
    ]
    assert np.allclose(row.heat(), expected, atol=1e-6) == is_tiled


def test_rows_equal_the_parquet_rows(folder, rows):
    result = cvbatch.read(folder)
    read_rows = list(result)
    assert [row.image_id for row in read_rows] == sorted(rows)  # the order of the manifest
    for row in read_rows:
        stored = rows[row.image_id]
        for key in ("uri", "width", "height", "labels", "boxes", "mask_areas"):
            assert getattr(row, key) == stored[key]
        assert (row.error is None) == (stored["status"] == "ok")
        assert row.error is None or vars(row.error) == stored["error"]
    assert result.metadata["models"][0]["task"] == "classification"
    assert result.num_chunks_left == 0


def test_arrays_equal_the_stored_values(folder, rows):
    for row in cvbatch.read(folder):
        stored_row = rows[row.image_id]
        if row.error is not None:
            assert row.mask is None and row.heatmaps is None and row.xyxy.shape == (0, 4)
            continue
        assert np.array_equal(row.mask, decode_png(stored_row["mask"]["bytes"]))
        assert row.mask.shape == SIZE
        (heatmap,), (stored,) = row.heatmaps, stored_row["heatmaps"]
        assert heatmap["values"].tolist() == [stored["values"][:3], stored["values"][3:]]
        assert row.xyxy.tolist() == [
            [box[side] for side in ("x_min", "y_min", "x_max", "y_max")]
            for box in stored_row["boxes"]
        ]


def test_a_mask_stored_at_the_networks_size_is_mapped_to_the_image(tmp_path, files):
    halves = np.repeat([[1] * 10 + [2] * 10], 20, axis=0).astype(np.uint8)  # of a 20 x 20 input
    prediction = {**random_predictions(1), "mask": {"bytes": encode_png(halves)}}
    jobs.write_files(tmp_path / "images", {"a.png": files[NAMES[0]]})
    options = {"segmentation": {"mask_size": "model"}}
    write_predictions(tmp_path / "out", tmp_path / "images", {"a.png": prediction}, **options)
    (row,) = cvbatch.read(tmp_path / "out")
    height, width = SIZE
    assert row.mask.tolist() == [[1] * (width // 2) + [2] * (width // 2)] * height


def test_images_are_read_from_files_parquet_and_tars(folder, files, tmp_path):
    for row in cvbatch.read(folder):
        if row.error is None:
            assert np.array_equal(np.asarray(row.image()), pixels(files[row.image_id]))
    stored = list(files.values())
    jobs.write_parquet(tmp_path / "p" / "all.parquet", files, row_group_size=4)
    predictions = {f"all.parquet#{n}": random_predictions(n) for n in range(len(files))}
    result = write_predictions(
        tmp_path / "of-parquet", tmp_path / "p", predictions, format_="parquet"
    )
    images = [np.asarray(row.image()) for row in cvbatch.read(result)]
    assert all(np.array_equal(a, pixels(b)) for a, b in zip(images, stored, strict=True))
    images = [np.asarray(row.image()) for row in cvbatch.read(predict_tar(tmp_path, files))]
    assert all(np.array_equal(a, pixels(b)) for a, b in zip(images, stored, strict=True))


def predict_tar(folder, files):
    """Write a tar of the files and a result over it; return the result."""
    jobs.write_tar(folder / "tars" / "all.tar", files)
    predictions = {f"all.tar#{name}": random_predictions(n) for n, name in enumerate(files)}
    return write_predictions(folder / "of-tar", folder / "tars", predictions, format_="webdataset")


def test_selected_images_of_a_tar_are_read_without_its_rest(tmp_path, files):
    result = Result(Storage(), str(predict_tar(tmp_path, files)))
    image_ids = [f"all.tar#{NAMES[0]}"]
    assert [image.image_id for image in result.images(result.done[0], image_ids)] == image_ids
    with (tmp_path / "tars" / "all.tar").open("r+b") as tar:
        tar.truncate(len(files[NAMES[0]]) + 1024)  # nothing after the first image is read
    assert [image.failure for image in result.images(result.done[0], image_ids)] == [None]


def test_overlays_show_masks_heatmaps_and_boxes(folder):
    for row in cvbatch.read(folder):
        if row.error is not None:
            continue
        image = np.asarray(row.image())
        drawn = {name: np.asarray(row.overlay(name)) for name in ("mask", "heatmap", "boxes")}
        assert all(overlay.shape == image.shape for overlay in drawn.values())
        assert not np.array_equal(drawn["mask"], image)
        assert np.array_equal(drawn["mask"][row.mask == 255], image[row.mask == 255])  # void
        assert not np.array_equal(drawn["heatmap"], image)
        assert np.array_equal(drawn["boxes"], image) == (not row.boxes)
        assert np.array_equal(row.overlay(), row.overlay("mask", "boxes"))


def predicted_with_masks(folder, files, seed=5, **changes):
    jobs.write_files(folder / "images", {"a.png": files[NAMES[0]]})
    predictions = {"a.png": {**random_row(seed), **changes}}
    (row,) = cvbatch.read(
        write_predictions(
            folder / "out", folder / "images", predictions, detection={"masks": "box"}
        )
    )
    return row, predictions["a.png"]


def test_masks_of_boxes_are_those_of_pycocotools(tmp_path, files):
    row, expected = predicted_with_masks(tmp_path, files)
    minimum = float(np.median([box["score"] for box in expected["boxes"]])) - 1e-6
    row = row.with_min_score(minimum)  # boxes keep their masks
    is_kept = [box["score"] >= minimum for box in expected["boxes"]]
    assert 0 < sum(is_kept) < len(is_kept)
    regions = [
        coco_masks.decode(rle)
        for rle, kept in zip(expected["box_masks"], is_kept, strict=True)
        if kept
    ]
    for i, region in enumerate(regions):
        assert np.array_equal(coco_masks.decode(row.boxes[i]["mask"]), region)
        assert np.array_equal(row.box_mask(i), region)
    merged = row.box_mask_map(range(1, len(regions)))  # of all boxes but the last
    owner = [
        np.argmax([*column, True]) for column in zip(*map(np.ravel, regions[:-1]), strict=True)
    ]
    values = np.array([*range(1, len(regions)), 255])
    assert np.array_equal(merged.ravel(), values[owner])


def test_overlays_show_masks_of_boxes(tmp_path, files):
    row, _ = predicted_with_masks(tmp_path, files, boxes=boxes_at((0, 0, 9, 9)), box_masks=[CORNER])
    image, drawn = np.asarray(row.image()), np.asarray(row.overlay("boxes"))
    is_changed = (image != drawn).any(axis=2)
    assert is_changed[30:, 50:].all()
    colour = PALETTE[2]  # of class 1 of a detector, or class 2 of masks with a background
    assert np.allclose(drawn[30:, 50:], image[30:, 50:] / 2 + colour / 2, atol=1)
    assert not is_changed[30:, 20:50].any()


@pytest.mark.parametrize(
    "change", [{"size": [9, 9]}, {"size": None}, {"counts": None}, {"counts": "11"}]
)
def test_a_damaged_mask_of_a_box_is_reported(tmp_path, files, change):
    masks = [{**CORNER, **change}]
    row, _ = predicted_with_masks(tmp_path, files, boxes=boxes_at((0, 0, 9, 9)), box_masks=masks)
    with pytest.raises(SourceError, match=r"a mask of a box of 'a\.png'"):
        row.box_mask(0)


def test_a_row_with_more_boxes_than_masks_is_refused(tmp_path, files):
    with pytest.raises(SourceError, match="1 boxes and 0 masks"):
        predicted_with_masks(tmp_path, files, boxes=boxes_at((0, 0, 9, 9)), box_masks=[])


def test_failed_and_changed_images_cannot_be_read(folder, tmp_path, files):
    failed = next(row for row in cvbatch.read(folder) if row.error)
    with pytest.raises(SourceError, match=r"failed in the job \(truncated"):
        failed.overlay()
    jobs.write_files(tmp_path / "images", {name: files[name] for name in NAMES[:2]})
    predictions = {name: random_predictions(n) for n, name in enumerate(NAMES)}
    first, second = cvbatch.read(
        write_predictions(tmp_path / "out", tmp_path / "images", predictions)
    )
    (tmp_path / "images" / NAMES[0]).write_bytes(picture(8, 9))
    with pytest.raises(SourceError, match="it is 9 x 8 now"):
        first.image()
    (tmp_path / "images" / NAMES[1]).unlink()
    with pytest.raises(SourceError, match="cannot be read as the job read it"):
        second.image()


def test_the_limits_of_the_job_apply(tmp_path, files):
    jobs.write_files(tmp_path / "images", {"a.png": files[NAMES[0]]})
    out = write_predictions(tmp_path / "out", tmp_path / "images", {"a.png": random_predictions(1)})
    job = {"job": {"source": {"max_pixels": SIZE[0] * SIZE[1] - 1}}}
    (out / "_cvbatch" / "job.json").write_text(json.dumps(job))
    (row,) = cvbatch.read(out)
    with pytest.raises(SourceError, match="too_large"):
        row.image()


def test_table_and_dataset_have_every_row(folder, rows):
    result = cvbatch.read(folder)
    assert result.table().num_rows == result.dataset().count_rows() == len(rows)
    table = result.table(["image_id", "status"])
    assert table.column_names == ["image_id", "status"]
    assert {row["image_id"]: row["status"] for row in table.to_pylist()} == {
        name: row["status"] for name, row in rows.items()
    }
    with pytest.raises(SourceError, match="no column 'mask_area'"):
        result.table(["mask_area"])


def test_rows_of_chunks_planned_again_are_omitted(tmp_path, files):
    jobs.write_files(tmp_path / "images", files)
    predictions = {name: random_predictions(n) for n, name in enumerate(NAMES)}
    out = write_predictions(tmp_path / "out", tmp_path / "images", predictions)
    (tmp_path / "images" / NAMES[0]).write_bytes(picture(50, 50))
    source = SourceConfig(uri=str(tmp_path / "images"), format="images")
    make_plan(Storage(), source, str(out), 4, 1 << 30).commit()
    result = cvbatch.read(out)
    assert [row.image_id for row in result] == NAMES[4:]
    assert result.table().num_rows == len(NAMES) - 4
    assert result.num_chunks_left == 1


def test_a_damaged_part_raises_when_it_is_read(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    result = cvbatch.read(copy)
    last = result.uri_of(result.done[-1])
    num_rows_before = len(pq.read_table(folder)) - pq.read_metadata(last).num_rows
    with open(last, "wb") as file:  # noqa: PTH123
        file.write(b"PAR1 no more")
    iterator = iter(result)
    assert len([next(iterator) for _ in range(num_rows_before)]) == num_rows_before
    with pytest.raises(SourceError, match=r"is not a part of a prediction's result"):
        next(iterator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, "schema version 9, and this cvbatch reads 1"),
        ({"fingerprint": "other"}, "is of another job than the rest"),
    ],
)
def test_parts_of_another_version_or_job_are_refused(folder, tmp_path, change, message):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    last = Result(Storage(), str(copy)).done[-1]
    path = copy / part_files.part_name(last.chunk_id)
    table = pq.read_table(path)
    metadata = {**json.loads(pq.read_metadata(path).metadata[b"cvbatch"]), **change}
    writer.write_part(
        Storage(), str(copy), last.chunk_id, [table], table.schema, json.dumps(metadata).encode()
    )
    with pytest.raises(SourceError, match=message):
        list(cvbatch.read(copy))


def test_a_damaged_manifest_is_reported(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (manifest,) = (copy / "_cvbatch" / "manifest").iterdir()
    manifest.write_bytes(b"nothing")
    with pytest.raises(SourceError, match="_cvbatch/manifest is damaged"):
        cvbatch.read(copy)


def test_a_result_in_s3_is_read_the_same(folder, s3, rows):
    sink_uri = store.join(s3.bucket_uri, "read", "out")
    for path in folder.rglob("*.parquet"):
        Storage().put_bytes(store.join(sink_uri, str(path.relative_to(folder))), path.read_bytes())
    result = cvbatch.read(sink_uri)
    read_rows = {row.image_id: row for row in result}
    assert set(read_rows) == set(rows)
    row = read_rows[NAMES[3]]
    assert np.array_equal(row.mask, decode_png(rows[NAMES[3]]["mask"]["bytes"]))
    assert result.table().num_rows == len(rows)


def test_a_file_instead_of_a_folder_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(SourceError, match=r"results\.json is a file.*name the folder"):
        Result(Storage(), str(path))
    with pytest.raises(SourceError, match=r"results\.json is a file.*cvbatch import coco"):
        list_parquet_files(Storage(), str(path))


def test_a_result_is_a_sequence_of_its_rows(folder):
    result = cvbatch.read(folder)
    rows = [(row.image_id, row.labels) for row in result]
    assert len(result) == len(rows) > 9

    def seen(taken):
        return [(row.image_id, row.labels) for row in taken]

    assert seen([result[0], result[-1], result[len(rows) - 1]]) == [rows[0], rows[-1], rows[-1]]
    for key in (slice(None), slice(3, 8), slice(None, None, -2), slice(-4, None), slice(5, 2)):
        assert seen(result[key]) == rows[key]
    for number in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            result[number]


def test_tables_have_every_row(folder):
    result = cvbatch.read(folder)
    ids = [row.image_id for row in result]
    assert result.to_arrow(["image_id"])["image_id"].to_pylist() == ids
    assert result.to_pandas()["image_id"].tolist() == ids
    assert result.to_polars(["image_id"])["image_id"].to_list() == ids


def test_jupyter_shows_a_gallery_of_the_first_rows(folder, tmp_path):
    result = cvbatch.read(folder)
    page = result._repr_html_()
    assert page.count("<figure") == 8
    assert f"{len(result)} images; the first 8 are shown" in page
    for row in result[:8]:
        assert row.image_id in page
        assert (row.error is None) or f"failed: {row.error.kind}" in page
    pictures = [part.partition('"')[0] for part in page.split("base64,")[1:]]
    assert len(pictures) == sum(row.error is None for row in result[:8])
    for data in pictures:
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 160
