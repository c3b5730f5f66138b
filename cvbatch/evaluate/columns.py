"""Table of evaluations by column: scores, metrics, details and plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import SourceError
from cvbatch.core.tasks import CLASS_COLUMNS
from cvbatch.datasets.schema import expand_label_columns
from cvbatch.evaluate import boxes, labels, masks
from cvbatch.evaluate.join import JoinedPart, read_joined_part
from cvbatch.evaluate.metrics_table import MetricRow, Replicates
from cvbatch.evaluate.plots import Figures, class_bars
from cvbatch.evaluate.scoring import EvaluationSpec, ScoredRows, Scores
from cvbatch.metrics.counts import bootstrap_weights
from cvbatch.plots.figure import to_files


class ColumnEvaluation(NamedTuple):
    """How a column with a class table is evaluated against labels.

    Args:
        score: function of ScoredRows that adds the metric sums of some images; one of them is the
            ClassCounts named `<column>_tally`.
        metric_rows: function of (spec, scores, replicates) that yields metrics with intervals.
        details: function of (spec, scores) that returns what metrics.json has beside the metrics.
        plots: function of (spec, scores) that returns figures by kind of plot.
        class_metrics: metrics that are drawn as a bar of each class, if they exist.
        leading: metrics that a report shows first.
    """

    score: Callable[[ScoredRows], None]
    metric_rows: Callable[[EvaluationSpec, Scores, Replicates], Iterable[MetricRow]]
    details: Callable[[EvaluationSpec, Scores], dict[str, Any]]
    plots: Callable[[EvaluationSpec, Scores], Figures]
    class_metrics: tuple[str, ...]
    leading: tuple[str, ...]


# In the order of the metrics.
COLUMN_EVALUATIONS: dict[str, ColumnEvaluation] = {
    "labels": ColumnEvaluation(
        labels.score_labels,
        labels.label_metric_rows,
        labels.label_details,
        labels.label_plots,
        ("average_precision", "f1", "precision", "recall"),
        ("accuracy", "mean_average_precision"),
    ),
    "mask": ColumnEvaluation(
        masks.score_masks,
        masks.mask_metric_rows,
        masks.mask_details,
        masks.mask_plots,
        ("iou", "f1", "precision", "recall"),
        ("mean_iou",),
    ),
    "boxes": ColumnEvaluation(
        boxes.score_boxes,
        boxes.box_metric_rows,
        boxes.box_details,
        boxes.box_plots,
        ("ap", "ap50", "f1", "precision", "recall"),
        ("ap", "segm_ap"),
    ),
}


def score_part(spec: EvaluationSpec, part: JoinedPart) -> Scores:
    """Return the scores of the images of a part. A failed row has no predictions.

    Raises:
        SourceError: a file cannot be read any more, or has values that cvbatch never writes.
    """
    columns = list(spec.classes)
    more = ["box_masks"] if "boxes" in columns else []  # where both sides have them
    predicted, truth = read_joined_part(
        part, ["image_id", "status", *columns, *more], expand_label_columns(columns)
    )
    return score_rows(spec, predicted, truth, part.part_uri)


def score_rows(spec: EvaluationSpec, predicted: pa.Table, truth: pa.Table, name: str) -> Scores:
    """Return the scores of some images.

    Args:
        spec: columns, classes and options.
        predicted: n rows of a result.
        truth: n rows of labelled data, in the same order.
        name: source of the rows, for messages.

    Raises:
        SourceError: the rows have values that cvbatch never writes.
    """
    image_ids = predicted["image_id"].to_pylist()
    weights = bootstrap_weights(image_ids, spec.num_replicates, spec.seed)
    is_failed = pc.not_equal(predicted["status"], "ok").to_numpy()
    scores = Scores(failed=[image_ids[i] for i in np.flatnonzero(is_failed)])
    scores.counts.update(images=len(image_ids), failed=int(is_failed.sum()))
    rows = ScoredRows(spec, predicted, truth, weights, scores)
    try:
        for column, evaluation in COLUMN_EVALUATIONS.items():
            if column in spec.classes:
                evaluation.score(rows)
    except (ValueError, IndexError, KeyError) as error:
        raise SourceError(f"{name} or its truth is damaged: {error}") from None
    return scores


def metric_rows(spec: EvaluationSpec, scores: Scores, replicates: Replicates) -> list[MetricRow]:
    """Return all metrics, task by task, those over all classes first.

    Args:
        spec: columns, classes and options.
        scores: of all images.
        replicates: all of `cvbatch.evaluate.boxes.bootstrap_average_precision`, for the intervals
            of average precision.
    """
    return [
        row
        for column, evaluation in COLUMN_EVALUATIONS.items()
        if column in spec.classes
        for row in evaluation.metric_rows(spec, scores, replicates)
    ]


def metric_details(spec: EvaluationSpec, scores: Scores) -> dict[str, dict[str, Any]]:
    """Return what metrics.json has beside the metrics, by task."""
    return {
        CLASS_COLUMNS[column]: COLUMN_EVALUATIONS[column].details(spec, scores)
        for column in spec.classes
    }


def plot_files(
    spec: EvaluationSpec, scores: Scores, metrics: Sequence[MetricRow]
) -> dict[str, bytes]:
    """Return the plots as PNG and SVG, by file name; metrics: all of `metric_rows`."""
    files: dict[str, bytes] = {}
    for column in spec.classes:
        evaluation, task = COLUMN_EVALUATIONS[column], CLASS_COLUMNS[column]
        figures = evaluation.plots(spec, scores)
        figures |= class_bars(metrics, task, evaluation.class_metrics)
        for kind, figure in figures.items():
            files |= to_files(f"{kind}_{task}", figure)
    return files
