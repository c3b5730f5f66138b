"""Metrics of a prediction on labelled images, compared with their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cvbatch.core.types import VOID_CLASS, Boxes
from cvbatch.datasets.reader import LabelSpec, scan_dataset
from cvbatch.images.masks import decode_png
from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.box_matching import GroundTruthBoxes
from cvbatch.metrics.classification import Confusion
from cvbatch.storage.store import Storage

Row = dict[str, Any]
Figures = dict[str, float | None]
_SIDES = ("x_min", "y_min", "x_max", "y_max")


def rows_with_truth(result: Path, labels: Path) -> Iterator[tuple[Row, Row]]:
    """Yield every row of a result with the labelled row of the same image."""
    truth = {
        (path.name, number): row
        for path in labels.glob("part-*.parquet")
        for number, row in enumerate(pq.read_table(path).to_pylist())
    }
    for path in sorted(result.glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            number = int(row["image_id"].rpartition("#")[2])
            yield row, truth[row["uri"].rpartition("/")[2], number]


def classification(result: Path, labels: Path, classes: tuple[str, ...]) -> Figures:
    """Return accuracy, the accuracy of the most frequent class alone, and recall per class."""
    confusion = Confusion.empty(len(classes))
    for row, truth in rows_with_truth(result, labels):
        pair = (truth["labels"][0]["class_id"], row["labels"][0]["class_id"])
        confusion = confusion.add(*(np.array([one]) for one in pair))
    recall = confusion.hits / np.maximum(confusion.support, 1)
    return {
        "accuracy": confusion.accuracy,
        "trivial_accuracy": float(confusion.support.max() / confusion.support.sum()),
        **{f"recall {name}": float(one) for name, one in zip(classes, recall, strict=True)},
    }


def segmentation(result: Path, labels: Path, classes: tuple[str, ...]) -> Figures:
    """Return mean IoU at the size of the images, and that of the most frequent class alone."""
    predicted, trivial = (Confusion.empty(len(classes), VOID_CLASS) for _ in range(2))
    pairs = [
        (decode_png(truth["mask"]["bytes"]), decode_png(row["mask"]["bytes"]))
        for row, truth in rows_with_truth(result, labels)
    ]
    commonest = np.bincount(np.concatenate([truth.ravel() for truth, _ in pairs])).argmax()
    for truth, mask in pairs:
        predicted = predicted.add(truth, mask)
        trivial = trivial.add(truth, np.full_like(truth, commonest))
    return {
        "mean_iou": predicted.mean_iou,
        "trivial_mean_iou": trivial.mean_iou,
        "pixel_accuracy": predicted.accuracy,
        "trivial_pixel_accuracy": trivial.accuracy,
    }


def detection(result: Path, labels: Path, classes: tuple[str, ...]) -> Figures:
    """Return AP50 per class and its mean; crowds and difficult objects are ignored."""
    whole = AveragePrecision.empty(len(classes))
    for row, truth in rows_with_truth(result, labels):
        whole = whole.add([row["image_id"]], _detections(row["boxes"]), _ground_truth(truth))
    by_class = whole.per_class()["ap50"].tolist()
    figures = whole.as_dict()
    return {
        "ap50": figures["ap50"],
        **{f"ap50 {name}": one for name, one in zip(classes, by_class, strict=True)},
        "ap": figures["ap"],
        "voc_ap": figures["voc_ap"],
    }


def _detections(boxes: list[Row]) -> Boxes:
    score = np.array([box["score"] for box in boxes])
    return Boxes(_corners(boxes), score, _class_ids(boxes), np.zeros(len(boxes), np.int64))


def _ground_truth(label: Row) -> GroundTruthBoxes:
    boxes = label["boxes"]
    is_crowd = np.array(label.get("box_is_crowd") or [False] * len(boxes), bool)
    image_index = np.zeros(len(boxes), np.int64)
    return GroundTruthBoxes(_corners(boxes), _class_ids(boxes), image_index, is_crowd)


def _corners(boxes: list[Row]) -> np.ndarray:  # (M, 4) float64
    return np.array([[box[side] for side in _SIDES] for box in boxes]).reshape(-1, 4)


def _class_ids(boxes: list[Row]) -> np.ndarray:  # (M,) int64
    return np.array([box["class_id"] for box in boxes], np.int64)


SCORES: dict[str, Callable[[Path, Path, tuple[str, ...]], Figures]] = {
    "classification": classification,
    "segmentation": segmentation,
    "detection": detection,
}
_COLUMNS = {"classification": "labels", "segmentation": "mask", "detection": "boxes"}


def score(task: str, result: Path, labels: Path) -> Figures:
    """Return the metrics of a result on labelled images, for the classes of the labels."""
    classes = scan_dataset(Storage(), [str(labels)], LabelSpec(_COLUMNS[task])).classes
    return SCORES[task](result, labels, classes)
