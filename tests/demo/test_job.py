"""The demonstration, as a new user runs it: what is promised lies there, and it is right."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cvbatch.demo.shapes import CLASSES, MASK_CLASSES
from cvbatch.images.masks import decode_png
from tests.support import jobs
from tests.support.reference_metrics import Found, average_precision, confusion, mean_iou

pytestmark = [pytest.mark.ray, pytest.mark.keras]
NUM_SCENES = 240


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What the command said, and the rows of its scenes beside their truth."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    status, said, told = jobs.cvbatch("demo", "--out", folder, "--images", NUM_SCENES, "--json")
    assert status == 0, told
    truth = {row["image_id"]: row for row in pq.read_table(folder / "truth.parquet").to_pylist()}
    rows = {row["image_id"]: row for row in jobs.rows(folder / "result")}
    return folder, json.loads(said), truth, rows


def test_every_image_of_the_archive_is_a_row_and_the_broken_ones_failed(demo):
    folder, said, truth, rows = demo
    files = {str(p.relative_to(folder / "images")) for p in (folder / "images").rglob("*.*")}
    assert set(rows) == files
    assert len(truth) == NUM_SCENES
    failed = {name for name, row in rows.items() if row["status"] == "failed"}
    assert failed == {name for name in files if name.startswith("broken/")}
    assert said["num_failed"] == len(failed) == 3


def test_labels_are_right(demo):
    _, _, truth, rows = demo
    right = [rows[name]["labels"][0]["label"] == row["label"] for name, row in truth.items()]
    assert np.mean(right) >= 0.95


def test_masks_are_right(demo):
    _, _, truth, rows = demo
    count = len(MASK_CLASSES)
    summed = sum(
        confusion(decode_png(row["mask"]["bytes"]), decode_png(rows[name]["mask"]["bytes"]), count)
        for name, row in truth.items()
    )
    assert mean_iou(summed) >= 0.85


def found(boxes):
    sides = ("x_min", "y_min", "x_max", "y_max")
    return Found(
        np.array([[box[side] for side in sides] for box in boxes]).reshape(-1, 4),
        np.array([CLASSES.index(box["label"]) for box in boxes], np.int64),
        np.array([box["score"] for box in boxes]),
    )


def test_boxes_are_right(demo):
    _, _, truth, rows = demo
    wanted = [found(row["boxes"]) for row in truth.values()]
    said = [found(rows[name]["boxes"]) for name in truth]
    assert average_precision(wanted, said, len(CLASSES)) >= 0.85


def test_the_report_is_written_and_the_job_file_runs_again(demo):
    folder, said, _, _ = demo
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert said["page"] == str(folder / "report.html")
    assert f"{said['num_images']:,} images through 3 networks" in page
    status, _, told = jobs.cvbatch("predict", "--config", said["job_file"])
    assert status == 0
    assert "nothing to do" in told
    assert Path(said["result"]) == folder / "result"


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    status, _, told = jobs.cvbatch("demo", "--out", tmp_path)
    assert status == 2
    assert "not empty" in told
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
