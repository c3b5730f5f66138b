"""Masks of boxes that are exported are the same in pycocotools, and in an import of polygons."""

import json

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from cvbatch.exporters.contours import trace_object
from cvbatch.importers.polygons import fill_polygon
from tests.support import jobs
from tests.support.datasets import imported, picture
from tests.support.results import CLASSES, SIZE, exported, random_row, write_predictions

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
NAMES = [f"i{n:02d}.png" for n in range(6)]


@pytest.fixture
def predicted():
    return {name: random_row(n) for n, name in enumerate(NAMES)}


@pytest.fixture
def folder(tmp_path, predicted):
    files = {name: picture(*SIZE, seed=n) for n, name in enumerate(NAMES)}
    jobs.write_files(tmp_path / "images", files)
    detection = {"detection": {"masks": "box"}}
    tasks = ("detection",)
    return write_predictions(
        tmp_path / "result", tmp_path / "images", predicted, tasks=tasks, **detection
    )


def test_pycocotools_loads_the_masks_of_an_export(tmp_path, folder, predicted):
    exported("coco", folder, tmp_path / "out", min_score=0.3)
    annotations = tmp_path / "out" / "annotations"
    truth = COCO(str(annotations / "instances_train.json"))
    results = truth.loadRes(str(annotations / "results_train.json"))
    assert {image["file_name"] for image in truth.imgs.values()} == set(NAMES)
    for image_id, image in truth.imgs.items():
        row = predicted[image["file_name"]]
        is_kept = [box["score"] >= 0.3 for box in row["boxes"]]
        masks = [rle for rle, kept in zip(row["box_masks"], is_kept, strict=True) if kept]
        for loaded in (truth.imgToAnns[image_id], results.imgToAnns[image_id]):
            assert len(loaded) == len(masks)
            for annotation, rle in zip(loaded, masks, strict=True):
                np.testing.assert_array_equal(truth.annToMask(annotation), coco_masks.decode(rle))
                assert annotation["iscrowd"] == 0
        areas = [annotation["area"] for annotation in truth.imgToAnns[image_id]]
        assert areas == [coco_masks.area(rle) for rle in masks]


def test_yolo_has_one_polygon_for_each_mask(tmp_path, folder, predicted):
    exported("yolo-segment", folder, tmp_path / "out")
    out = tmp_path / "out"
    assert yaml.safe_load((out / "data.yaml").read_text())["names"] == dict(enumerate(CLASSES))
    for name, row in predicted.items():
        text = (out / "labels" / "train" / name).with_suffix(".txt").read_text()
        lines = [line.split() for line in text.splitlines()]
        assert [int(line[0]) for line in lines] == [box["class_id"] for box in row["boxes"]]
        for line, rle in zip(lines, row["box_masks"], strict=True):
            region = np.zeros(SIZE, bool)
            fill_polygon(region, np.array(line[1:], np.float64).reshape(-1, 2) * SIZE[::-1])
            np.testing.assert_array_equal(region, coco_masks.decode(rle))
    _, back = imported("yolo", out, tmp_path / "back", has_masks=False, has_box_masks=True)
    assert {key.rsplit("/", 1)[1] for key in back} == set(predicted)
    for key, row in back.items():
        assert row["box_masks"] == predicted[key.rsplit("/", 1)[1]]["box_masks"]


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@settings(max_examples=100, deadline=None)
def test_one_polygon_encloses_the_parts_and_the_holes_of_a_region(region):
    if not region.any():
        return
    drawn = np.zeros_like(region)
    fill_polygon(drawn, trace_object(region))
    np.testing.assert_array_equal(drawn, region)


def test_boxes_without_a_mask_are_exported_as_before(tmp_path, predicted):
    jobs.write_files(tmp_path / "images", {NAMES[1]: picture(*SIZE)})
    row = {NAMES[1]: predicted[NAMES[1]]}
    source = write_predictions(tmp_path / "r", tmp_path / "images", row, tasks=("detection",))
    exported("coco", source, tmp_path / "out")
    for kind in ("instances", "results"):
        document = json.loads((tmp_path / f"out/annotations/{kind}_train.json").read_text())
        annotations = document["annotations"] if kind == "instances" else document
        assert [one.get("segmentation", []) for one in annotations] == [[]]
