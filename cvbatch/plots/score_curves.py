"""Precision-recall curves, and F1, precision and recall by minimum score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cvbatch.metrics.score_curves import ScoreCurve
from cvbatch.plots import figure as figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLASSES = 10  # with a curve of their own
_RECALLS = np.linspace(0, 1, 101)
_NUM_THRESHOLDS = 401
_MAX_POINTS = 1000  # of a precision-recall curve
_BAND = (10, 90)  # percentiles of the classes
_METRICS = {"f1": "F1", "precision": "precision", "recall": "recall"}  # name → label


class ClassCurves(NamedTuple):
    """Curves of C classes.

    Args:
        names: of the classes.
        recall_precision: class → recall (P,) ascending and precision (P,).
        by_score: of each class.
        average_precision: area under the precision-recall curve, 0..1, of each class; NaN: no
            objects.
        metric: name of that area.
    """

    names: Sequence[str]
    recall_precision: Callable[[int], tuple[np.ndarray, np.ndarray]]
    by_score: Sequence[ScoreCurve]
    average_precision: np.ndarray  # (C,)
    metric: str = "AP"


@figures.style()
def draw_score_curves(curves: ClassCurves, title: str, note: str = "") -> Figure:
    """Return the curves of the classes with objects, their mean, and the scores of the best F1.

    Of more than `MAX_CLASSES` classes, those with the lowest average precision have a curve of
    their own; a band contains the curves of 80 % of all classes.

    Args:
        curves: of all classes.
        title: of the figure.
        note: below the title.
    """
    occurring = [k for k, curve in enumerate(curves.by_score) if curve.support]
    support = np.array([curve.support for curve in curves.by_score])[occurring]
    order = np.lexsort((-support, curves.average_precision[occurring]))
    worst = [occurring[i] for i in order[:MAX_CLASSES]]
    shown = sorted(worst) if len(occurring) <= MAX_CLASSES else worst
    notes = [note]
    if len(occurring) > len(shown):
        notes.append(
            f"Lines: the {len(shown)} of {len(occurring):,} classes with the lowest "
            f"{curves.metric}, and the mean of all; band: 80 % of the classes."
        )
    figure = figures.new_figure(11.5, 8, title, *notes)
    pairs = [("recall", "precision"), *(("minimum score", label) for label in _METRICS.values())]
    for axes, (x_label, y_label) in zip(figure.subplots(2, 2).flat, pairs, strict=True):
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, 1.03))
        if not occurring:
            figures.write_note(axes, "no labelled objects")
    if occurring:
        _draw_recall_precision(figure.axes[0], curves, occurring, shown)
        mean = _draw_by_score(figure.axes[1:], curves, occurring, shown)
        labels = [mean, *(_label(curves, k) for k in shown)]
        figure.legend(figure.axes[0].lines, labels, loc="outside right upper")
    return figure


def _draw_recall_precision(
    axes: Axes, curves: ClassCurves, occurring: Sequence[int], shown: Sequence[int]
) -> None:
    axes.set_xlim(0, 1.01)
    every = np.array([_precision_at_recalls(*curves.recall_precision(k)) for k in occurring])
    _draw_summary(axes, _RECALLS, every, has_band=len(occurring) > len(shown))
    for i, k in enumerate(shown):
        recall, precision = curves.recall_precision(k)
        points = np.unique(np.linspace(0, len(recall) - 1, _MAX_POINTS).astype(int))
        points = points[: len(recall)]
        axes.plot(recall[points], precision[points], color=f"C{i}", linewidth=1.2)


def _precision_at_recalls(
    recall: np.ndarray,  # (P,)
    precision: np.ndarray,  # (P,)
) -> np.ndarray:  # (101,)
    """Return the largest precision at each of `_RECALLS` or more; 0 where none is reached."""
    largest = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    result: np.ndarray = largest[np.searchsorted(recall, _RECALLS)]
    return result


def _draw_by_score(
    panels: Sequence[Axes], curves: ClassCurves, occurring: Sequence[int], shown: Sequence[int]
) -> str:
    """Draw F1, precision and recall over the minimum score, with the scores of the best F1.

    Return the best F1 of the mean curve and its score as text.
    """
    scores = np.concatenate([np.empty(0), *(curves.by_score[k].score for k in occurring)])
    low, high = min(0.0, scores.min(initial=0)), max(1.0, scores.max(initial=1))
    thresholds = np.linspace(low, high, _NUM_THRESHOLDS)
    at = [curves.by_score[k].at(thresholds).ratios() for k in occurring]
    mean_f1 = np.mean([np.nan_to_num(ratios["f1"]) for ratios in at], axis=0)
    best = int(np.median(np.flatnonzero(mean_f1 == mean_f1.max())))
    for axes, metric in zip(panels, _METRICS, strict=True):
        axes.set_xlim(low, high)
        values = np.array([ratios[metric] for ratios in at])
        _draw_summary(axes, thresholds, values, has_band=len(occurring) > len(shown))
        axes.axvline(thresholds[best], color=figures.INK, linewidth=0.8, linestyle=":")
        for i, k in enumerate(shown):
            line = values[occurring.index(k)]
            axes.plot(thresholds, line, color=f"C{i}", linewidth=1.2)
            found = curves.by_score[k].best()
            if found is not None and metric == "f1":
                axes.plot(*found, marker="o", markersize=4, color=f"C{i}")
        if metric == "f1":
            axes.plot(thresholds[best], mean_f1[best], marker="o", markersize=5, color=figures.INK)
    return f"mean: F1 {mean_f1[best]:.2f} at {thresholds[best]:.2f}"


def _draw_summary(
    axes: Axes,
    x: np.ndarray,  # (P,)
    values: np.ndarray,  # (classes, P); NaN: undefined
    has_band: bool,
) -> None:
    """Draw the mean of the classes where it is defined and, if `has_band`, a band of most."""
    is_defined = np.isfinite(values).any(axis=0)
    x, values = x[is_defined], values[:, is_defined]
    if has_band:
        limits = np.nanpercentile(values, _BAND, axis=0)
        axes.fill_between(x, *limits, color="#e4e7ea", linewidth=0)
    axes.plot(x, np.nanmean(values, axis=0), color=figures.INK, linewidth=2.2)


def _label(curves: ClassCurves, k: int) -> str:
    found = curves.by_score[k].best()
    best = "no prediction" if found is None else f"F1 {found[1]:.2f} at {found[0]:.2f}"
    name, area = figures.short_name(curves.names[k]), curves.average_precision[k]
    return f"{name}\n{curves.metric} {area:.2f}, {best}"
