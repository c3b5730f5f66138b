"""Lines: learning curves of a training, insertion and deletion curves of heatmaps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cvbatch.plots.figure import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    integer_ticks,
    new_figure,
    set_title,
    short_name,
    style,
    write_note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 24
_COLUMNS = 3
_NOT_DRAWN = {"epoch", "step", "phase", "seconds", "waited_seconds"}
_VALIDATION = "validation_"  # prefix of a column that belongs to the same panel
_MAX_DOTS = 60  # epochs that have a dot each


@style()
def draw_learning_curves(rows: Sequence[Mapping[str, Any]], best_epoch: int = 0) -> Figure:
    """Return a panel for each numeric column over the epochs; NaN and missing values are gaps.

    A column and the one named `validation_<column>` share a panel. A grey line separates two
    phases; a dashed line and a dot mark the best epoch.

    Args:
        rows: one for each epoch, in order, with the keys "epoch" and "phase".
        best_epoch: value of "epoch" of the best row; 0: unknown.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in _NOT_DRAWN))
    keys = [key for key in keys if any(isinstance(row.get(key), int | float) for row in rows)]
    names = list(dict.fromkeys(key.removeprefix(_VALIDATION) for key in keys))
    shown = names[:MAX_PANELS]
    num_columns = min(max(len(shown), 1), _COLUMNS)
    num_rows = -(-len(shown) // _COLUMNS) or 1
    figure = new_figure(1 + 3.6 * max(num_columns, 2), 1 + 2.5 * num_rows)
    best = next((row for row in rows if row.get("epoch") == best_epoch), None)
    notes = [] if best is None else [f"Best epoch: {best_epoch}; the numbers are its values."]
    if len(names) > len(shown):
        notes.append(f"The first {MAX_PANELS} of {len(names):,} values.")
    set_title(
        figure, f"Learning curves, {len(rows):,} epoch{'' if len(rows) == 1 else 's'}", *notes
    )
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flat
    for axes, name in zip(panels, shown, strict=False):
        keys_of_panel = [key for key in (name, _VALIDATION + name) if key in keys]
        _draw_epochs(axes, rows, keys_of_panel, best)
        title = short_name(name.replace("_", " "), 36)
        value = _number(best.get(name)) if best and len(keys_of_panel) == 1 else math.nan
        axes.set_title(f"{title}: {value:.4g}" if math.isfinite(value) else title)
    for axes in list(figure.axes)[len(shown) :]:
        axes.set_axis_off()
    if not shown:
        write_note(figure.axes[0], "no complete epoch")
    return figure


def _draw_epochs(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    best: Mapping[str, Any] | None,
) -> None:
    """Draw one or two columns of the rows into a panel."""
    epochs = [row.get("epoch", i + 1) for i, row in enumerate(rows)]
    for i in range(1, len(rows)):
        if rows[i].get("phase") != rows[i - 1].get("phase"):
            axes.axvline((epochs[i - 1] + epochs[i]) / 2, color=GREY, linewidth=0.8)
    if best is not None:
        axes.axvline(best["epoch"], color=ORANGE, linewidth=0.8, linestyle="--")
    for key, color in zip(keys, (BLUE, INK) if len(keys) > 1 else (BLUE,), strict=True):
        values = [_number(row.get(key)) for row in rows]
        label = "validation" if key.startswith(_VALIDATION) else "training"
        best_value = math.nan if best is None else _number(best.get(key))
        if best is not None and math.isfinite(best_value):
            axes.plot(best["epoch"], best_value, "o", color=ORANGE, markersize=6, zorder=3)
            label += f": {best_value:.4g}"
        marker = "." if len(rows) <= _MAX_DOTS else ""
        axes.plot(epochs, values, color=color, marker=marker, markersize=4, label=label)
    if len(keys) > 1:
        axes.legend()
    axes.set_xlabel("epoch")
    if len(rows) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    integer_ticks(axes.xaxis, 6)
    axes.margins(y=0.12)
    if not any(math.isfinite(_number(row.get(key))) for row in rows for key in keys):
        write_note(axes, "no finite value")


def _number(value: Any) -> float:
    """Return a number that can be drawn; NaN for all others."""
    is_finite = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_finite else math.nan


@style()
def draw_faithfulness(curves: Mapping[str, np.ndarray], title: str) -> Figure:  # each (S + 1,)
    """Return score over share of replaced pixels: insertion and deletion, with random heatmaps.

    Args:
        curves: "share", "insertion", "deletion", "random_insertion" and "random_deletion".
        title: of the figure.
    """
    figure = new_figure(8.5, 4)
    set_title(figure, title)
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
