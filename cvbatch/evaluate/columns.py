"""Table of evaluation by column: scores, figures, details and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import SourceError
from cvbatch.core.tasks import CLASS_COLUMNS
from cvbatch.datasets.schema import with_extras
from cvbatch.evaluate import boxes, labels, masks
from cvbatch.evaluate.join import JoinedPart, read_joined_part
from cvbatch.evaluate.metrics_table import MetricRow, Replicates
from cvbatch.evaluate.scoring import EvaluationSpec, ScoredRows, Scores
from cvbatch.images.drawing import to_png
from cvbatch.metrics.counts import bootstrap_weights


class ColumnEvaluation(NamedTuple):
    """How a column with a class table is evaluated against labels.

    Args:
        score: function of ScoredRows that adds the scores of some images, among them the tally
            `<column>_tally`.
        figures: function of (order, scored, replicates) that yields metrics with their intervals.
        details: function of (order, scored) that returns what metrics.json has beside the figures.
        pictures: function of (order, scored) that returns (h, w, 3) uint8 RGB by kind of picture.
        leading: metrics that a report shows first.
    """

    score: Callable[[ScoredRows], None]
    figures: Callable[[EvaluationSpec, Scores, Replicates], Iterable[MetricRow]]
    details: Callable[[EvaluationSpec, Scores], dict[str, Any]]
    pictures: Callable[[EvaluationSpec, Scores], dict[str, np.ndarray]]
    leading: tuple[str, ...]


# In the order of the figures.
COLUMN_EVALUATIONS: dict[str, ColumnEvaluation] = {
    "labels": ColumnEvaluation(
        labels.score_labels,
        labels.label_metric_rows,
        labels.label_details,
        labels.label_plots,
        ("accuracy", "mean_average_precision"),
    ),
    "mask": ColumnEvaluation(
        masks.score_masks,
        masks.mask_metric_rows,
        masks.mask_details,
        masks.mask_plots,
        ("mean_iou",),
    ),
    "boxes": ColumnEvaluation(
        boxes.score_boxes,
        boxes.box_metric_rows,
        lambda order, scored: {},
        boxes.box_plots,
        ("ap",),
    ),
}


def score_part(order: EvaluationSpec, piece: JoinedPart) -> Scores:
    """Return the scores of a piece's images. A failed row has no predictions.

    Raises:
        SourceError: a file cannot be read any more, or has rows that cvbatch never writes.
    """
    columns = list(order.classes)
    predicted, truth = read_joined_part(
        piece, ["image_id", "status", *columns], with_extras(columns)
    )
    return score_rows(order, predicted, truth, piece.part_uri)


def score_rows(order: EvaluationSpec, predicted: pa.Table, truth: pa.Table, name: str) -> Scores:
    """Return the scores of some images.

    Args:
        order: what is scored, and how.
        predicted: n rows of a result.
        truth: n rows of labelled data, in the same order.
        name: where the rows are from, for messages.

    Raises:
        SourceError: they have values that cvbatch never writes.
    """
    names = predicted["image_id"].to_pylist()
    weights = bootstrap_weights(names, order.num_replicates, order.seed)
    is_failed = pc.not_equal(predicted["status"], "ok").to_numpy()
    scored = Scores(failed=[names[i] for i in np.flatnonzero(is_failed)])
    scored.counts.update(images=len(names), failed=int(is_failed.sum()))
    rows = ScoredRows(order, predicted, truth, weights, scored)
    try:
        for column, evaluation in COLUMN_EVALUATIONS.items():
            if column in order.classes:
                evaluation.score(rows)
    except (ValueError, IndexError, KeyError) as error:
        raise SourceError(f"{name} or its truth is damaged: {error}") from None
    return scored


def metric_rows(order: EvaluationSpec, scored: Scores, replicates: Replicates) -> list[MetricRow]:
    """Return every figure of the scores, task by task, those over all classes first.

    Args:
        order: what was scored.
        scored: scores of all images.
        replicates: all of those of `cvbatch.evaluate.boxes.resample`, for the intervals of average
            precision.
    """
    return [
        figure
        for column, evaluation in COLUMN_EVALUATIONS.items()
        if column in order.classes
        for figure in evaluation.figures(order, scored, replicates)
    ]


def metric_details(order: EvaluationSpec, scored: Scores) -> dict[str, dict[str, Any]]:
    """Return what metrics.json has beside the figures, by task."""
    return {
        CLASS_COLUMNS[column]: COLUMN_EVALUATIONS[column].details(order, scored)
        for column in order.classes
    }


def plot_files(order: EvaluationSpec, scored: Scores) -> dict[str, bytes]:
    """Return the pictures by file name, as PNG."""
    return {
        f"{kind}_{CLASS_COLUMNS[column]}.png": to_png(picture)
        for column in order.classes
        for kind, picture in COLUMN_EVALUATIONS[column].pictures(order, scored).items()
    }
