"""Exports of labelled Parquet, read back: labels, splits, areas, crowds and masks are the same."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.exporters.job import EXPORTS
from cvbatch.images.masks import decode_png
from tests.support.datasets import boxes_of, coco, imported, picture, put
from tests.support.results import exported, tree

pytestmark = pytest.mark.process

NAMES = ("a.png", "sub/b c.png", "DSC1.png")


@pytest.fixture
def labels(tmp_path):
    """Labelled Parquet of two splits with areas, crowds and masks."""
    square = [[2, 2, 10, 2, 10, 8, 2, 8]]
    shared = {"image_id": 1, "segmentation": square}
    annotations = [
        {**shared, "id": 1, "category_id": 7, "bbox": [2, 2, 8, 6], "area": 47.5},
        {**shared, "id": 2, "category_id": 3, "bbox": [2.5, 3, 4, 4.25], "area": 3, "iscrowd": 1},
        {**shared, "id": 3, "category_id": 3, "bbox": [1, 1, 3, 3]},
    ]
    for split, names in (("train", NAMES[:2]), ("val", NAMES[2:])):
        images = [{"id": i, "file_name": name} for i, name in enumerate(names, 1)]
        put(tmp_path / "in", {f"annotations/instances_{split}.json": coco(images, annotations)})
        put(tmp_path / "in", {f"{split}/{name}": picture(seed=len(name)) for name in names})
    _, rows = imported("coco", tmp_path / "in", tmp_path / "labels", has_masks=True)
    return tmp_path / "labels", rows


def test_coco_keeps_boxes_areas_crowds_and_splits(tmp_path, labels):
    source, rows = labels
    report = exported("coco", source, tmp_path / "out")
    assert report["splits"] == {"train": 2, "val": 1}
    assert "annotations/results_train.json" not in tree(tmp_path / "out")
    _, back = imported("coco", tmp_path / "out", tmp_path / "back")
    assert len(back) == len(rows)
    for name, row in rows.items():
        split, file = name.split("/", 1)
        other = back[f"images/{split}/{name}"]
        assert file in NAMES
        assert boxes_of(other) == boxes_of(row)
        assert other["box_is_crowd"] == row["box_is_crowd"]
        areas = [47.5, 3.0, 9.0] if row["boxes"] else []  # not known: that of the box
        assert other["box_area"] == areas
        assert other["split"] == row["split"]
        assert other["image"]["bytes"] == row["image"]["bytes"]
    oracle = COCO(str(tmp_path / "out" / "annotations" / "instances_train.json"))
    assert sorted(a["area"] for a in oracle.anns.values()) == [3.0, 9.0, 47.5]
    assert not any("score" in a for a in oracle.anns.values())
    stuff = COCO(str(tmp_path / "out" / "annotations" / "stuff_train.json"))
    drawn = sum(coco_masks.decode(a["segmentation"]).sum() for a in stuff.anns.values())
    masks = [decode_png(r["mask"]["bytes"]) for r in rows.values() if r["split"] == "train"]
    assert drawn == sum(int((mask > 0).sum()) for mask in masks)


def test_voc_yolo_and_polygons_are_read_back(tmp_path, labels):
    source, rows = labels
    exported("voc", source, tmp_path / "voc")
    _, back = imported("voc", tmp_path / "voc", tmp_path / "voc-back", mask_classes=("g", "x", "y"))
    crowds = {name.rsplit("_", 1)[-1]: row["box_is_crowd"] for name, row in back.items()}
    assert crowds["a.png"] == [False, True, False]
    report = exported("yolo", source, tmp_path / "yolo")
    assert report["odd"] == {"crowds and difficult objects, which YOLO cannot mark, left out": 2}
    _, back = imported("yolo", tmp_path / "yolo", tmp_path / "yolo-back", has_masks=False)
    assert sorted(row["split"] for row in back.values()) == ["train", "train", "validation"]
    exported("yolo-segment", source, tmp_path / "seg")
    _, back = imported("yolo", tmp_path / "seg", tmp_path / "seg-back", has_masks=True)
    by_name = {name.rsplit("/", 1)[1]: row for name, row in back.items()}
    for name, row in rows.items():
        expected = decode_png(row["mask"]["bytes"])
        actual = by_name[name.replace("/", "_").replace(" ", "_")]
        np.testing.assert_array_equal(decode_png(actual["mask"]["bytes"]), expected)


@pytest.mark.parametrize("format_", EXPORTS)
def test_every_format_takes_labels_in_small_parts(tmp_path, labels, format_, monkeypatch):
    from cvbatch.exporters import sources

    exported(format_, labels[0], tmp_path / "whole")
    monkeypatch.setattr(sources, "_ROWS", 1)
    exported(format_, labels[0], tmp_path / "rows")
    assert tree(tmp_path / "rows") == tree(tmp_path / "whole")


def test_what_cannot_be_exported_is_refused(tmp_path, labels):
    with pytest.raises(ConfigError, match="is not a local file"):
        exported("coco", labels[0], tmp_path / "out", images="link")
    source = tmp_path / "in" / "annotations" / "instances_val.json"
    imported("coco", source, tmp_path / "alone", has_images=False)
    with pytest.raises(SourceError, match="labels without images"):
        exported("coco", tmp_path / "alone", tmp_path / "out")
    put(tmp_path / "half", {"_cvbatch/import.json": json.dumps({"is_complete": False})})
    with pytest.raises(SourceError, match="its import was not finished"):
        exported("coco", tmp_path / "half", tmp_path / "out")
    assert not (tmp_path / "out").exists()
