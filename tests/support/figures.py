"""What is wrong with the layout of a figure: clipped and overlapping texts, measured when drawn."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from cvbatch.plots.figure import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TOLERANCE = 1.0  # pixels: letters have a margin of that size


def drawn_texts(figure: Figure) -> list[Text]:
    """Return the visible texts with letters; ticks outside of the axes are not drawn."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            shown = set(axis._update_ticks()) if axes.axison and axis.get_visible() else set()
            hidden |= {
                label for tick in ticks if tick not in shown for label in (tick.label1, tick.label2)
            }
            if not axes.axison:
                hidden |= {axis.label, axis.offsetText}
    texts = figure.findobj(Text)
    return [t for t in texts if t.get_text().strip() and t.get_visible() and t not in hidden]


def layout_errors(figure: Figure) -> list[str]:
    """Draw a figure; return a sentence for each clipped text and each overlap of two texts."""
    with style():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        texts = drawn_texts(figure)
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    width, height = canvas.get_width_height()
    errors = [
        f"{text.get_text()!r} is clipped: {box}"
        for text, box in zip(texts, boxes, strict=True)
        if min(box.x0, box.y0, width - box.x1, height - box.y1) < -_TOLERANCE
    ]
    for (first, a), (second, b) in combinations(zip(texts, boxes, strict=True), 2):
        width_of_both = min(a.x1, b.x1) - max(a.x0, b.x0)
        height_of_both = min(a.y1, b.y1) - max(a.y0, b.y0)
        if min(width_of_both, height_of_both) > _TOLERANCE:
            errors.append(f"{first.get_text()!r} and {second.get_text()!r} overlap")
    return errors
