"""Histogram of scores or values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cvbatch.plots.figure import BLUE, integer_ticks, new_figure, style, write_note

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@style()
def draw_histogram(counts: np.ndarray, edges: np.ndarray, x_label: str) -> Figure:
    """Return a histogram.

    Args:
        counts: (B,) of each bin.
        edges: (B + 1,) ascending limits of the bins.
        x_label: what is counted.
    """
    figure = new_figure(4.2, 2.6)
    axes = figure.subplots()
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=BLUE, edgecolor="white")
    axes.set(xlabel=x_label, ylabel="count", xlim=(edges[0], edges[-1]))
    integer_ticks(axes.yaxis, 4)
    axes.locator_params(axis="x", nbins=5)
    if not counts.sum():
        write_note(axes, "no value")
    return figure
