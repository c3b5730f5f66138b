"""Reliability diagram: accuracy and number of predictions by score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cvbatch.plots import figure as figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@figures.style()
def draw_reliability(
    accuracy: np.ndarray,  # (B,)
    score: np.ndarray,  # (B,)
    counts: np.ndarray,  # (B,)
    error: float,
    title: str,
) -> Figure:
    """Return the accuracy of B bins of scores beside the perfect one, and their predictions.

    Args:
        accuracy: share of correct predictions; NaN: empty bin.
        score: mean score; NaN: empty bin.
        counts: predictions.
        error: expected calibration error; NaN: no predictions.
        title: of the figure.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, figure 1.
    """
    note = f"Expected calibration error {error:.3f}, in {len(counts)} bins."
    figure = figures.new_figure(6.5, 6, title, "" if np.isnan(error) else note)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0, 1, len(counts) + 1)
    bars = {"x": edges[:-1], "width": np.diff(edges), "align": "edge", "edgecolor": "white"}
    upper.bar(height=np.nan_to_num(accuracy), color=figures.BLUE, label="accuracy", **bars)
    upper.hlines(score, edges[:-1], edges[1:], figures.ORANGE, linewidth=2.5, label="mean score")
    line = {"color": figures.INK, "linewidth": 1, "linestyle": "--"}
    upper.plot((0, 1), (0, 1), **line, label="perfectly calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    upper.legend(loc="upper left", frameon=True, edgecolor="none")
    lower.bar(height=counts, color=figures.GREY, **bars)
    for left, count in zip(edges, counts.tolist(), strict=False):
        if count:
            middle = left + 0.5 / len(counts)
            lower.annotate(
                figures.short_count(count), (middle, count), (0, 1.5), textcoords="offset points",
                ha="center", fontsize=6,
            )  # fmt: skip
    lower.set(xlabel="score of the predicted class", ylabel="predictions")
    lower.set_ylim(0, 1.25 * max(counts.max(initial=0), 1))
    figures.integer_ticks(lower.yaxis, 3)
    if not counts.sum():
        figures.write_note(upper, "no predictions")
    return figure
