"""`cvbatch.read` gives what the Parquet holds, arrays and pictures at the original's size."""

import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import cvbatch
from cvbatch.config.predict import SourceConfig
from cvbatch.core.errors import SourceError
from cvbatch.images.masks import decode_png, encode_png
from cvbatch.planning import part_files
from cvbatch.planning.plan import make_plan
from cvbatch.results import writer
from cvbatch.results.result import Result
from cvbatch.storage import store
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.datasets import picture
from tests.support.results import SIZE, predicted, saw, saw_all

HEATMAP = {"heatmap": {"layer": "auto"}}
NAMES = [f"set/i {n:02d}.png" for n in range(9)]


@pytest.fixture(scope="module")
def files():
    return {name: picture(*SIZE, seed=n) for n, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, files):
    """A result with all columns over image files, two of which failed."""
    place = tmp_path_factory.mktemp("read")
    jobs.write_files(place / "images", files | jobs.BROKEN)
    said = {name: saw_all(n) for n, name in enumerate(NAMES)}
    return predicted(place / "result", place / "images", said, classification=HEATMAP)


@pytest.fixture(scope="module")
def rows(folder):
    """The rows as Parquet's own reader gives them."""
    return {row["image_id"]: row for row in jobs.rows(folder)}


def planned(folder, files):
    """Plan a source of files; return the sink, in which nothing is done."""
    jobs.write_files(folder / "images", files)
    source = SourceConfig(uri=str(folder / "images"), format="images")
    make_plan(Storage(), source, str(folder / "out"), 2, 1 << 30).commit()
    return folder / "out"


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_of_nothing_done_there_is_no_row(tmp_path, files):
    result = cvbatch.read(planned(tmp_path, files))
    assert list(result) == []
    assert result.table().num_rows == 0
    assert result.metadata == {}
    assert result.num_chunks_left == 5


def test_a_folder_without_a_result_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(SourceError, match=r"holds no result of a prediction"):
            cvbatch.read(folder)


