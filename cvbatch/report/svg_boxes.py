"""Draw boxes and their masks as SVG over an image; colours of classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from xml.etree.ElementTree import Element

import cv2
import numpy as np

from cvbatch.images.drawing import PALETTE, palette_value
from cvbatch.report.html import el
from cvbatch.report.overlays import thumbnail_hw

_MAX_PARTS = 40  # of one mask that are drawn, with their holes
_OUTLINE_ERROR = 0.7  # pixels of the thumbnail; more if an outline has too many corners
_MAX_CORNERS = 600
_MAX_TAGS = 24  # in a small image; all others only when it is enlarged
_FONT_SIZE = 0.045  # as a fraction of the width of the gallery's frame


class Tags:
    """Places the name tags of the boxes of an image, which stay inside and cover no other tag.

    Attributes:
        letter: font size in pixels of the image.
    """

    def __init__(self, image_hw: tuple[int, int]) -> None:
        self.image_hw = image_hw
        self.letter = _font_size(*image_hw)
        self._taken: list[tuple[float, float, float]] = []  # left, right, top

    def place(
        self, xyxy: Sequence[float], tag_width: float, *, is_below: bool
    ) -> tuple[float, float, str]:
        """Return left and top of a tag and its CSS classes.

        A tag is above the box, or below if that is preferred; where another tag is, inside of the
        box or on its other side. One without a free place is only in the enlarged view.
        """
        left, top, _, bottom = xyxy
        height, width = self.image_hw
        size = 1.3 * self.letter
        x = max(0.0, min(left, width - tag_width))
        above, below = [(top - size, "name"), (top, "name under")], [(bottom, "name under")]
        below.append((bottom - size, "name"))
        places = [*below, *above] if is_below else [*above, *below]
        for y, kind in places if len(self._taken) < _MAX_TAGS else ():
            is_free = all(
                x >= other_right or x + tag_width <= other_left or abs(y - other_y) >= size
                for other_left, other_right, other_y in self._taken
            )
            if is_free and 0 <= y <= height - size:
                self._taken.append((x, x + tag_width, y))
                return x, y, kind
        y, kind = places[0]
        return x, max(0.0, min(y, height - size)), f"{kind} crowded"


def draw_box(
    xyxy: Sequence[float], text: str, score: float | None, colour: str, tags: Tags
) -> Element:
    """Return a box with a name tag.

    Args:
        xyxy: x_min, y_min, x_max, y_max in pixels of the image.
        text: of the tag.
        score: for the filter by score; None: a box of the labels, whose tag is best below it.
        colour: "#rrggbb".
        tags: of the image.
    """
    left, top, right, bottom = xyxy
    letter = tags.letter
    tag_width = min(_text_width(text) * 0.58 * letter + 0.5 * letter, tags.image_hw[1])
    x, y, kind = tags.place(xyxy, tag_width, is_below=score is None)
    corner = {"x": f"{left:.6g}", "y": f"{top:.6g}"}
    size = {"width": f"{max(right - left, 0):.6g}", "height": f"{max(bottom - top, 0):.6g}"}
    tag = el(
        "g",
        {"class": kind},
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


def draw_mask(
    region: np.ndarray,  # (h, w) bool
    colour: str,
) -> Element:
    """Return a filled outline of a mask, as exact as a thumbnail shows it.

    Args:
        region: at the size of the image.
        colour: "#rrggbb".
    """
    height, width = thumbnail_hw(*region.shape)
    small = cv2.resize(region.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)
    inside = (small >= 128).astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    largest = sorted(contours, key=cv2.contourArea, reverse=True)[:_MAX_PARTS]
    error = _OUTLINE_ERROR
    parts = [cv2.approxPolyDP(contour, error, True) for contour in largest]
    while sum(map(len, parts)) > _MAX_CORNERS:
        error *= 2
        parts = [cv2.approxPolyDP(contour, error, True) for contour in largest]
    scale = np.array(region.shape[::-1]) / (width, height)
    lines = [
        " ".join(f"{x:.6g} {y:.6g}" for x, y in (part.reshape(-1, 2) + 0.5) * scale)
        for part in parts
    ]
    return el(
        "path",
        {
            "d": "".join(f"M{line}Z" for line in lines),
            "fill": colour,
            "fill-opacity": "0.45",
            "fill-rule": "evenodd",
        },
    )


def _font_size(height: int, width: int) -> float:
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
    index = palette_value(mask_value - 1) if mask_value > 0 else 0
    red, green, blue = PALETTE[index].tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def swatch(mask_value: int) -> Element:
    """Return a small square in the colour of a class."""
    return el(
        "svg", {"class": "swatch", "viewBox": "0 0 1 1", "aria-hidden": "true"},
        el("rect", {"width": "1", "height": "1", "fill": class_colour(mask_value)}),
    )  # fmt: skip
