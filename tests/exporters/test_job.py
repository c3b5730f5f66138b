"""Exports contain the boxes, classes and masks of the result, as other tools read them."""

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from cvbatch.core.errors import ConfigError
from cvbatch.datasets.splits import choose_split
from cvbatch.exporters.job import EXPORTS
from cvbatch.images.masks import decode_png, encode_png
from cvbatch.images.rle import compress_rle, encode_rle
from tests.support import jobs
from tests.support.datasets import boxes_of, imported, picture
from tests.support.results import (
    CLASSES,
    SIZE,
    boxes_at,
    corners,
    exported,
    random_predictions,
    tree,
    write_predictions,
)

SHARES = (0.5, 0.25, 0.25)
SHORT = {"train": "train", "validation": "val", "test": "test"}


def split_of(image_id):
    return choose_split(image_id, None, SHARES, 0)


@pytest.mark.parametrize("format_", EXPORTS)
def test_a_result_without_ok_images_gives_an_empty_export(tmp_path, format_):
    jobs.write_files(tmp_path / "images", jobs.BROKEN)
    write_predictions(tmp_path / "result", tmp_path / "images", {})
    report = exported(format_, tmp_path / "result", tmp_path / "out")
    assert report["images"] == {"written": 0, "failed": 2, "not_predicted": 0}
    assert report["failures"] == {"decode, truncated": 2}
    for name, data in tree(tmp_path / "out").items():
        if name.endswith(".json"):
            json.loads(data)
    assert not [name for name in tree(tmp_path / "out") if re.search(r"text|empty", name)]


def test_coco_import_restores_boxes_exactly(tmp_path, result, predictions):
    report = exported("coco", result, tmp_path / "out", split=SHARES)
    assert report["images"] == {"written": 12, "failed": 2, "not_predicted": 0}
    assert report["boxes"] == sum(len(p["boxes"]) for p in predictions.values()) > 0
    _, rows = imported("coco", tmp_path / "out", tmp_path / "back")
    assert {image_id.split("/", 2)[2] for image_id in rows} == set(predictions)
    for image_id, row in rows.items():
        name = image_id.split("/", 2)[2]
        prediction = predictions[name]
        assert row["split"] == split_of(name)
        assert [box[0] for box in boxes_of(row)] == [box["label"] for box in prediction["boxes"]]
        xyxy = np.array([box[1:] for box in boxes_of(row)], np.float32).reshape(-1, 4)
        assert np.array_equal(xyxy, corners(prediction))


def test_pycocotools_reads_boxes_scores_and_masks(tmp_path, result, predictions):
    exported("coco", result, tmp_path / "out")
    annotations = tmp_path / "out" / "annotations"
    truth = COCO(str(annotations / "instances_train.json"))
    results = truth.loadRes(str(annotations / "results_train.json"))
    stuff = COCO(str(annotations / "stuff_train.json"))
    assert {image["file_name"] for image in truth.imgs.values()} == set(predictions)
    scores = [ann["score"] for ann in results.anns.values()]
    expected = [np.float32(box["score"]) for p in predictions.values() for box in p["boxes"]]
    assert sorted(scores) == sorted(expected)
    for key, image in stuff.imgs.items():
        mask = decode_png(predictions[image["file_name"]]["mask"]["bytes"])
        drawn = np.zeros_like(mask)
        for annotation in stuff.imgToAnns[key]:
            region = stuff.annToMask(annotation).astype(bool)
            name = stuff.cats[annotation["category_id"]]["name"]
            drawn[region] = CLASSES.index(name)
            assert annotation["area"] == region.sum()
            box = coco_masks.toBbox(annotation["segmentation"]).tolist()
            assert annotation["bbox"] == box
        assert np.array_equal(drawn, np.where(mask == 255, 0, mask))


def test_coco_import_restores_masks(tmp_path, result, predictions):
    exported("coco", result, tmp_path / "out")
    document = tmp_path / "out" / "annotations" / "stuff_train.json"
    images = str(tmp_path / "out" / "images" / "train")
    _, rows = imported("coco", document, tmp_path / "back", images=images, has_masks=True)
    assert set(rows) == set(predictions)
    for image_id, row in rows.items():
        mask = decode_png(predictions[image_id]["mask"]["bytes"])
        imported_mask = decode_png(row["mask"]["bytes"])
        assert np.array_equal(imported_mask, np.where(mask == 255, 0, mask))