def under(values, y, x):
    """Return a map at a place in cells, interpolated between the centres of four of them."""
    height, width = values.shape
    y, x = np.clip(y - 0.5, 0, height - 1), np.clip(x - 0.5, 0, width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = values[top, left] * (1 - across) + values[top, right] * across
    lower = values[bottom, left] * (1 - across) + values[bottom, right] * across
    return upper * (1 - down) + lower * down


def test_a_heatmap_lies_over_the_image_as_the_network_was_fed_it(folder):
    row = next(row for row in cvbatch.read(folder) if row.error is None)
    values, heat = row.heatmaps[0]["values"], row.heat()
    # 40 × 60 pixels in the middle of an input of 20 × 20: 13 of its rows, from the third on
    expected = [
        [under(values, (3 + (y + 0.5) * 13 / 40) * 2 / 20, (x + 0.5) * 3 / 60) for x in range(60)]
        for y in range(40)
    ]
    assert np.allclose(heat, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("tiles", "is_cut"), [({"size": 30}, True), ({"size": [40, 60]}, False), ({}, True)]
)
def test_a_heatmap_of_an_image_that_was_cut_covers_all_of_it(tmp_path, files, tiles, is_cut):
    name = NAMES[0]
    jobs.write_files(tmp_path / "images", {name: files[name]})
    options = {**HEATMAP, "tiles": tiles}
    out = predicted(
        tmp_path / "out", tmp_path / "images", {name: saw_all(0)}, classification=options
    )
    (row,) = cvbatch.read(out)
    values = row.heatmaps[0]["values"]
    covering = [
        [under(values, (y + 0.5) * 2 / 40, (x + 0.5) * 3 / 60) for x in range(60)]
        for y in range(40)
    ]
    assert np.allclose(row.heat(), covering, atol=1e-6) == is_cut


def test_every_row_is_as_the_parquet_says(folder, rows):
    result = cvbatch.read(folder)
    found = list(result)
    assert [row.image_id for row in found] == sorted(rows)  # the order of the manifest
    for row in found:
        said = rows[row.image_id]
        for key in ("uri", "width", "height", "labels", "boxes", "mask_areas"):
            assert getattr(row, key) == said[key]
        assert (row.error is None) == (said["status"] == "ok")
        assert row.error is None or vars(row.error) == said["error"]
    assert result.metadata["models"][0]["task"] == "classification"
    assert result.num_chunks_left == 0


def test_arrays_are_what_was_stored(folder, rows):
    for row in cvbatch.read(folder):
        said = rows[row.image_id]
        if row.error is not None:
            assert row.mask is None and row.heatmaps is None and row.xyxy.shape == (0, 4)
            continue
        assert np.array_equal(row.mask, decode_png(said["mask"]["bytes"]))
        assert row.mask.shape == SIZE
        (heatmap,), (stored,) = row.heatmaps, said["heatmaps"]
        assert heatmap["values"].tolist() == [stored["values"][:3], stored["values"][3:]]
        assert row.xyxy.tolist() == [
            [box[side] for side in ("x_min", "y_min", "x_max", "y_max")] for box in said["boxes"]
        ]


def test_a_mask_of_the_networks_size_comes_at_the_images(tmp_path, files):
    halves = np.repeat([[1] * 10 + [2] * 10], 20, axis=0).astype(np.uint8)  # of a 20 x 20 input
    said = {**saw(1), "mask": {"bytes": encode_png(halves)}}
    jobs.write_files(tmp_path / "images", {"a.png": files[NAMES[0]]})
    options = {"segmentation": {"mask_size": "model"}}
    predicted(tmp_path / "out", tmp_path / "images", {"a.png": said}, **options)
    (row,) = cvbatch.read(tmp_path / "out")
    height, width = SIZE
    assert row.mask.tolist() == [[1] * (width // 2) + [2] * (width // 2)] * height


def test_images_are_read_from_files_parquet_and_tars(folder, files, tmp_path):
    for row in cvbatch.read(folder):
        if row.error is None:
            assert np.array_equal(np.asarray(row.image()), pixels(files[row.image_id]))
    stored = list(files.values())
    jobs.write_parquet(tmp_path / "p" / "all.parquet", files, row_group_size=4)
    said = {f"all.parquet#{n}": saw(n) for n in range(len(files))}
    inside = predicted(tmp_path / "of-parquet", tmp_path / "p", said, format_="parquet")
    found = [np.asarray(row.image()) for row in cvbatch.read(inside)]
    assert all(np.array_equal(a, pixels(b)) for a, b in zip(found, stored, strict=True))
    found = [np.asarray(row.image()) for row in cvbatch.read(of_tar(tmp_path, files))]
    assert all(np.array_equal(a, pixels(b)) for a, b in zip(found, stored, strict=True))


def of_tar(folder, files):
    """Write a result over a tar."""
    jobs.write_tar(folder / "tars" / "all.tar", files)
    said = {f"all.tar#{name}": saw(n) for n, name in enumerate(files)}
    return predicted(folder / "of-tar", folder / "tars", said, format_="webdataset")


def test_of_a_container_only_what_is_wanted_is_read(tmp_path, files):
    result = Result(Storage(), str(of_tar(tmp_path, files)))
    wanted = [f"all.tar#{NAMES[0]}"]
    assert [one.image_id for one in result.images(result.done[0], wanted)] == wanted
    with (tmp_path / "tars" / "all.tar").open("r+b") as tar:
        tar.truncate(len(files[NAMES[0]]) + 1024)  # nothing behind the first image is looked at
    assert [one.failure for one in result.images(result.done[0], wanted)] == [None]


def test_an_overlay_shows_what_was_found(folder):
    for row in cvbatch.read(folder):
        if row.error is not None:
            continue
        image = np.asarray(row.image())
        drawn = {name: np.asarray(row.overlay(name)) for name in ("mask", "heatmap", "boxes")}
        assert all(one.shape == image.shape for one in drawn.values())
        assert not np.array_equal(drawn["mask"], image)
        assert np.array_equal(drawn["mask"][row.mask == 255], image[row.mask == 255])  # void
        assert not np.array_equal(drawn["heatmap"], image)
        assert np.array_equal(drawn["boxes"], image) == (not row.boxes)
        assert np.array_equal(row.overlay(), row.overlay("mask", "boxes"))


def test_a_failed_image_and_one_that_changed_have_no_picture(folder, tmp_path, files):
    failed = next(row for row in cvbatch.read(folder) if row.error)
    with pytest.raises(SourceError, match=r"failed in the job \(truncated"):
        failed.overlay()
    jobs.write_files(tmp_path / "images", {name: files[name] for name in NAMES[:2]})
    said = {name: saw(n) for n, name in enumerate(NAMES)}
    first, second = cvbatch.read(predicted(tmp_path / "out", tmp_path / "images", said))
    (tmp_path / "images" / NAMES[0]).write_bytes(picture(8, 9))
    with pytest.raises(SourceError, match="it is 9 x 8 now"):
        first.image()
    (tmp_path / "images" / NAMES[1]).unlink()
    with pytest.raises(SourceError, match="cannot be read as the job read it"):
        second.image()


def test_the_jobs_limits_hold(tmp_path, files):
    jobs.write_files(tmp_path / "images", {"a.png": files[NAMES[0]]})
    out = predicted(tmp_path / "out", tmp_path / "images", {"a.png": saw(1)})
    job = {"job": {"source": {"max_pixels": SIZE[0] * SIZE[1] - 1}}}
    (out / "_cvbatch" / "job.json").write_text(json.dumps(job))
    (row,) = cvbatch.read(out)
    with pytest.raises(SourceError, match="too_large"):
        row.image()


def test_table_and_dataset_hold_every_row(folder, rows):
    result = cvbatch.read(folder)
    assert result.table().num_rows == result.dataset().count_rows() == len(rows)
    table = result.table(["image_id", "status"])
    assert table.column_names == ["image_id", "status"]
    assert {row["image_id"]: row["status"] for row in table.to_pylist()} == {
        name: row["status"] for name, row in rows.items()
    }
    with pytest.raises(SourceError, match="no column 'mask_area'"):
        result.table(["mask_area"])


def test_rows_whose_chunk_was_planned_again_are_left_out(tmp_path, files):
    jobs.write_files(tmp_path / "images", files)
    said = {name: saw(n) for n, name in enumerate(NAMES)}
    out = predicted(tmp_path / "out", tmp_path / "images", said)
    (tmp_path / "images" / NAMES[0]).write_bytes(picture(50, 50))
    source = SourceConfig(uri=str(tmp_path / "images"), format="images")
    make_plan(Storage(), source, str(out), 4, 1 << 30).commit()
    result = cvbatch.read(out)
    assert [row.image_id for row in result] == NAMES[4:]
    assert result.table().num_rows == len(NAMES) - 4
    assert result.num_chunks_left == 1


def test_a_damaged_file_is_told_when_it_is_reached(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    result = cvbatch.read(copy)
    last = result.uri_of(result.done[-1])
    before = len(pq.read_table(folder)) - pq.read_metadata(last).num_rows
    with open(last, "wb") as file:  # noqa: PTH123
        file.write(b"PAR1 no more")
    seen = iter(result)
    assert len([next(seen) for _ in range(before)]) == before
    with pytest.raises(SourceError, match=r"is not a part of a prediction's result"):
        next(seen)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema_version": 9}, "schema version 9, and this cvbatch reads 1"),
        ({"fingerprint": "other"}, "is of another job than the rest"),
    ],
)
def test_another_version_and_another_job_are_refused(folder, tmp_path, change, told):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    last = Result(Storage(), str(copy)).done[-1]
    path = copy / part_files.part_name(last.chunk_id)
    table = pq.read_table(path)
    said = {**json.loads(pq.read_metadata(path).metadata[b"cvbatch"]), **change}
    writer.write_part(
        Storage(), str(copy), last.chunk_id, [table], table.schema, json.dumps(said).encode()
    )
    with pytest.raises(SourceError, match=told):
        list(cvbatch.read(copy))


def test_a_damaged_manifest_is_one_sentence(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (manifest,) = (copy / "_cvbatch" / "manifest").iterdir()
    manifest.write_bytes(b"nothing")
    with pytest.raises(SourceError, match="_cvbatch/manifest is damaged"):
        cvbatch.read(copy)


def test_a_result_in_a_store_is_read_alike(folder, s3, rows):
    sink_uri = store.join(s3.bucket_uri, "read", "out")
    for path in folder.rglob("*.parquet"):
        Storage().put_bytes(store.join(sink_uri, str(path.relative_to(folder))), path.read_bytes())
    result = cvbatch.read(sink_uri)
    found = {row.image_id: row for row in result}
    assert set(found) == set(rows)
    row = found[NAMES[3]]
    assert np.array_equal(row.mask, decode_png(rows[NAMES[3]]["mask"]["bytes"]))
    assert result.table().num_rows == len(rows)
