"""Evaluation of masks: pixel accuracy, IoU and confusion of classes, pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cvbatch.core.types import VOID_CLASS
from cvbatch.evaluate import metrics_table
from cvbatch.evaluate.metrics_table import MetricRow, Replicates
from cvbatch.evaluate.plots import draw_confusion
from cvbatch.evaluate.scoring import EvaluationSpec, ScoredRows, Scores
from cvbatch.images.masks import decode_png
from cvbatch.metrics.classification import Confusion
from cvbatch.metrics.counts import ClassCounts, count_by_class

_TASK = "segmentation"


def score_masks(rows: ScoredRows) -> None:
    """Add the scores of the masks of some images; a mask of another size counts as missing."""
    predicted, truth, num_classes = rows.of("mask")
    counts = rows.scored.counts
    lut = np.full(256, num_classes, np.uint8)  # no class
    class_of = rows.order.class_of["mask"]
    lut[: len(class_of)] = np.where(class_of < 0, num_classes, class_of)
    total = Confusion.empty(num_classes)
    tally = rows.tally(num_classes)
    image, classes = np.zeros(num_classes, np.int64), np.arange(num_classes)
    for i, (answer, true) in enumerate(zip(predicted, truth, strict=True)):
        true_png = true["bytes"].as_py() if true.is_valid else None
        if true_png is None:
            counts["segmentation_unlabelled"] += 1
            continue
        mask = decode_png(true_png)
        answered = np.full(mask.shape, num_classes, np.uint8)
        if answer.is_valid:
            stored = decode_png(answer["bytes"].as_py())
            if stored.shape == mask.shape:
                answered = lut[stored]
            else:
                counts["mask_size_differs"] += 1
        pixels = _pixel_counts(mask, answered, num_classes, rows.order.ignored)
        total = total.add_counts(pixels)
        own = rows.weights[i : i + 1]
        amounts = (np.diagonal(pixels), pixels.sum(axis=1), pixels[:, :-1].sum(axis=0))
        tally = tally.add(
            *(count_by_class(own, image, classes, num_classes, amount) for amount in amounts)
        )
        counts["segmentation_images"] += 1
    rows.scored.scores["pixels"] = total
    rows.scored.scores["mask_tally"] = tally


def _pixel_counts(
    truth: np.ndarray,  # (h, w) uint8
    predicted: np.ndarray,  # (h, w) uint8, num_classes: none
    num_classes: int,
    ignored: int | None,
) -> np.ndarray:  # (C, C + 1) int64
    pairs = truth.astype(np.uint16) << 8 | predicted
    counts = np.bincount(pairs.reshape(-1), minlength=1 << 16).reshape(256, 256)
    if counts[num_classes:VOID_CLASS].any():
        wrong = int(np.flatnonzero(counts[num_classes:VOID_CLASS].any(axis=1))[0]) + num_classes
        raise ValueError(f"a mask has class {wrong}, and its table ends at {num_classes - 1}")
    counts = counts[:num_classes, : num_classes + 1]
    if ignored is not None:
        counts[ignored] = 0
    return counts


def mask_metric_rows(
    order: EvaluationSpec, scored: Scores, replicates: Replicates
) -> Iterator[MetricRow]:
    """Yield the figures of masks, those over all classes first."""
    tally = scored.score("mask_tally", ClassCounts)
    num_pixels = int(tally.support[0].sum())
    overall = tally.overall()
    yield metrics_table.bootstrapped_row(
        _TASK, None, "pixel_accuracy", overall["accuracy"], num_pixels
    )
    yield from metrics_table.overall_rows(
        _TASK, tally, ("mean_iou", *metrics_table.AVERAGES), num_pixels
    )
    for k, name in enumerate(order.classes["mask"]):
        yield from metrics_table.class_rows(_TASK, tally, name, k, ("iou", *metrics_table.RATIOS))


def mask_details(order: EvaluationSpec, scored: Scores) -> dict[str, Any]:
    """Return the confusion counts, in pixels."""
    return metrics_table.confusion_details(scored.scores["pixels"], order.classes["mask"])


def mask_plots(order: EvaluationSpec, scored: Scores) -> dict[str, np.ndarray]:
    """Return the confusion matrix, by kind of picture."""
    return {"confusion": draw_confusion(scored.score("pixels", Confusion), order.classes["mask"])}
