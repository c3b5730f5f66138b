"""Table of what a page shows of each column: statistics, captions, layers over the image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from cvbatch.report.html import collapsible, el, format_count, name_element, paragraph, shorten
from cvbatch.report.overlays import mask_layer
from cvbatch.report.svg_boxes import class_colour, draw_box, swatch
from cvbatch.results.row import Row

MAX_BOXES = 50  # drawn in one image
MAX_NAMES = 8  # of classes, under one image
NAME_LENGTH = 60  # characters of a class
ClassColours = Mapping[str, int]  # name of a class → the value of a mask that has its colour
Elements = list[dict[str, Any]] | None  # of a row; None: the result lacks the column


def class_colours(classes: Mapping[str, Sequence[str]]) -> ClassColours:
    """Return the colour of every class, the same for a name in boxes and masks.

    Args:
        classes: class names by column.
    """
    tints: dict[str, int] = {label: value for value, label in enumerate(classes.get("mask", ()))}
    for number, label in enumerate(classes.get("boxes", ())):
        tints.setdefault(label, number + 1)  # a mask's class 0 is the background
    return tints


class SvgLayer(NamedTuple):
    """A layer of SVG elements, and what they show in words."""

    elements: list[Element]
    description: str


class PngLayer(NamedTuple):
    """A layer that is a PNG of the size at which the image is shown."""

    png: bytes
    description: str


class ColumnPage(NamedTuple):
    """What a page shows of a column with a class table.

    Args:
        counted: column of the result whose elements are counted.
        elements: function of Row that returns the elements of that column.
        title: of the table of classes.
        has_one_class: only the first element of an image counts as its class.
        score_title: of the histogram of scores; "" where elements have no score.
        unit: of its elements, where they are counted too; "" where only images are.
        agreement: what the agreement with labels is a share of.
        words: function of Row that describes the predictions of an image; "" for nothing.
        caption: function of (row, tints) that returns what is under the image.
        layer: title of the layer over the image; "" without a layer.
        shapes: function of (row, tints, image_hw) that returns the layer.
        picture: function of (row, shown_hw) that returns the layer; None where there is none.
    """

    counted_column: str
    elements: Callable[[Row], Elements]
    title: str
    description: Callable[[Row], str]
    caption: Callable[[Row, ClassColours], list[Element]]
    has_one_class: bool = False
    score_title: str = ""
    unit: str = ""
    agreement: str = ""
    layer_title: str = ""
    svg_layer: Callable[[Row, ClassColours, tuple[int, int]], SvgLayer] | None = None
    png_layer: Callable[[Row, tuple[int, int]], PngLayer | None] | None = None


# ---------------------------------------------------------------- labels


def _label_words(row: Row) -> str:
    if not row.labels:
        return ""
    best = row.labels[0]
    return f"label {best['label']} {best['score']:.2f}"


def _label_caption(row: Row, tints: ClassColours) -> list[Element]:
    if not row.labels:
        return []
    chips = [
        el("li", {"class": "scored", "data-score": f"{one['score']:.6g}"},
           name_element(one["label"], NAME_LENGTH), f" {one['score']:.2f}")
        for one in row.labels[:MAX_NAMES]
    ]  # fmt: skip
    return [el("ul", {"class": "chips", "aria-label": "Labels"}, *chips)]


# ---------------------------------------------------------------- boxes


def _box_words(row: Row) -> str:
    if row.boxes is None:
        return ""
    names = Counter(box["label"] for box in row.boxes).most_common(MAX_NAMES)
    counts = ", ".join(f"{number} {label}" for label, number in names)
    return f"boxes: {counts}" if counts else "no boxes"


def _box_caption(row: Row, tints: ClassColours) -> list[Element]:
    if not row.boxes:
        return [] if row.boxes is None else [paragraph("no boxes", kind="quiet")]
    cells = [
        el("li", {"class": "scored", "data-score": f"{box['score']:.6g}"},
           swatch(tints.get(box["label"], 0)), name_element(box["label"], NAME_LENGTH),
           f" {box['score']:.2f}")
        for box in row.boxes[:MAX_BOXES]
    ]  # fmt: skip
    title = f"{format_count(len(row.boxes))} box{'' if len(row.boxes) == 1 else 'es'}"
    if len(row.boxes) > MAX_BOXES:
        title += f", the {MAX_BOXES} best drawn"
    return [collapsible(title, el("ul", {"class": "chips"}, *cells))]


def _box_shapes(row: Row, tints: ClassColours, image_hw: tuple[int, int]) -> SvgLayer:
    """Return the boxes of finite corners, the best one on top."""
    sides = ("x_min", "y_min", "x_max", "y_max")
    finite = [box for box in row.boxes or [] if all(math.isfinite(box[side]) for side in sides)]
    boxes = finite[:MAX_BOXES]
    elements = [
        draw_box(
            [box[side] for side in sides],
            f"{shorten(box['label'], NAME_LENGTH)} {box['score']:.2f}",
            box["score"],
            class_colour(tints.get(box["label"], 0)),
            image_hw,
        )
        for box in reversed(boxes)
    ]
    names = ", ".join(f"{box['label']} {box['score']:.2f}" for box in boxes[:MAX_NAMES])
    return SvgLayer(elements, f"{format_count(len(boxes))} boxes: {names}")


# ---------------------------------------------------------------- masks


def _areas(row: Row) -> str:
    whole = max((row.width or 1) * (row.height or 1), 1)
    areas = (row.mask_areas or [])[:MAX_NAMES]
    return ", ".join(f"{one['label']} {100 * one['area'] / whole:.0f} %" for one in areas)


def _mask_words(row: Row) -> str:
    return f"mask: {_areas(row)}" if row.mask_areas else ""


def _mask_picture(row: Row, shown_hw: tuple[int, int]) -> PngLayer | None:
    mask = row.mask
    return None if mask is None else PngLayer(mask_layer(mask, shown_hw), f"Mask: {_areas(row)}")


COLUMN_PAGES: dict[str, ColumnPage] = {
    "labels": ColumnPage(
        counted_column="labels",
        elements=lambda row: row.labels,
        title="Best labels",
        description=_label_words,
        caption=_label_caption,
        has_one_class=True,
        score_title="Score of the best label",
        agreement="labels",
    ),
    "boxes": ColumnPage(
        counted_column="boxes",
        elements=lambda row: row.boxes,
        title="Boxes",
        description=_box_words,
        caption=_box_caption,
        score_title="Scores of boxes",
        unit="boxes",
        agreement="boxes",
        layer_title="Boxes",
        svg_layer=_box_shapes,
    ),
    "mask": ColumnPage(
        counted_column="mask_areas",
        elements=lambda row: row.mask_areas,
        title="Masks",
        description=_mask_words,
        caption=lambda row, tints: [],
        agreement="pixels",
        layer_title="Mask",
        png_layer=_mask_picture,
    ),
}
