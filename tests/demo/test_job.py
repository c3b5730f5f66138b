"""The demo as a user runs it: all promised files exist, and the predictions are accurate."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cvbatch.demo.shapes import CLASSES, MASK_CLASSES
from cvbatch.images.masks import decode_png
from tests.support import jobs
from tests.support.reference_metrics import ImageBoxes, average_precision, confusion, mean_iou

pytestmark = [pytest.mark.ray, pytest.mark.keras]
NUM_SCENES = 240


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of the demo, its JSON summary, the ground truth and the rows by image id."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    status, stdout, stderr = jobs.cvbatch("demo", "--out", folder, "--images", NUM_SCENES, "--json")
    assert status == 0, stderr
    truth = {row["image_id"]: row for row in pq.read_table(folder / "truth.parquet").to_pylist()}
    rows = {row["image_id"]: row for row in jobs.rows(folder / "result")}
    return folder, json.loads(stdout), truth, rows


def test_every_image_is_a_row_and_broken_files_fail(demo):
    folder, summary, truth, rows = demo
    files = {str(p.relative_to(folder / "images")) for p in (folder / "images").rglob("*.*")}
    assert set(rows) == files
    assert len(truth) == NUM_SCENES
    failed = {name for name, row in rows.items() if row["status"] == "failed"}
    assert failed == {name for name in files if name.startswith("broken/")}
    assert summary["num_failed"] == len(failed) == 3


def test_labels_are_accurate(demo):
    _, _, truth, rows = demo
    is_correct = [rows[name]["labels"][0]["label"] == row["label"] for name, row in truth.items()]
    assert np.mean(is_correct) >= 0.95


def test_masks_are_accurate(demo):
    _, _, truth, rows = demo
    num_classes = len(MASK_CLASSES)
    counts = sum(
        confusion(
            decode_png(row["mask"]["bytes"]), decode_png(rows[name]["mask"]["bytes"]), num_classes
        )
        for name, row in truth.items()
    )
    assert mean_iou(counts) >= 0.85


def detections(boxes):
    sides = ("x_min", "y_min", "x_max", "y_max")
    return ImageBoxes(
        np.array([[box[side] for side in sides] for box in boxes]).reshape(-1, 4),
        np.array([CLASSES.index(box["label"]) for box in boxes], np.int64),
        np.array([box["score"] for box in boxes]),
    )


def test_boxes_are_accurate(demo):
    _, _, truth, rows = demo
    expected = [detections(row["boxes"]) for row in truth.values()]
    predicted = [detections(rows[name]["boxes"]) for name in truth]
    assert average_precision(expected, predicted, len(CLASSES)) >= 0.85


def test_the_report_and_the_job_file_are_written(demo):
    folder, summary, _, _ = demo
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert summary["page"] == str(folder / "report.html")
    assert f"{summary['num_images']:,} images, 3 networks" in page
    status, _, stderr = jobs.cvbatch("predict", "--config", summary["job_file"])
    assert status == 0
    assert "nothing to do" in stderr
    assert Path(summary["result"]) == folder / "result"


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    status, _, stderr = jobs.cvbatch("demo", "--out", tmp_path)
    assert status == 2
    assert "not empty" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
