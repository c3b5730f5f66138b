"""Figures of an evaluation: confusion matrices, bars of the classes, curves of heatmaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cvbatch.evaluate.metrics_table import MetricRow
from cvbatch.metrics.classification import Confusion
from cvbatch.plots.class_bars import draw_class_bars
from cvbatch.plots.confusion import ConfusionTable, draw_confusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Figures = dict[str, "Figure"]  # by kind of plot
BACKGROUND = "(background)"  # a class of the confusion matrix of boxes, always the last
FILES = ("precision_recall_*", "reliability_*", "confusion_*", "classes_*", "insertion_deletion.*")


def confusion_figures(
    confusion: Confusion, names: Sequence[str], task: str, note: str = "", *, has_background: bool
) -> Figures:
    """Return the confusion matrix normalised by true classes, and with counts.

    Args:
        confusion: of the classes and, if `has_background`, of the background as the last one.
        names: of them.
        task: in the title.
        note: below the title.
        has_background: the last class is the background of boxes.
    """
    counts, predicted = confusion.counts, [*names, "(none)"]
    if not counts[:, -1].any():
        counts, predicted = counts[:, :-1], list(names)
    table = ConfusionTable(counts, names, predicted, len(names) - has_background)
    title = f"Confusion matrix, {task}"
    return {
        "confusion": draw_confusion(table, title, note, is_normalised=True),
        "confusion_counts": draw_confusion(table, title, note, is_normalised=False),
    }


def class_bars(rows: Sequence[MetricRow], task: str, metrics: Sequence[str]) -> Figures:
    """Return bars of the metrics of each class; {} if the rows have none of them.

    Args:
        rows: of all tasks.
        task: of the bars.
        metrics: in order; those without rows are left out.
    """
    by_class: dict[str, dict[str, MetricRow]] = {}
    for row in rows:
        if row.task == task and row.class_name is not None and row.metric in metrics:
            by_class.setdefault(row.class_name, {})[row.metric] = row
    shown = [name for name in metrics if any(name in values for values in by_class.values())]
    if not shown:
        return {}
    values = {}
    for name in shown:
        intervals = [_with_interval(one.get(name)) for one in by_class.values()]
        values[name.replace("_", " ")] = np.array(intervals)
    counts = np.array([max(row.count for row in one.values()) for one in by_class.values()])
    figure = draw_class_bars(list(by_class), counts, values, f"Metrics of each class, {task}")
    return {"classes": figure}


def _with_interval(row: MetricRow | None) -> tuple[float, ...]:
    """Return value, low and high; NaN where undefined."""
    values = (row.value, row.low, row.high) if row else (None, None, None)
    return tuple(math.nan if value is None else value for value in values)
