"""Insertion and deletion curves of heatmaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cvbatch.plots.figure import BLUE, ORANGE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@style()
def draw_faithfulness(curves: Mapping[str, np.ndarray], title: str) -> Figure:  # each (S + 1,)
    """Return score over share of replaced pixels: insertion and deletion, with random heatmaps.

    Args:
        curves: "share", "insertion", "deletion", "random_insertion" and "random_deletion".
        title: of the figure.
    """
    figure = new_figure(8.5, 4, title)
    for axes, name in zip(figure.subplots(1, 2), ("insertion", "deletion"), strict=True):
        for key, color, label in (
            (f"random_{name}", ORANGE, "random heatmaps"),
            (name, BLUE, "heatmaps"),
        ):
            area = np.trapezoid(curves[key], curves["share"])
            axes.plot(curves["share"], curves[key], color=color, label=f"{label}: area {area:.3f}")
        axes.set(xlabel=f"share of pixels, {name}", ylabel="score", xlim=(0, 1), title=name)
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        axes.legend(loc="best")
    return figure
