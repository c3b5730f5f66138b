"""Draw boxes as SVG over an image; colours of classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from cvbatch.core.types import VOID_CLASS
from cvbatch.images.drawing import PALETTE
from cvbatch.report.html import el

_FONT_SIZE = 0.045  # as a fraction of the width of the gallery's frame


def draw_box(
    xyxy: Sequence[float], text: str, score: float | None, colour: str, image_hw: tuple[int, int]
) -> Element:
    """Return a box with a name tag that stays inside the image.

    Args:
        xyxy: x_min, y_min, x_max, y_max in pixels of the image.
        text: of the tag.
        score: for the filter by score; None: a box of the labels, whose tag is below it.
        colour: "#rrggbb".
        image_hw: height and width of the image in pixels.
    """
    left, top, right, bottom = xyxy
    height, width = image_hw
    letter = font_size(height, width)
    tag_width = min(_text_width(text) * 0.58 * letter + 0.5 * letter, width)
    x = max(0.0, min(left, width - tag_width))
    wanted_y = bottom if score is None else top - 1.3 * letter
    y = max(0.0, min(wanted_y, height - 1.3 * letter))
    corner = {"x": f"{left:.6g}", "y": f"{top:.6g}"}
    size = {"width": f"{max(right - left, 0):.6g}", "height": f"{max(bottom - top, 0):.6g}"}
    tag = el(
        "g",
        {"class": "name"},
        el(
            "rect",
            {"x": f"{x:.6g}", "y": f"{y:.6g}", "width": f"{tag_width:.6g}",
             "height": f"{1.3 * letter:.6g}", "fill": colour},
        ),
        el(
            "text",
            {"x": f"{x + 0.25 * letter:.6g}", "y": f"{y + letter:.6g}",
             "fill": _text_colour(colour), "textLength": f"{tag_width - 0.5 * letter:.6g}",
             "lengthAdjust": "spacingAndGlyphs"},
            text,
        ),
    )  # fmt: skip
    return el(
        "g",
        {"class": "box", "data-score": None if score is None else f"{score:.6g}"},
        el("rect", {"class": "halo", **corner, **size}),
        el("rect", {"class": "edge", **corner, **size, "stroke": colour}),
        tag,
    )


def font_size(height: int, width: int) -> float:
    """Return the font size in pixels of an image; as displayed, it is equal for all images."""
    return _FONT_SIZE * max(width, height * 4 / 3)  # the frame's aspect ratio is 4:3


def _text_width(text: str) -> float:
    """Return the approximate width of a text in Latin letters; East Asian letters are wider."""
    return sum(1.7 if unicodedata.east_asian_width(c) in "WF" else 1.0 for c in text)


def _text_colour(background: str) -> str:
    """Return black or white, the one with more contrast to the background."""
    red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.3 * red + 0.59 * green + 0.11 * blue > 110 else "#ffffff"


def class_colour(mask_value: int) -> str:
    """Return the colour "#rrggbb" of a class, given its value in a mask."""
    index = 1 + (mask_value - 1) % (VOID_CLASS - 1) if mask_value > 0 else 0
    red, green, blue = PALETTE[index].tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def swatch(mask_value: int) -> Element:
    """Return a small square in the colour of a class."""
    return el(
        "svg", {"class": "swatch", "viewBox": "0 0 1 1", "aria-hidden": "true"},
        el("rect", {"width": "1", "height": "1", "fill": class_colour(mask_value)}),
    )  # fmt: skip