def test_voc_import_restores_boxes_to_the_pixel(tmp_path, result, predictions):
    exported("voc", result, tmp_path / "out", split=SHARES)
    names = {"mask_classes": CLASSES, "classes": CLASSES}
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines() == list(CLASSES)
    report, rows = imported("voc", tmp_path / "out", tmp_path / "back", **names)
    by_id = {f"JPEGImages/{name.replace('/', '_').replace(' ', '_')}": name for name in predictions}
    assert set(rows) == set(by_id)
    num_thin = 0
    for image_id, row in rows.items():
        prediction = predictions[by_id[image_id]]
        assert row["split"] == split_of(by_id[image_id])
        mask = decode_png(prediction["mask"]["bytes"])
        assert np.array_equal(decode_png(row["mask"]["bytes"]), mask)
        rounded = np.floor(corners(prediction).astype(np.float64) + 0.5)
        is_thin = (rounded[:, 2:] - rounded[:, :2] <= 1).any(axis=1)
        num_thin += is_thin.sum()
        boxes = [b for b, thin in zip(prediction["boxes"], is_thin, strict=True) if not thin]
        assert [box[0] for box in boxes_of(row)] == [box["label"] for box in boxes]
        xyxy = np.array([box[1:] for box in boxes_of(row)]).reshape(-1, 4)
        assert np.array_equal(xyxy, rounded[~is_thin])
        assert np.abs(xyxy - corners(prediction)[~is_thin]).max(initial=0) <= 0.5
    dropped = report.issues.get("box_no_area")
    assert (dropped.count if dropped else 0) == num_thin


def test_voc_counts_the_boxes_of_one_pixel(tmp_path):
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE)})
    boxes = boxes_at((3.1, 3.1, 3.4, 9), (59.8, 0, 60, 40), (-2, -3, 70, 50))
    prediction = {**random_predictions(1), "boxes": boxes}
    write_predictions(tmp_path / "result", tmp_path / "images", {"a.png": prediction})
    report = exported("voc", tmp_path / "result", tmp_path / "out")
    assert report["odd"] == {"boxes of one pixel, which an import takes for clicks": 2}
    root = ET.parse(tmp_path / "out" / "Annotations" / "a.xml").getroot()
    corner_values = [[int(side.text) for side in box] for box in root.iter("bndbox")]
    assert corner_values == [[4, 4, 4, 9], [60, 1, 60, 40], [1, 1, 60, 40]]
    with Image.open(tmp_path / "out" / "SegmentationClass" / "a.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
        assert mask.getpalette()[-3:] == [224, 224, 192]


def test_yolo_has_the_boxes_inside_the_image(tmp_path, result, predictions):
    exported("yolo", result, tmp_path / "out", split=SHARES)
    out = tmp_path / "out"
    dataset = yaml.safe_load((out / "data.yaml").read_text())
    assert dataset["names"] == dict(enumerate(CLASSES))
    paths = {str(path.relative_to(out / "labels")): path for path in out.glob("labels/**/*.txt")}
    assert len(paths) == 12
    for name, prediction in predictions.items():
        short = SHORT[split_of(name)]
        assert dataset[short] == f"images/{short}"
        flat = re.sub("[ /]", "_", name)
        assert (out / "images" / short / flat).is_file()
        lines = paths[f"{short}/{flat.removesuffix('.png')}.txt"].read_text().splitlines()
        values = np.array([line.split() for line in lines], np.float64).reshape(-1, 5)
        assert values[:, 0].tolist() == [box["class_id"] for box in prediction["boxes"]]
        centre, half = values[:, 1:3] * [60, 40], values[:, 3:] * [60, 40] / 2
        xyxy = np.concatenate([centre - half, centre + half], axis=1)
        assert np.allclose(xyxy, corners(prediction), rtol=0, atol=1e-6)


def test_yolo_has_no_coordinate_above_one(tmp_path):
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE)})
    boxes = boxes_at((-5, -5, 70, 50), (61, 3, 70, 9))
    prediction = {**random_predictions(1), "boxes": boxes}
    write_predictions(tmp_path / "result", tmp_path / "images", {"a.png": prediction})
    report = exported("yolo", tmp_path / "result", tmp_path / "out")
    assert (tmp_path / "out" / "labels" / "train" / "a.txt").read_text() == "1 0.5 0.5 1 1\n"
    assert report["odd"] == {"boxes without an area in their image, left out": 1}


def test_fiftyone_has_a_label_for_every_image(tmp_path, result, predictions):
    exported("fiftyone", result, tmp_path / "out")
    out = tmp_path / "out"
    stems = {
        str(path.relative_to(out / "data").with_suffix("")) for path in out.glob("data/**/*.*")
    }
    assert stems == {name.removesuffix(".png") for name in predictions}
    detections = json.loads((out / "detections.json").read_text())
    labels = json.loads((out / "classifications.json").read_text())
    assert detections["classes"] == labels["classes"] == list(CLASSES)
    assert set(detections["labels"]) == set(labels["labels"]) == stems
    for name, prediction in predictions.items():
        stem = name.removesuffix(".png")
        boxes = detections["labels"][stem]
        assert [box["label"] for box in boxes] == [box["label"] for box in prediction["boxes"]]
        sides = np.array([box["bounding_box"] for box in boxes]).reshape(-1, 4) * [60, 40, 60, 40]
        sides[:, 2:] += sides[:, :2]
        assert np.allclose(sides, corners(prediction), rtol=0, atol=1e-9)
        confidence = float(np.float32(0.7))
        assert labels["labels"][stem] == {"label": "cat", "confidence": confidence}
        mask = (out / "masks" / f"{stem}.png").read_bytes()
        assert np.array_equal(decode_png(mask), decode_png(prediction["mask"]["bytes"]))


