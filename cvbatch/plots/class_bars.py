"""Bars of the metrics of each class, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cvbatch.plots import figure as figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLASSES = 40
_ROW = 0.24  # inches
_VALUE_AT = 1.04  # where the numbers begin; the metrics are in 0..1


@figures.style()
def draw_class_bars(
    names: Sequence[str],  # C
    counts: np.ndarray,  # (C,)
    metrics: Mapping[str, np.ndarray],  # each (C, 3): value, low, high
    title: str,
) -> Figure:
    """Return a bar for each class and metric, the classes with the lowest first metric on top.

    Of equal ones the most frequent class is first; classes without counts or with an undefined
    metric are last. Of more than `MAX_CLASSES` classes, only the first ones are drawn.

    Args:
        names: of the classes.
        counts: images, objects or pixels of each class.
        metrics: values in 0..1 with their intervals; NaN: undefined.
        title: of the figure.
    """
    first = next(iter(metrics.values()))[:, 0]
    order = np.lexsort((-counts, first, counts == 0))[:MAX_CLASSES]  # NaN is last
    notes = ["Lines: 95 % intervals. In parentheses: the count behind the values."]
    if len(names) > MAX_CLASSES:
        metric = next(iter(metrics))
        notes.append(f"The {MAX_CLASSES} of {len(names):,} classes with the lowest {metric}.")
    height = 1.9 + _ROW * max(len(order), 3)
    figure = figures.new_figure(2.9 + 2.3 * len(metrics), height, title, *notes)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, (metric, values) in zip(panels, metrics.items(), strict=True):
        _draw_panel(axes, values[order])
        axes.set_title(metric)
    panels[0].set_ylim(max(len(order), 1) - 0.4, -0.6)
    labels = [f"{figures.short_name(names[k])} ({figures.short_count(counts[k])})" for k in order]
    panels[0].set_yticks(range(len(order)), labels)
    if not len(order):
        figures.write_note(panels[0], "no class")
    return figure


def _draw_panel(axes: Axes, values: np.ndarray) -> None:  # (n, 3)
    value, low, high = values.T
    rows = np.arange(len(values))
    axes.barh(rows, np.nan_to_num(value), height=0.7, color=figures.BLUE)
    has_interval = np.isfinite(values).all(axis=1)
    axes.hlines(rows[has_interval], low[has_interval], high[has_interval], figures.INK, linewidth=1)
    for row, number in enumerate(value.tolist()):
        text, color = ("–", figures.GREY) if np.isnan(number) else (f"{number:.2f}", figures.INK)
        axes.text(_VALUE_AT, row, text, va="center", fontsize=8, color=color)
    axes.set(xlim=(0, 1.3), xticks=(0, 0.25, 0.5, 0.75, 1), xticklabels=("0", "", "0.5", "", "1"))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
