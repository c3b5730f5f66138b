"""Evaluation of masks: pixel accuracy, IoU and confusion matrix, counted in pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from cvbatch.core.types import VOID_CLASS
from cvbatch.evaluate import metrics_table
from cvbatch.evaluate.metrics_table import MetricRow, Replicates
from cvbatch.evaluate.plots import Figures, confusion_figures
from cvbatch.evaluate.scoring import EvaluationSpec, ScoredRows, Scores
from cvbatch.images.masks import decode_png
from cvbatch.metrics.classification import Confusion
from cvbatch.metrics.counts import ClassCounts, count_by_class

_TASK = "segmentation"


def score_masks(rows: ScoredRows) -> None:
    """Add the metric sums of the masks of some images.

    A predicted mask that differs in size from the ground truth counts as missing.
    """
    predicted, truth, num_classes = rows.column("mask")
    image_counts = rows.sums.counts
    class_of = rows.spec.class_of["mask"]
    lut = np.full(256, num_classes, np.uint8)  # num_classes: no prediction
    lut[: len(class_of)] = np.where(class_of < 0, num_classes, class_of)
    confusion = Confusion.empty(num_classes)
    class_counts = rows.empty_counts(num_classes)
    image_index, classes = np.zeros(num_classes, np.int64), np.arange(num_classes)
    for i, (prediction, label) in enumerate(zip(predicted, truth, strict=True)):
        true_png = label["bytes"].as_py() if label.is_valid else None
        if true_png is None:
            image_counts["segmentation_unlabelled"] += 1
            continue
        true_mask = decode_png(true_png)
        mask = _predicted_mask(prediction, true_mask.shape, lut)
        if mask is None:
            image_counts["mask_size_differs"] += 1
            mask = np.full(true_mask.shape, num_classes, np.uint8)
        pixels = _confusion_counts(true_mask, mask, num_classes, rows.spec.ignored_class)
        confusion = confusion.add_counts(pixels)
        weights = rows.weights[i : i + 1]
        amounts = (np.diagonal(pixels), pixels.sum(axis=1), pixels[:, :-1].sum(axis=0))
        class_counts = class_counts.add(
            *(count_by_class(weights, image_index, classes, num_classes, a) for a in amounts)
        )
        image_counts["segmentation_images"] += 1
    rows.sums.metrics["pixels"] = confusion
    rows.sums.metrics["mask_tally"] = class_counts


def _predicted_mask(
    prediction: pa.StructScalar,
    shape: tuple[int, ...],  # (h, w) of the ground truth
    lut: np.ndarray,  # (256,) uint8 predicted → ground-truth class; C: no prediction
) -> np.ndarray | None:  # (h, w) uint8
    """Return a mask in ground-truth classes; None if its size differs."""
    if not prediction.is_valid:
        return np.full(shape, lut[-1], np.uint8)
    mask = decode_png(prediction["bytes"].as_py())
    return lut[mask] if mask.shape == shape else None


def _confusion_counts(
    truth: np.ndarray,  # (h, w) uint8
    predicted: np.ndarray,  # (h, w) uint8; C: no prediction
    num_classes: int,
    ignored_class: int | None,
) -> np.ndarray:  # (C, C + 1) int64
    pairs = truth.astype(np.uint16) << 8 | predicted
    counts = np.bincount(pairs.reshape(-1), minlength=1 << 16).reshape(256, 256)
    if counts[num_classes:VOID_CLASS].any():
        wrong = int(np.flatnonzero(counts[num_classes:VOID_CLASS].any(axis=1))[0]) + num_classes
        raise ValueError(f"a mask has class {wrong}, and its table ends at {num_classes - 1}")
    counts = counts[:num_classes, : num_classes + 1]
    if ignored_class is not None:
        counts[ignored_class] = 0
    return counts


def mask_metric_rows(
    spec: EvaluationSpec, scores: Scores, replicates: Replicates
) -> Iterator[MetricRow]:
    """Yield the metrics of masks, those over all classes first."""
    counts = scores.metric("mask_tally", ClassCounts)
    num_pixels = int(counts.support[0].sum())
    accuracy = counts.overall()["accuracy"]
    yield metrics_table.bootstrapped_row(_TASK, None, "pixel_accuracy", accuracy, num_pixels)
    yield from metrics_table.overall_rows(
        _TASK, counts, ("mean_iou", *metrics_table.AVERAGES), num_pixels
    )
    for k, name in enumerate(spec.classes["mask"]):
        metrics = ("iou", *metrics_table.RATIOS)
        yield from metrics_table.class_rows(_TASK, counts, name, k, metrics)


def mask_details(spec: EvaluationSpec, scores: Scores) -> dict[str, Any]:
    """Return the confusion matrix, in pixels."""
    return metrics_table.confusion_details(scores.metrics["pixels"], spec.classes["mask"])


def mask_plots(spec: EvaluationSpec, scores: Scores) -> Figures:
    """Return the confusion matrix, in pixels, by kind of plot."""
    confusion = scores.metric("pixels", Confusion)
    names, note = spec.classes["mask"], "Counts are pixels."
    return confusion_figures(confusion, names, _TASK, note, has_background=False)
