"""Evaluation of labels: accuracy, top-k, calibration and confusion, or multi-label precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from cvbatch.evaluate import metrics_table
from cvbatch.evaluate.metrics_table import MetricRow, Replicates
from cvbatch.evaluate.plots import Figures, confusion_figures
from cvbatch.evaluate.scoring import (
    MAX_CONFUSION_CLASSES,
    EvaluationSpec,
    ScoredRows,
    Scores,
    flatten_lists,
    struct_values,
)
from cvbatch.metrics.base import nan_mean
from cvbatch.metrics.classification import (
    NOT_PREDICTED,
    Calibration,
    Confusion,
    MultiLabelPrecision,
    TopK,
)
from cvbatch.metrics.counts import ClassCounts, count_by_class
from cvbatch.plots.calibration import draw_reliability
from cvbatch.plots.score_curves import ClassCurves, draw_score_curves

_TASK = "classification"
_UNRANKED = np.iinfo(np.int64).max  # a rank that no k reaches


def score_labels(rows: ScoredRows) -> None:
    """Add the metric sums of the labels of some images."""
    (_score_multi_label if rows.spec.is_multi_label else _score_single_label)(rows)


def _predicted(
    spec: EvaluationSpec, column: pa.ChunkedArray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # (M,) image index, ground-truth class, score
    """Return the labels in their order; if two stand for one ground-truth class, the first."""
    structs, image_index = flatten_lists(column)
    class_id = spec.class_of["labels"][struct_values(structs, "class_id")]
    key = image_index * len(spec.classes["labels"]) + class_id
    _, first = np.unique(key, return_index=True)
    kept = np.sort(first[class_id[first] >= 0])
    scores = struct_values(structs, "score")[kept].astype(np.float64)
    return image_index[kept], class_id[kept], scores


def _score_single_label(rows: ScoredRows) -> None:
    predicted, truth, num_classes = rows.column("labels")
    structs, true_image = flatten_lists(truth)
    is_used = np.bincount(true_image, minlength=len(truth)) == 1
    rows.sums.counts["classification_unlabelled"] += int((~is_used).sum())
    true_class = np.full(len(truth), -1)
    true_class[true_image] = struct_values(structs, "class_id")
    image_index, class_id, score = _predicted(rows.spec, predicted)
    top_class = np.full(len(truth), num_classes)  # num_classes: no prediction
    top_score = np.full(len(truth), np.nan)
    _, first = np.unique(image_index, return_index=True)
    top_class[image_index[first]], top_score[image_index[first]] = class_id[first], score[first]
    rank = _true_class_rank(true_class, image_index, class_id, score)

    used = np.flatnonzero(is_used)
    _add_single_label(rows, true_class[used], top_class[used], rank[used], rows.weights[used])
    is_hit = top_class[used] == true_class[used]
    is_predicted = top_class[used] < num_classes
    is_probability = is_predicted & (top_score[used] >= 0) & (top_score[used] <= 1)
    rows.sums.counts["scores_outside_0_1"] += int((is_predicted & ~is_probability).sum())
    rows.sums.metrics["calibration"] = Calibration.empty().add_predictions(
        is_hit[is_probability], top_score[used][is_probability]
    )
    if num_classes <= MAX_CONFUSION_CLASSES:
        scores = np.full((len(truth), num_classes), NOT_PREDICTED)
        scores[image_index, class_id] = np.where(np.isfinite(score), score, NOT_PREDICTED)
        is_positive = np.arange(num_classes) == true_class[used, None]
        precision = MultiLabelPrecision.empty(num_classes).add(is_positive, scores[used])
        rows.sums.metrics["precision"] = precision


def _true_class_rank(
    true_class: np.ndarray,  # (n,); −1: none
    image_index: np.ndarray,  # (M,)
    class_id: np.ndarray,  # (M,)
    score: np.ndarray,  # (M,)
) -> np.ndarray:  # (n,)
    """Return how many classes of each image score above its true class."""
    true_score = np.full(len(true_class), np.nan)
    is_true = class_id == true_class[image_index]
    true_score[image_index[is_true]] = score[is_true]
    num_above = np.bincount(image_index[score > true_score[image_index]], minlength=len(true_class))
    return np.where(np.isnan(true_score), _UNRANKED, num_above)


def _add_single_label(
    rows: ScoredRows,
    true_class: np.ndarray,  # (n,)
    top_class: np.ndarray,  # (n,); C: no prediction
    rank: np.ndarray,  # (n,) of the true class
    weights: np.ndarray,  # (n, 1 + R)
) -> None:
    ks, metrics, num_classes = rows.spec.ks, rows.sums.metrics, rows.column("labels")[2]
    metrics["top_k"] = TopK.empty(ks).add_ranks(rank)
    if num_classes <= MAX_CONFUSION_CLASSES:
        metrics["confusion"] = Confusion.empty(num_classes).add(true_class, top_class)
    is_hit, is_predicted = top_class == true_class, top_class < num_classes
    index = np.arange(len(true_class))
    metrics["labels_tally"] = rows.empty_counts(num_classes).add(
        hits=count_by_class(weights, index[is_hit], true_class[is_hit], num_classes),
        support=count_by_class(weights, index, true_class, num_classes),
        predicted=count_by_class(
            weights, index[is_predicted], top_class[is_predicted], num_classes
        ),
    )
    hit_image, hit_k = np.nonzero(rank[:, None] < np.array(ks))
    support = np.repeat(weights.sum(axis=0)[:, None], len(ks), axis=1)
    metrics["top_k_tally"] = rows.empty_counts(len(ks)).add(
        hits=count_by_class(weights, hit_image, hit_k, len(ks)), support=support
    )


def _score_multi_label(rows: ScoredRows) -> None:
    predicted, truth, num_classes = rows.column("labels")
    used = np.flatnonzero(truth.is_valid().to_numpy())
    rows.sums.counts["classification_unlabelled"] += len(truth) - len(used)
    structs, true_image = flatten_lists(truth)
    is_positive = np.zeros((len(truth), num_classes), bool)
    is_positive[true_image, struct_values(structs, "class_id")] = True
    image_index, class_id, score = _predicted(rows.spec, predicted)
    scores = np.full((len(truth), num_classes), NOT_PREDICTED)
    scores[image_index, class_id] = score
    is_positive, scores, weights = is_positive[used], scores[used], rows.weights[used]
    precision = MultiLabelPrecision.empty(num_classes).add(is_positive, scores)
    rows.sums.metrics["precision"] = precision
    is_predicted = scores >= rows.spec.score_threshold

    def count(mask: np.ndarray) -> np.ndarray:  # (n, C) bool → (1 + R, C)
        image_index, classes = np.nonzero(mask)
        return count_by_class(weights, image_index, classes, num_classes)

    rows.sums.metrics["labels_tally"] = rows.empty_counts(num_classes).add(
        count(is_positive & is_predicted), count(is_positive), count(is_predicted)
    )
    rows.sums.counts["classification_images"] += len(used)


def label_metric_rows(
    spec: EvaluationSpec, scores: Scores, replicates: Replicates
) -> Iterator[MetricRow]:
    """Yield the metrics of labels, those over all classes first."""
    yield from (_multi_label_rows if spec.is_multi_label else _single_label_rows)(spec, scores)


def _multi_label_rows(spec: EvaluationSpec, scores: Scores) -> Iterator[MetricRow]:
    counts = scores.metric("labels_tally", ClassCounts)
    num_images = scores.counts["classification_images"]
    values = scores.metric("precision", MultiLabelPrecision).average_precision
    yield metrics_table.metric_row(
        _TASK, None, "mean_average_precision", nan_mean(values), num_images
    )
    yield from metrics_table.overall_rows(
        _TASK, counts, (*metrics_table.MICRO, *metrics_table.AVERAGES), num_images
    )
    for k, name in enumerate(spec.classes["labels"]):
        support = int(counts.support[0, k])
        yield metrics_table.metric_row(_TASK, name, "average_precision", float(values[k]), support)
        yield from metrics_table.class_rows(_TASK, counts, name, k, metrics_table.RATIOS)


def _single_label_rows(spec: EvaluationSpec, scores: Scores) -> Iterator[MetricRow]:
    counts = scores.metric("labels_tally", ClassCounts)
    top_k = scores.metric("top_k", TopK)
    num_images = top_k.num_images
    yield from metrics_table.overall_rows(_TASK, counts, ("accuracy",), num_images)
    hits = scores.metric("top_k_tally", ClassCounts).per_class()["recall"]
    for column, k in enumerate(top_k.ks):
        yield metrics_table.bootstrapped_row(_TASK, None, f"top_{k}", hits[:, column], num_images)
    yield from metrics_table.overall_rows(_TASK, counts, metrics_table.AVERAGES, num_images)
    calibration = scores.metric("calibration", Calibration)
    if not scores.counts["scores_outside_0_1"]:  # scores that are logits have no calibration
        num_predictions = int(calibration.counts.sum())
        for metric, error in calibration.as_dict().items():
            yield metrics_table.metric_row(_TASK, None, metric, error, num_predictions)
    for k, name in enumerate(spec.classes["labels"]):
        yield from metrics_table.class_rows(_TASK, counts, name, k, metrics_table.RATIOS)


def label_details(spec: EvaluationSpec, scores: Scores) -> dict[str, Any]:
    """Return the confusion matrix and the bins of the calibration, if computed."""
    details = metrics_table.confusion_details(
        scores.metrics.get("confusion"), spec.classes["labels"]
    )
    calibration = scores.metrics.get("calibration")
    if isinstance(calibration, Calibration):
        bins = calibration.per_bin().items()
        details["calibration"] = {key: _with_nulls(values) for key, values in bins}
    return details


def _with_nulls(values: np.ndarray) -> list[float | None]:  # (B,)
    return [None if math.isnan(value) else value for value in values.tolist()]


def label_plots(spec: EvaluationSpec, scores: Scores) -> Figures:
    """Return curves by score, the reliability diagram and the confusion matrix, by kind of plot."""
    names, figures = spec.classes["labels"], Figures()
    precision = scores.metrics.get("precision")
    if isinstance(precision, MultiLabelPrecision):
        by_score = [precision.score_curve(k) for k in range(len(names))]
        curves = ClassCurves(names, precision.curve, by_score, precision.average_precision)
        note = "" if spec.is_multi_label else "Each class against all others, by the stored scores."
        figures["precision_recall"] = draw_score_curves(curves, "Classification by score", note)
    calibration = scores.metrics.get("calibration")
    if isinstance(calibration, Calibration) and not scores.counts["scores_outside_0_1"]:
        error = calibration.as_dict()["expected_calibration_error"]
        figures["reliability"] = draw_reliability(
            **calibration.per_bin(),
            error=math.nan if error is None else error,
            title="Reliability of the scores, classification",
        )
    confusion = scores.metrics.get("confusion")
    if isinstance(confusion, Confusion):
        figures |= confusion_figures(confusion, names, _TASK, has_background=False)
    return figures
