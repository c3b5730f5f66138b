"""Evaluation of boxes: average precision of COCO and Pascal VOC; precision, recall and F1.

If both sides have masks of boxes, COCO's average precision of masks too; its metrics are segm_*.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.types import Boxes
from cvbatch.evaluate import metrics_table
from cvbatch.evaluate.box_masks import masked_objects
from cvbatch.evaluate.metrics_table import MetricRow, Replicates
from cvbatch.evaluate.plots import BACKGROUND, Figures, confusion_figures
from cvbatch.evaluate.scoring import (
    MAX_CONFUSION_CLASSES,
    EvaluationSpec,
    ScoredRows,
    Scores,
    aligned_list,
    flatten_lists,
    struct_values,
)
from cvbatch.metrics.average_precision import RECALLS, AveragePrecision
from cvbatch.metrics.base import nan_mean
from cvbatch.metrics.box_matching import (
    GroundTruthBoxes,
    MaskPair,
    coco_criterion,
    match_across_classes,
)
from cvbatch.metrics.classification import Confusion
from cvbatch.metrics.counts import ClassCounts, bootstrap_weights, count_by_class
from cvbatch.plots.score_curves import ClassCurves, draw_score_curves

_TASK = "detection"
_MASKS = "box_masks"
_CONFUSION = "box_confusion"  # name of a metric sum
_SIDES = ("x_min", "y_min", "x_max", "y_max")
_BOOTSTRAPPED = ("ap", "ap50", "ap75", "voc_ap")


class _Overlap(NamedTuple):
    """Objects are matched by boxes or by masks: names of the metrics and of their sums."""

    prefix: str  # of metrics
    precision: str
    tally: str
    undefined: tuple[str, ...] = ()  # metrics that it does not have


_BY_BOXES = _Overlap("", "average_precision", "boxes_tally")
_BY_MASKS = _Overlap("segm_", "mask_average_precision", "box_masks_tally", ("voc_ap",))


def score_boxes(rows: ScoredRows) -> None:
    """Add the metric sums of the boxes of some images."""
    spec, scores = rows.spec, rows.sums
    is_labelled = rows.truth["boxes"].is_valid()
    scores.counts["detection_unlabelled"] += rows.truth["boxes"].null_count
    predicted, truth = rows.predicted.filter(is_labelled), rows.truth.filter(is_labelled)
    image_ids = predicted["image_id"].to_pylist()
    boxes, is_used, image_index = predicted_boxes(spec, predicted)
    true_boxes = labelled_boxes(truth)
    true_index = true_boxes.image_index
    objects: dict[_Overlap, tuple[Boxes, GroundTruthBoxes, MaskPair | None]]
    objects = {_BY_BOXES: (boxes, true_boxes, None)}
    num_with_masks = 0
    if _MASKS in predicted.column_names and _MASKS in truth.column_names:
        masks = aligned_list(predicted, _MASKS, image_index).filter(pa.array(is_used))
        true_masks = aligned_list(truth, _MASKS, true_index)
        has_masks = np.ones(len(image_ids), bool)  # all true boxes of the image
        has_masks[true_index[~np.asarray(true_masks.is_valid())]] = False
        num_with_masks = int(has_masks.sum())
        objects[_BY_MASKS] = masked_objects(boxes, masks, true_boxes, true_masks, has_masks)
    for kind, matched in objects.items():
        precision = AveragePrecision.empty(len(spec.classes["boxes"])).add(image_ids, *matched)
        scores.metrics[kind.precision] = precision
        scores.metrics[kind.tally] = _class_counts(spec, precision, matched[1], image_ids)
    if len(spec.classes["boxes"]) <= MAX_CONFUSION_CLASSES:
        scores.metrics[_CONFUSION] = _confusion(spec, boxes, true_boxes)
    scores.counts["detection_images"] += len(image_ids)
    if _MASKS in predicted.column_names:
        scores.counts["detection_without_masks"] += len(image_ids) - num_with_masks


def predicted_boxes(
    spec: EvaluationSpec, predicted: pa.Table
) -> tuple[Boxes, np.ndarray, np.ndarray]:
    """Return the predicted boxes whose class is evaluated, with its class of the labels.

    Returns:
        The boxes; which of all M boxes they are, (M,) bool; the image of all, (M,) int64.
    """
    structs, image_index = flatten_lists(predicted["boxes"])
    class_id = spec.class_of["boxes"][struct_values(structs, "class_id")]
    used = class_id >= 0
    score = struct_values(structs, "score")
    boxes = Boxes(_corners(structs)[used], score[used], class_id[used], image_index[used])
    return boxes, used, image_index


def labelled_boxes(truth: pa.Table) -> GroundTruthBoxes:
    """Return the boxes of labelled images; without a list of them, no box is a crowd."""
    structs, image_index = flatten_lists(truth["boxes"])
    return GroundTruthBoxes(
        _corners(structs),
        struct_values(structs, "class_id"),
        image_index,
        _box_values(truth, "box_is_crowd", image_index, 0.0).astype(bool),
        _box_values(truth, "box_area", image_index, np.nan),
    )


def _corners(structs: Any) -> np.ndarray:  # M structs → (M, 4) float32
    return np.stack([struct_values(structs, s) for s in _SIDES], axis=1).astype(np.float32)


def _box_values(
    truth: pa.Table,
    column: str,
    image_index: np.ndarray,  # (M,) ascending, image of each box
    default: float,
) -> np.ndarray:  # (M,) float64
    """Return a list column that has one value per box; `default` for images without such a list."""
    numbers = aligned_list(truth, column, image_index).cast(pa.float64())
    values: np.ndarray = pc.fill_null(numbers, default).to_numpy(zero_copy_only=False)
    return values


def _class_counts(
    spec: EvaluationSpec,
    part: AveragePrecision,
    truth: GroundTruthBoxes,
    image_ids: Sequence[str],
) -> ClassCounts:
    """Return the counts at the thresholds of score and IoU; matches with crowds do not count."""
    num_classes = part.num_classes
    weights = bootstrap_weights(part.image_key.tolist(), spec.num_replicates, spec.seed)
    bit = coco_criterion(spec.iou_threshold)
    is_counted = (part.score >= spec.score_threshold) & (part.is_ignored >> bit & 1 == 0)
    is_hit = is_counted & (part.is_true_positive >> bit & 1 == 1)
    is_object = ~truth.crowds
    true_image = np.searchsorted(part.image_key, np.array(image_ids, np.str_))[truth.image_index]
    return ClassCounts.empty(num_classes, spec.num_replicates).add(
        hits=count_by_class(weights, part.image_index[is_hit], part.class_id[is_hit], num_classes),
        support=count_by_class(
            weights, true_image[is_object], truth.class_id[is_object], num_classes
        ),
        predicted=count_by_class(
            weights, part.image_index[is_counted], part.class_id[is_counted], num_classes
        ),
    )


def _confusion(spec: EvaluationSpec, boxes: Boxes, truth: GroundTruthBoxes) -> Confusion:
    """Return the confusion matrix at the thresholds of score and IoU; its last class is background.

    Background is the true class of a detection without object, and the predicted class of an object
    without detection.
    """
    background = len(spec.classes["boxes"])
    is_used = boxes.score.astype(np.float64) >= spec.score_threshold
    boxes = Boxes(*(column[is_used] for column in vars(boxes).values()))
    matched, is_ignored = match_across_classes(boxes, truth, spec.iou_threshold)
    has_object = matched >= 0
    predicted = np.full(len(truth.class_id), background)
    predicted[matched[has_object]] = boxes.class_id[has_object]
    is_counted = ~truth.crowds
    false_positives = boxes.class_id[~has_object & ~is_ignored]
    return (
        Confusion.empty(background + 1)
        .add(truth.class_id[is_counted], predicted[is_counted])
        .add(np.full_like(false_positives, background), false_positives)
    )


def box_metric_rows(
    spec: EvaluationSpec, scores: Scores, replicates: Replicates
) -> Iterator[MetricRow]:
    """Yield the metrics of boxes, those over all classes first."""
    counts = scores.metric(_BY_BOXES.tally, ClassCounts)
    num_objects = int(counts.support[0].sum())
    overlaps = [kind for kind in (_BY_BOXES, _BY_MASKS) if kind.precision in scores.metrics]
    for kind in overlaps:
        yield from _overall_precision(kind, scores, replicates)
        if kind is _BY_BOXES:
            yield from metrics_table.overall_rows(
                _TASK, counts, (*metrics_table.MICRO, *metrics_table.AVERAGES), num_objects
            )
    per_class = [
        (kind, scores.metric(kind.precision, AveragePrecision).per_class()) for kind in overlaps
    ]
    for k, name in enumerate(spec.classes["boxes"]):
        for kind, values in per_class:
            support = int(scores.metric(kind.tally, ClassCounts).support[0, k])
            for metric in (name for name in _BOOTSTRAPPED if name not in kind.undefined):
                stored = f"{kind.prefix}{metric}"
                value = float(values[metric][k])
                row = metrics_table.metric_row(_TASK, name, stored, value, support)
                drawn = [float(replicates[r][stored][k]) for r in sorted(replicates)]
                yield _with_interval(row, drawn)
        yield from metrics_table.class_rows(_TASK, counts, name, k, metrics_table.RATIOS)


def _overall_precision(
    kind: _Overlap, scores: Scores, replicates: Replicates
) -> Iterator[MetricRow]:
    num_objects = int(scores.metric(kind.tally, ClassCounts).support[0].sum())
    for metric, value in scores.metric(kind.precision, AveragePrecision).as_dict().items():
        if metric in kind.undefined:
            continue
        stored = f"{kind.prefix}{metric}"
        row = metrics_table.metric_row(_TASK, None, stored, value, num_objects)
        has_replicates = metric in _BOOTSTRAPPED
        values = [nan_mean(replicates[r][stored]) for r in sorted(replicates) if has_replicates]
        yield _with_interval(row, values)


def _with_interval(row: MetricRow, drawn: Sequence[float | None]) -> MetricRow:
    return metrics_table.with_interval(row, np.array([math.nan, *drawn])) if drawn else row


def box_details(spec: EvaluationSpec, scores: Scores) -> dict[str, Any]:
    """Return the confusion matrix with the background as last class."""
    names = [*spec.classes["boxes"], BACKGROUND]
    return metrics_table.confusion_details(scores.metrics.get(_CONFUSION), names)


def box_plots(spec: EvaluationSpec, scores: Scores) -> Figures:
    """Return curves by score and the confusion matrix, by kind of plot."""
    precision = scores.metric(_BY_BOXES.precision, AveragePrecision)
    names, values = spec.classes["boxes"], precision.per_class()["ap50"]
    by_score = [precision.score_curve(k, spec.iou_threshold) for k in range(len(names))]
    curves = ClassCurves(names, lambda k: (RECALLS, precision.curve(k)), by_score, values, "AP50")
    note = "Precision over recall at IoU 0.5 as in COCO"
    note += f"; all others at IoU {spec.iou_threshold:.2f}, all objects and predictions."
    figures = Figures(precision_recall=draw_score_curves(curves, "Detection by score", note))
    confusion = scores.metrics.get(_CONFUSION)
    if isinstance(confusion, Confusion):
        note = f"Score at least {spec.score_threshold:g}, IoU at least {spec.iou_threshold:.2f}."
        figures |= confusion_figures(
            confusion, [*names, BACKGROUND], _TASK, note, has_background=True
        )
    return figures


class BootstrapInput(NamedTuple):
    """Input of `bootstrap_average_precision`."""

    # prefix of metrics, metric, (1 + R, C) objects in the images and in each replicate
    parts: tuple[tuple[str, AveragePrecision, np.ndarray], ...]
    seed: int


def bootstrap_input(spec: EvaluationSpec, scores: Scores) -> BootstrapInput | None:
    """Return the input of `bootstrap_average_precision`; None without boxes or replicates."""
    parts = tuple(
        (
            kind.prefix,
            scores.metric(kind.precision, AveragePrecision),
            scores.metric(kind.tally, ClassCounts).support,
        )
        for kind in (_BY_BOXES, _BY_MASKS)
        if kind.precision in scores.metrics
    )
    return BootstrapInput(parts, spec.seed) if parts and spec.num_replicates else None


def bootstrap_average_precision(data: BootstrapInput, numbers: range) -> Replicates:
    """Return the average precisions of each class in some replicates, numbered from 1."""
    replicates: Replicates = {r: {} for r in numbers}
    for prefix, precision, num_objects in data.parts:
        image_ids = precision.image_key.tolist()
        weights = bootstrap_weights(image_ids, len(num_objects) - 1, data.seed)
        for r in numbers:
            values = precision.resampled(weights[:, r], num_objects[r])
            replicates[r] |= {f"{prefix}{metric}": value for metric, value in values.items()}
    return replicates
