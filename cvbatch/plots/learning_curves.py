"""Learning curves of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cvbatch.plots import figure as figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]  # of one epoch: column → number or text
MAX_PANELS = 24
MAX_CLASSES = 8  # with a line, in a panel of values by class
_COLUMNS = 3
NOT_DRAWN = {"epoch", "step", "phase", "seconds", "waited_seconds"}  # columns without a panel
_VALIDATION = "val_"  # prefix of a column that belongs to the panel of another one
_OF_CLASS = "/"  # between the name of a value and the class
_MAX_DOTS = 60  # epochs that have a dot each


@figures.style()
def draw_learning_curves(rows: Sequence[Row], best_epoch: int = 0) -> Figure:
    """Return a panel for each numeric column over the epochs; NaN and missing values are gaps.

    The columns <name> and val_<name> share a panel, and so do the columns <name>/<class>, of which
    those with the lowest last value are drawn. A grey line separates two phases; a dashed line and
    a dot mark the best epoch.

    Args:
        rows: one for each epoch, in order, with the keys "epoch" and "phase".
        best_epoch: value of "epoch" of the best row; 0: unknown.
    """
    panels = _panels(rows)
    shown = list(panels.items())[:MAX_PANELS]
    num_columns = min(max(len(shown), 2), _COLUMNS)
    num_rows = max(-(-len(shown) // num_columns), 1)
    best = next((row for row in rows if row.get("epoch") == best_epoch), None)
    notes = [] if best is None else [f"Best epoch: {best_epoch}; the numbers are its values."]
    if len(panels) > len(shown):
        notes.append(f"The first {MAX_PANELS} of {len(panels):,} values.")
    plural = "" if len(rows) == 1 else "s"
    title = f"Learning curves, {len(rows):,} epoch{plural}"
    figure = figures.new_figure(1 + 3.8 * num_columns, 1 + 2.5 * num_rows, title, *notes)
    all_axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axes in all_axes[len(shown) :]:
        axes.set_axis_off()
    for axes, (title, keys) in zip(all_axes, shown, strict=False):
        axes.set_title(title)
        _draw_panel(axes, rows, keys, best)
    if not shown:
        figures.write_note(all_axes[0], "no complete epoch")
    return figure


def _panels(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the columns of each panel by its title; the loss first, the learning rate last."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in NOT_DRAWN)
    panels: dict[str, list[str]] = {}
    for key in sorted(keys, key=lambda key: (key == "learning_rate", key != "loss")):
        if any(isinstance(row.get(key), int | float) for row in rows):
            name, separator, _ = key.removeprefix(_VALIDATION).partition(_OF_CLASS)
            title = figures.short_name(name.replace("_", " "), 30)
            panels.setdefault(title + (" by class" if separator else ""), []).append(key)
    return panels


def _draw_panel(axes: Axes, rows: Sequence[Row], keys: Sequence[str], best: Row | None) -> None:
    epochs = [row.get("epoch", i + 1) for i, row in enumerate(rows)]
    for i in range(1, len(rows)):
        if rows[i].get("phase") != rows[i - 1].get("phase"):
            axes.axvline((epochs[i - 1] + epochs[i]) / 2, color=figures.GREY, linewidth=0.8)
    if best is not None:
        axes.axvline(best["epoch"], color=figures.ORANGE, linewidth=0.8, linestyle="--")
    values = {key: [_number(row.get(key)) for row in rows] for key in keys}
    has_value = any(math.isfinite(value) for line in values.values() for value in line)
    marker = "." if len(rows) <= _MAX_DOTS else ""
    if _OF_CLASS in keys[0]:
        worst = sorted(keys, key=lambda key: (_last(values[key]), key))[:MAX_CLASSES]
        names = [figures.short_name(key.partition(_OF_CLASS)[2], 16) for key in worst]
        lines = [axes.plot(epochs, values[key], marker=marker, markersize=4)[0] for key in worst]
        axes.legend(lines, names, loc="upper left", bbox_to_anchor=(1, 1), fontsize=7)
    else:
        for key, color in zip(keys, (figures.BLUE, figures.INK), strict=False):
            label = "validation" if key.startswith(_VALIDATION) else "training"
            value = math.nan if best is None else _number(best.get(key))
            if best is not None and math.isfinite(value):
                axes.plot(best["epoch"], value, "o", color=figures.ORANGE, markersize=6, zorder=3)
                label = f"{label} {value:.4g}"
                if len(keys) == 1:
                    axes.set_title(f"{axes.get_title(loc='left')}: {value:.4g}")
            axes.plot(epochs, values[key], color=color, marker=marker, markersize=4, label=label)
        if len(keys) > 1:
            axes.legend()
    axes.set_xlabel("epoch")
    figures.integer_ticks(axes.xaxis, 6)
    if len(rows) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    axes.margins(y=0.12)
    if not has_value:
        figures.write_note(axes, "no finite value")


def _last(values: Sequence[float]) -> float:
    """Return the last number of a column; infinity if there is none."""
    return next((value for value in reversed(values) if math.isfinite(value)), math.inf)


def _number(value: Any) -> float:
    """Return a number that can be drawn; NaN for all others."""
    is_finite = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_finite else math.nan
