"""Figures of matplotlib: style, text of class names, PNG and SVG.

The same input gives the same bytes: the style does not depend on the user's matplotlibrc, there is
no date in the files, and pyplot with its global figures is not used. The letters of an SVG are
outlines, so that a browser without the font shows what was measured when the figure was laid out.
"""

from __future__ import annotations

import io
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cvbatch.core.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, INK = "#0072b2", "#d55e00", "#8a939c", "#1d2329"
MAX_NAME = 24  # letters of a class name; East Asian letters count twice
_LETTER = 0.55  # mean width of a letter, as a fraction of the font size
_TITLE_SIZE = 11  # points
_STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "cvbatch",
    "text.parse_math": False,  # a class name may contain "$"
    "text.color": INK,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dfe2e6",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 110,
    "savefig.dpi": 110,
}
_METADATA: dict[str, dict[str, None]] = {  # of each file format: no version and no date
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
}
# Fonts for letters that matplotlib's own font lacks; those that are installed are used.
_MORE_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Microsoft YaHei", "Malgun Gothic", "Hiragino Sans", "Arial Unicode MS",
)  # fmt: skip


def require_matplotlib() -> Any:
    """Return matplotlib.

    Raises:
        ModelError: it is not installed.
    """
    return require("matplotlib", "plots")


@contextmanager
def style() -> Iterator[None]:
    """Apply the style while a figure is drawn or saved; also a decorator.

    Raises:
        ModelError: matplotlib is not installed.
    """
    matplotlib = require_matplotlib()
    installed = require("matplotlib.font_manager", "plots").get_font_names()
    fonts = ["DejaVu Sans", *(name for name in _MORE_FONTS if name in installed)]
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_STYLE, "font.family": fonts})
        yield


def new_figure(width: float, height: float, title: str, *notes: str) -> Figure:
    """Return a figure that makes room for all its texts.

    Args:
        width: in inches.
        height: in inches.
        title: of the figure.
        notes: below the title; both are wrapped to the width.
    """
    module = require("matplotlib.figure", "plots")
    figure: Figure = module.Figure((width, height), layout="constrained")
    columns = int(width * 72 / (_LETTER * _TITLE_SIZE)) - 2
    lines = [line for text in (title, *notes) if text for line in textwrap.wrap(text, columns)]
    figure.suptitle("\n".join(lines), fontsize=_TITLE_SIZE, x=0.02, ha="left")
    return figure


def integer_ticks(axis: Axis, max_intervals: int) -> None:
    """Place the ticks of an axis at whole numbers only."""
    ticker = require("matplotlib.ticker", "plots")
    axis.set_major_locator(ticker.MaxNLocator(max_intervals, integer=True))


def write_note(axes: Axes, text: str) -> None:
    """Write a text in the middle of axes that have no data."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)


def short_name(name: str, max_letters: int = MAX_NAME) -> str:
    """Return a name on one line; the middle of a long one becomes "…"."""
    text = "".join(c if c.isprintable() else "?" for c in name)
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text]
    if sum(widths) <= max_letters:
        return text
    half, start, end = (max_letters - 1) // 2, 0, len(text)
    while sum(widths[: start + 1]) <= half:
        start += 1
    while sum(widths[end - 1 :]) <= half:
        end -= 1
    return f"{text[:start]}…{text[end:]}"


def short_count(count: float) -> str:
    """Return a count in at most five letters: "9,999", "12.3k", "1.23M"."""
    if count < 10_000:
        return f"{count:,.0f}"
    for unit in ("k", "M", "G", "T"):
        count /= 1000
        if float(f"{count:.3g}") < 1000 or unit == "T":
            break
    return f"{count:.0f}{unit}" if count >= 100 else f"{count:.3g}{unit}"


@style()
def encode(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file; kind: "png" or "svg"."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=_METADATA[kind])
    return buffer.getvalue()


def to_files(name: str, figure: Figure) -> dict[str, bytes]:
    """Return a figure as PNG and as SVG, by file name."""
    return {f"{name}.{kind}": encode(figure, kind) for kind in _METADATA}
