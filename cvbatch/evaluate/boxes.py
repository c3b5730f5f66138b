"""Evaluation of boxes: average precision of COCO and Pascal VOC; precision, recall and F1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from cvbatch.core.types import Boxes
from cvbatch.evaluate import metrics_table
from cvbatch.evaluate.metrics_table import MetricRow, Replicates
from cvbatch.evaluate.plots import ClassCaptions, draw_precision_recall
from cvbatch.evaluate.scoring import (
    EvaluationSpec,
    ScoredRows,
    Scores,
    flatten_lists,
    struct_values,
)
from cvbatch.metrics.average_precision import RECALLS, AveragePrecision
from cvbatch.metrics.base import nan_mean
from cvbatch.metrics.box_matching import AREA_RANGES, IOU_THRESHOLDS, GroundTruthBoxes
from cvbatch.metrics.counts import ClassCounts, bootstrap_weights, count_by_class

_TASK = "detection"
_SIDES = ("x_min", "y_min", "x_max", "y_max")
_AP = ("ap", "ap50", "ap75", "voc_ap")


def score_boxes(rows: ScoredRows) -> None:
    """Add the scores of the boxes of some images."""
    order, scored = rows.order, rows.scored
    is_labelled = rows.truth["boxes"].is_valid()
    scored.counts["detection_unlabelled"] += rows.truth["boxes"].null_count
    predicted, truth = rows.predicted.filter(is_labelled), rows.truth.filter(is_labelled)
    names = predicted["image_id"].to_pylist()
    structs, image = flatten_lists(predicted["boxes"])
    class_id = order.class_of["boxes"][struct_values(structs, "class_id")]
    kept = class_id >= 0
    boxes = Boxes(
        _corners(structs)[kept], struct_values(structs, "score")[kept], class_id[kept], image[kept]
    )
    structs, image = flatten_lists(truth["boxes"])
    is_crowd = np.zeros(len(image), bool)
    if "box_is_crowd" in truth.column_names:
        flags, of_image = flatten_lists(truth["box_is_crowd"])
        if np.array_equal(of_image, image):
            is_crowd = flags.to_numpy(zero_copy_only=False).astype(bool)
    true = GroundTruthBoxes(_corners(structs), struct_values(structs, "class_id"), image, is_crowd)
    part = AveragePrecision.empty(len(order.classes["boxes"])).add(names, boxes, true)
    scored.scores["average_precision"] = part
    scored.scores["boxes_tally"] = _tally(order, part, true, names)
    scored.counts["detection_images"] += len(names)


def _corners(structs: Any) -> np.ndarray:  # M structs → (M, 4) float32
    return np.stack([struct_values(structs, side) for side in _SIDES], axis=1).astype(np.float32)


def _tally(
    order: EvaluationSpec, part: AveragePrecision, truth: GroundTruthBoxes, names: Sequence[str]
) -> ClassCounts:
    """Return the counts at the thresholds of score and IoU; crowds are neither right nor wrong."""
    num_classes = part.num_classes
    weights = bootstrap_weights(part.image_key.tolist(), order.num_replicates, order.seed)
    bit = int(np.argmin(np.abs(IOU_THRESHOLDS - order.iou_threshold))) * len(AREA_RANGES)
    is_answer = (part.score >= order.score_threshold) & (part.is_ignored >> bit & 1 == 0)
    is_hit = is_answer & (part.is_true_positive >> bit & 1 == 1)
    counts = ~np.asarray(truth.is_crowd, bool)
    place = np.searchsorted(part.image_key, np.array(names, np.str_))[truth.image_index]
    return ClassCounts.empty(num_classes, order.num_replicates).add(
        hits=count_by_class(weights, part.image_index[is_hit], part.class_id[is_hit], num_classes),
        support=count_by_class(weights, place[counts], truth.class_id[counts], num_classes),
        predicted=count_by_class(
            weights, part.image_index[is_answer], part.class_id[is_answer], num_classes
        ),
    )


def box_metric_rows(
    order: EvaluationSpec, scored: Scores, replicates: Replicates
) -> Iterator[MetricRow]:
    """Yield the figures of boxes, those over all classes first."""
    score = scored.score("average_precision", AveragePrecision)
    tally = scored.score("boxes_tally", ClassCounts)
    drawn = [replicates[r] for r in sorted(replicates)]
    num_objects = int(tally.support[0].sum())
    for metric, value in score.as_dict().items():
        figure = metrics_table.metric_row(_TASK, None, metric, value, num_objects)
        values = [nan_mean(one[metric]) for one in drawn] if metric in _AP else []
        yield _with_interval(figure, values)
    yield from metrics_table.overall_rows(
        _TASK, tally, (*metrics_table.MICRO, *metrics_table.AVERAGES), num_objects
    )
    per_class = score.per_class()
    for k, name in enumerate(order.classes["boxes"]):
        support = int(tally.support[0, k])
        for metric in _AP:
            figure = metrics_table.metric_row(
                _TASK, name, metric, float(per_class[metric][k]), support
            )
            yield _with_interval(figure, [float(one[metric][k]) for one in drawn])
        yield from metrics_table.class_rows(_TASK, tally, name, k, metrics_table.RATIOS)


def _with_interval(figure: MetricRow, drawn: Sequence[float | None]) -> MetricRow:
    return metrics_table.with_interval(figure, np.array([math.nan, *drawn])) if drawn else figure


def box_plots(order: EvaluationSpec, scored: Scores) -> dict[str, np.ndarray]:
    """Return the curves of precision over recall at IoU 0.5, by kind of picture."""
    score = scored.score("average_precision", AveragePrecision)
    captions = ClassCaptions(
        "AP50", score.per_class()["ap50"], score.num_objects[:, 0], order.classes["boxes"]
    )
    return {
        "precision_recall": draw_precision_recall(lambda k: (RECALLS, score.curve(k)), captions)
    }


class BootstrapInput(NamedTuple):
    """Average precisions that are still to be computed for each replicate of the images."""

    score: AveragePrecision
    num_objects: np.ndarray  # (1 + R, C) in the images and in each replicate
    seed: int


def bootstrap_input(order: EvaluationSpec, scored: Scores) -> BootstrapInput | None:
    """Return the input of `resample`; None where there are no boxes or no replicates."""
    score = scored.scores.get("average_precision")
    if not isinstance(score, AveragePrecision) or not order.num_replicates:
        return None
    return BootstrapInput(score, scored.score("boxes_tally", ClassCounts).support, order.seed)


def bootstrap_average_precision(resampling: BootstrapInput, numbers: range) -> Replicates:
    """Return the average precisions of each class in some replicates, numbered from 1."""
    names = resampling.score.image_key.tolist()
    weights = bootstrap_weights(names, len(resampling.num_objects) - 1, resampling.seed)
    return {
        r: resampling.score.resampled(weights[:, r], resampling.num_objects[r]) for r in numbers
    }
