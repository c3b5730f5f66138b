"""Evaluation of labels: accuracy, top-k, calibration, confusion, or multi-label precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from cvbatch.evaluate import metrics_table
from cvbatch.evaluate.metrics_table import MetricRow, Replicates
from cvbatch.evaluate.plots import ClassCaptions, draw_confusion, draw_precision_recall
from cvbatch.evaluate.scoring import (
    EvaluationSpec,
    ScoredRows,
    Scores,
    flatten_lists,
    struct_values,
)
from cvbatch.metrics.base import nan_mean
from cvbatch.metrics.classification import Calibration, Confusion, MultiLabelPrecision, TopK
from cvbatch.metrics.counts import ClassCounts, count_by_class

MAX_CONFUSION_CLASSES = 1000  # beyond, the matrix is larger than all else
_TASK = "classification"
_NEVER = np.iinfo(np.int64).max  # a rank that no k reaches
_NOT_PREDICTED = -np.finfo(np.float64).max  # score of a class that the result does not list


def score_labels(rows: ScoredRows) -> None:
    """Add the scores of the labels of some images."""
    (_score_multi_label if rows.order.is_multi_label else _score_single_label)(rows)


def _predicted(
    order: EvaluationSpec, column: pa.ChunkedArray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # (M,) image index, true class, score
    """Return the labels in their order; of two predicted for one true class the better one."""
    structs, image = flatten_lists(column)
    class_id = order.class_of["labels"][struct_values(structs, "class_id")]
    key = image * len(order.classes["labels"]) + class_id
    _, first = np.unique(key, return_index=True)
    kept = np.sort(first[class_id[first] >= 0])
    return image[kept], class_id[kept], struct_values(structs, "score")[kept].astype(np.float64)


def _score_single_label(rows: ScoredRows) -> None:
    predicted, truth, num_classes = rows.of("labels")
    structs, of_image = flatten_lists(truth)
    is_used = np.bincount(of_image, minlength=len(truth)) == 1
    rows.scored.counts["classification_unlabelled"] += int((~is_used).sum())
    true_class = np.full(len(truth), -1)
    true_class[of_image] = struct_values(structs, "class_id")
    image, class_id, score = _predicted(rows.order, predicted)
    best = np.full(len(truth), num_classes)  # no class
    best_score, own_score = np.full(len(truth), np.nan), np.full(len(truth), np.nan)
    _, first = np.unique(image, return_index=True)
    best[image[first]], best_score[image[first]] = class_id[first], score[first]
    is_own = class_id == true_class[image]
    own_score[image[is_own]] = score[is_own]
    beaten_by = np.bincount(image[score > own_score[image]], minlength=len(truth))
    rank = np.where(np.isnan(own_score), _NEVER, beaten_by)

    used = np.flatnonzero(is_used)
    true, answer, ranks, own = true_class[used], best[used], rank[used], rows.weights[used]
    ks, scores = rows.order.ks, rows.scored.scores
    scores["top_k"] = TopK.empty(ks).add_ranks(ranks)
    if num_classes <= MAX_CONFUSION_CLASSES:
        scores["confusion"] = Confusion.empty(num_classes).add(true, answer)
    is_hit, has_answer = answer == true, answer < num_classes
    every = np.arange(len(used))
    scores["labels_tally"] = rows.tally(num_classes).add(
        hits=count_by_class(own, every[is_hit], true[is_hit], num_classes),
        support=count_by_class(own, every, true, num_classes),
        predicted=count_by_class(own, every[has_answer], answer[has_answer], num_classes),
    )
    at, place = np.nonzero(ranks[:, None] < np.array(ks))
    whole = np.repeat(own.sum(axis=0)[:, None], len(ks), axis=1)
    scores["top_k_tally"] = rows.tally(len(ks)).add(
        hits=count_by_class(own, at, place, len(ks)), support=whole
    )
    is_probability = has_answer & (best_score[used] >= 0) & (best_score[used] <= 1)
    rows.scored.counts["scores_outside_0_1"] += int((has_answer & ~is_probability).sum())
    scores["calibration"] = Calibration.empty().add_predictions(
        is_hit[is_probability], best_score[used][is_probability]
    )


def _score_multi_label(rows: ScoredRows) -> None:
    predicted, truth, num_classes = rows.of("labels")
    used = np.flatnonzero(truth.is_valid().to_numpy())
    rows.scored.counts["classification_unlabelled"] += len(truth) - len(used)
    structs, of_image = flatten_lists(truth)
    is_positive = np.zeros((len(truth), num_classes), bool)
    is_positive[of_image, struct_values(structs, "class_id")] = True
    image, class_id, score = _predicted(rows.order, predicted)
    scores = np.full((len(truth), num_classes), _NOT_PREDICTED)
    scores[image, class_id] = score
    is_positive, scores, own = is_positive[used], scores[used], rows.weights[used]
    rows.scored.scores["precision"] = MultiLabelPrecision.empty(num_classes).add(
        is_positive, scores
    )
    is_predicted = scores >= rows.order.score_threshold

    def events(where: np.ndarray) -> np.ndarray:  # (n, C) bool → (1 + R, C)
        image_index, classes = np.nonzero(where)
        return count_by_class(own, image_index, classes, num_classes)

    rows.scored.scores["labels_tally"] = rows.tally(num_classes).add(
        events(is_positive & is_predicted), events(is_positive), events(is_predicted)
    )
    rows.scored.counts["classification_images"] += len(used)


def label_metric_rows(
    order: EvaluationSpec, scored: Scores, replicates: Replicates
) -> Iterator[MetricRow]:
    """Yield the figures of labels, those over all classes first."""
    yield from (_multi_label if order.is_multi_label else _single_label)(order, scored)


def _multi_label(order: EvaluationSpec, scored: Scores) -> Iterator[MetricRow]:
    tally = scored.score("labels_tally", ClassCounts)
    count = scored.counts["classification_images"]
    values = scored.score("precision", MultiLabelPrecision).average_precision
    yield metrics_table.metric_row(_TASK, None, "mean_average_precision", nan_mean(values), count)
    yield from metrics_table.overall_rows(
        _TASK, tally, (*metrics_table.MICRO, *metrics_table.AVERAGES), count
    )
    for k, name in enumerate(order.classes["labels"]):
        support = int(tally.support[0, k])
        yield metrics_table.metric_row(_TASK, name, "average_precision", float(values[k]), support)
        yield from metrics_table.class_rows(_TASK, tally, name, k, metrics_table.RATIOS)


def _single_label(order: EvaluationSpec, scored: Scores) -> Iterator[MetricRow]:
    tally = scored.score("labels_tally", ClassCounts)
    top_k = scored.score("top_k", TopK)
    yield from metrics_table.overall_rows(_TASK, tally, ("accuracy",), top_k.num_images)
    hits = scored.score("top_k_tally", ClassCounts).per_class()["recall"]
    for place, k in enumerate(top_k.ks):
        yield metrics_table.bootstrapped_row(
            _TASK, None, f"top_{k}", hits[:, place], top_k.num_images
        )
    yield from metrics_table.overall_rows(_TASK, tally, metrics_table.AVERAGES, top_k.num_images)
    calibration = scored.score("calibration", Calibration)
    if not scored.counts["scores_outside_0_1"]:  # scores that are logits have no calibration
        for metric, error in calibration.as_dict().items():
            count = int(calibration.counts.sum())
            yield metrics_table.metric_row(_TASK, None, metric, error, count)
    for k, name in enumerate(order.classes["labels"]):
        yield from metrics_table.class_rows(_TASK, tally, name, k, metrics_table.RATIOS)


def label_details(order: EvaluationSpec, scored: Scores) -> dict[str, Any]:
    """Return the confusion counts and the bins of the calibration, those that were scored."""
    details = metrics_table.confusion_details(
        scored.scores.get("confusion"), order.classes["labels"]
    )
    calibration = scored.scores.get("calibration")
    if isinstance(calibration, Calibration):
        bins = calibration.per_bin().items()
        details["calibration"] = {key: _with_nulls(values) for key, values in bins}
    return details


def _with_nulls(values: np.ndarray) -> list[float | None]:  # (B,)
    return [None if math.isnan(value) else value for value in values.tolist()]


def label_plots(order: EvaluationSpec, scored: Scores) -> dict[str, np.ndarray]:
    """Return curves of precision over recall, or the confusion matrix, by kind of picture."""
    names, pictures = order.classes["labels"], {}
    precision = scored.scores.get("precision")
    if isinstance(precision, MultiLabelPrecision):
        support = np.bincount(precision.class_id, precision.num_positive, precision.num_classes)
        captions = ClassCaptions("AP", precision.average_precision, support.astype(int), names)
        pictures["precision_recall"] = draw_precision_recall(precision.curve, captions)
    confusion = scored.scores.get("confusion")
    if isinstance(confusion, Confusion):
        pictures["confusion"] = draw_confusion(confusion, names)
    return pictures
