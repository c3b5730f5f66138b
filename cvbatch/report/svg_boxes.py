"""Boxes as SVG over an image, and the colours of classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from cvbatch.core.types import VOID_CLASS
from cvbatch.images.drawing import PALETTE
from cvbatch.report.html import el

_LETTER = 0.045  # height of letters over an image, of the width of its frame


def draw_box(
    corners: Sequence[float], text: str, score: float | None, tint: str, image_hw: tuple[int, int]
) -> Element:
    """Return a box with its name on a tag that stays inside the image.

    Args:
        corners: x_min, y_min, x_max, y_max in pixels of the image.
        text: of the tag.
        score: for the filter by score; None: a box of the labels, whose tag is below it.
        tint: "#rrggbb".
        image_hw: height and width of the image.
    """
    left, top, right, bottom = corners
    height, width = image_hw
    letter = font_size(height, width)
    tag = min(_text_width(text) * 0.58 * letter + 0.5 * letter, width)
    x = max(0.0, min(left, width - tag))
    wanted = bottom if score is None else top - 1.3 * letter
    y = max(0.0, min(wanted, height - 1.3 * letter))
    at = {"x": f"{left:.6g}", "y": f"{top:.6g}"}
    size = {"width": f"{max(right - left, 0):.6g}", "height": f"{max(bottom - top, 0):.6g}"}
    tag_element = el(
        "g",
        {"class": "name"},
        el(
            "rect",
            {"x": f"{x:.6g}", "y": f"{y:.6g}", "width": f"{tag:.6g}",
             "height": f"{1.3 * letter:.6g}", "fill": tint},
        ),
        el(
            "text",
            {"x": f"{x + 0.25 * letter:.6g}", "y": f"{y + letter:.6g}", "fill": _ink_on(tint),
             "textLength": f"{tag - 0.5 * letter:.6g}", "lengthAdjust": "spacingAndGlyphs"},
            text,
        ),
    )  # fmt: skip
    return el(
        "g",
        {"class": "box", "data-score": None if score is None else f"{score:.6g}"},
        el("rect", {"class": "halo", **at, **size}),
        el("rect", {"class": "edge", **at, **size, "stroke": tint}),
        tag_element,
    )


def font_size(height: int, width: int) -> float:
    """Return the height of letters in pixels of an image, the same in all as they are shown."""
    return _LETTER * max(width, height * 4 / 3)  # a frame is 4 wide and 3 high


def _text_width(text: str) -> float:
    """Return the approximate width of a text, in letters."""
    return sum(1.7 if unicodedata.east_asian_width(one) in "WF" else 1.0 for one in text)


def _ink_on(tint: str) -> str:
    """Return black or white, the one with more contrast to a colour."""
    red, green, blue = (int(tint[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.3 * red + 0.59 * green + 0.11 * blue > 110 else "#ffffff"


def class_colour(value: int) -> str:
    """Return the colour of a class: that of its value in a mask."""
    red, green, blue = PALETTE[1 + (value - 1) % (VOID_CLASS - 1) if value > 0 else 0].tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def swatch(value: int) -> Element:
    """Return a small square in a class's colour."""
    return el(
        "svg", {"class": "swatch", "viewBox": "0 0 1 1", "aria-hidden": "true"},
        el("rect", {"width": "1", "height": "1", "fill": class_colour(value)}),
    )  # fmt: skip