def test_fiftyone_maps_names_to_uris_if_images_are_not_copied(tmp_path):
    names = ("a.b.png", "c.png")
    jobs.write_files(tmp_path / "images", dict.fromkeys(names, picture(*SIZE)))
    predictions = {name: random_predictions(2) for name in names}
    multi_label = {"multi_label": True}
    write_predictions(
        tmp_path / "result", tmp_path / "images", predictions, classification=multi_label
    )
    exported("fiftyone", tmp_path / "result", tmp_path / "out", images="none")
    uris = json.loads((tmp_path / "out" / "data.json").read_text())
    assert uris == {name: str(tmp_path / "images" / name) for name in names}
    labels = json.loads((tmp_path / "out" / "classifications.json").read_text())["labels"]
    assert {name: len(image_labels) for name, image_labels in labels.items()} == {"a.b": 2, "c": 2}


@given(
    st.integers(1, 9).flatmap(
        lambda h: st.lists(st.lists(st.booleans(), min_size=h, max_size=h), min_size=1, max_size=40)
    )
)
@settings(max_examples=100, deadline=None)
def test_rle_equals_that_of_pycocotools(columns):
    region = np.array(columns, bool).T
    expected = coco_masks.encode(np.asfortranarray(region.astype(np.uint8)))
    assert compress_rle(encode_rle(region)) == expected["counts"].decode()


def test_rle_of_long_runs_equals_that_of_pycocotools():
    rng = np.random.default_rng(0)
    region = np.zeros((700, 900), np.uint8)
    for start, length in rng.integers(0, 600_000, (40, 2)):
        region.T.reshape(-1)[start : start + length // 50] ^= 1
        region = np.asfortranarray(region)
    expected = coco_masks.encode(region)["counts"].decode()
    assert compress_rle(encode_rle(region.astype(bool))) == expected


def test_a_mask_of_the_input_size_is_resized_to_the_image(tmp_path):
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE)})
    small = np.zeros((20, 20), np.uint8)  # letterbox: 40 x 60 becomes 13 rows of 20, 3 rows above
    small[3:16, 10:] = 2
    predictions = {"a.png": {**random_predictions(1), "mask": {"bytes": encode_png(small)}}}
    segmentation = {"mask_size": "model"}
    write_predictions(
        tmp_path / "result", tmp_path / "images", predictions, segmentation=segmentation
    )
    exported("fiftyone", tmp_path / "result", tmp_path / "out")
    mask = decode_png((tmp_path / "out" / "masks" / "a.png").read_bytes())
    assert mask.shape == SIZE
    assert (mask[:, :30] == 0).all()
    assert (mask[:, 30:] == 2).all()


def test_min_score_leaves_out_boxes_below_it(tmp_path, result, predictions):
    report = exported("coco", result, tmp_path / "out", min_score=0.6)
    scores = [box["score"] for p in predictions.values() for box in p["boxes"]]
    assert report["boxes"] == sum(np.float32(score) >= 0.6 for score in scores)
    assert 0 < report["boxes"] < len(scores)
    assert report["images"]["written"] == 12


@pytest.mark.parametrize("format_", ["coco", "voc"])
def test_a_rotated_image_is_counted_and_imported_upright(tmp_path, format_):
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE, orientation=3)})
    prediction = {"boxes": boxes_at((3.2, 4.4, 20.6, 30)), "size": SIZE}
    write_predictions(
        tmp_path / "result", tmp_path / "images", {"a.png": prediction}, ("detection",)
    )
    report = exported(format_, tmp_path / "result", tmp_path / "out")
    assert list(report["odd"].values()) == [1]
    _, rows = imported(format_, tmp_path / "out", tmp_path / "back", orientation="upright")
    (row,) = rows.values()
    xyxy = np.array([box[1:] for box in boxes_of(row)])
    assert np.abs(xyxy - corners(prediction)).max() <= (0.5 if format_ == "voc" else 0)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("a", "b", "a"), "two classes called 'a'"),
        (("a", "new\nline", "b"), "one printable line"),
        (("a", " ", "b"), "one printable line"),
    ],
)
def test_class_names_that_voc_cannot_store_are_refused(tmp_path, classes, message):
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE)})
    write_predictions(
        tmp_path / "result", tmp_path / "images", {"a.png": random_predictions(4)}, classes=classes
    )
    with pytest.raises(ConfigError, match=message):
        exported("voc", tmp_path / "result", tmp_path / "out")
    for format_ in ("coco", "yolo", "fiftyone"):
        exported(format_, tmp_path / "result", tmp_path / format_)
    dataset = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert tuple(dataset["names"].values()) == classes
