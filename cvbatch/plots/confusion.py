"""Confusion matrices with numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cvbatch.metrics.base import ratio
from cvbatch.plots import figure as figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLASSES = 25
_CELL, _LARGE_CELL = 0.42, 0.8  # inches
_NAME_WIDTH = 2.1  # inches of the longest names
_DARK = 0.55  # share above which the text of a cell is white


class ConfusionTable(NamedTuple):
    """Counts of R true and K predicted classes; in both, the C classes come first.

    Args:
        counts: (R, K) int64.
        true_names: R: the classes and, for detections, the background.
        predicted_names: K: the classes and what else is predicted: nothing, the background.
        num_classes: C.
    """

    counts: np.ndarray
    true_names: Sequence[str]
    predicted_names: Sequence[str]
    num_classes: int


@figures.style()
def draw_confusion(
    table: ConfusionTable, title: str, note: str = "", *, is_normalised: bool
) -> Figure:
    """Return a matrix with a row for each true class and a column for each predicted class.

    Of more than `MAX_CLASSES` classes, those with most errors have a row and a column; the others
    are summed in one.

    Args:
        table: of all classes.
        title: of the figure.
        note: below the title.
        is_normalised: each row is divided by its sum; else the cells contain counts.
    """
    small = most_confused(table, MAX_CLASSES)
    num_rows, num_columns = small.counts.shape
    cell = min(_LARGE_CELL, max(_CELL, 5.0 / max(num_columns, 1)))
    notes = [note, "Each row is divided by its sum." if is_normalised else ""]
    if small is not table:
        notes.append(
            f"The {MAX_CLASSES} of {table.num_classes:,} classes with most errors; all others are "
            "summed."
        )
    width, height = (_NAME_WIDTH + 1.2 + cell * count for count in (num_columns, num_rows))
    figure = figures.new_figure(max(6.5, width), height, title, *notes)
    axes = figure.subplots()
    if not small.counts.sum():
        figures.write_note(axes, "nothing to compare")
        axes.set_axis_off()
        return figure
    totals = small.counts.sum(axis=1, keepdims=True) + np.zeros_like(small.counts)
    share = np.nan_to_num(ratio(small.counts, totals))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(num_columns), map(figures.short_name, small.predicted_names), rotation=90)
    axes.set_yticks(range(num_rows), map(figures.short_name, small.true_names))
    axes.tick_params(length=0, labelsize=8)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, label="share of the true class", shrink=0.6, aspect=25)
    _write_cells(axes, small.counts, share, 9 if cell > _CELL else 7.5, is_normalised)
    return figure


def _write_cells(
    axes: Axes,
    counts: np.ndarray,  # (R, K) int64
    share: np.ndarray,  # (R, K)
    font_size: float,
    is_normalised: bool,
) -> None:
    """Write the share or the count into each cell; shares that would be 0.00 are left out."""
    for (i, j), count in np.ndenumerate(counts):
        text = figures.short_count(count) if count else ""
        if is_normalised:
            text = f"{share[i, j]:.2f}" if share[i, j] >= 0.005 else ""
        if text:
            color = "white" if share[i, j] > _DARK else figures.INK
            cell = axes.text(j, i, text, ha="center", va="center", fontsize=font_size, color=color)
            cell.set_in_layout(False)  # measuring all cells would take seconds


def most_confused(table: ConfusionTable, max_classes: int) -> ConfusionTable:
    """Return a table of the classes with most errors, all others summed; no sum of counts changes.

    The errors of a class are its true and its predicted cases that are not on the diagonal. A table
    of at most `max_classes` classes is returned as it is.
    """
    size = table.num_classes
    if size <= max_classes:
        return table
    classes = table.counts[:size, :size]
    errors = table.counts[:size].sum(axis=1) + table.counts[:, :size].sum(axis=0)
    errors = errors - 2 * np.diagonal(classes)
    chosen = np.sort(np.argsort(-errors, kind="stable")[:max_classes])
    group = np.full(size, max_classes)
    group[chosen] = np.arange(max_classes)
    rows, columns = (
        np.append(group, max_classes + 1 + np.arange(side - size)) for side in table.counts.shape
    )
    counts = np.zeros((rows[-1] + 1, columns[-1] + 1), np.int64)
    np.add.at(counts, (rows[:, None], columns), table.counts)
    chosen_names = [table.true_names[k] for k in chosen] + [f"{size - max_classes:,} others"]
    return ConfusionTable(
        counts,
        [*chosen_names, *table.true_names[size:]],
        [*chosen_names, *table.predicted_names[size:]],
        max_classes,
    )
