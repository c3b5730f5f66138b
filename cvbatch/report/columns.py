"""Table of what the report shows of each result column: statistics, captions, image layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from cvbatch.report.html import collapsible, el, format_count, name_element, paragraph, shorten
from cvbatch.report.overlays import mask_layer
from cvbatch.report.svg_boxes import class_colour, draw_box, draw_mask, swatch
from cvbatch.results.row import Row

MAX_BOXES = 50  # drawn in one image
MAX_NAMES = 8  # of classes, below one image
_SIDES = ("x_min", "y_min", "x_max", "y_max")
NAME_LENGTH = 60  # characters of a class name
ClassColours = Mapping[str, int]  # class name → the mask value that has its colour
Elements = list[dict[str, Any]] | None  # of a row; None: the result lacks the column


def class_colours(classes: Mapping[str, Sequence[str]]) -> ClassColours:
    """Return the colour of every class; boxes and masks of one class name have one colour.

    Args:
        classes: class names by column.
    """
    colours: dict[str, int] = {label: value for value, label in enumerate(classes.get("mask", ()))}
    for class_id, label in enumerate(classes.get("boxes", ())):
        colours.setdefault(label, class_id + 1)  # class 0 of a mask is the background
    return colours


class SvgLayer(NamedTuple):
    """A layer of SVG elements."""

    elements: list[Element]
    description: str  # text alternative


class PngLayer(NamedTuple):
    """A layer that is a PNG image of the displayed size."""

    png: bytes
    description: str  # text alternative


class ColumnPage(NamedTuple):
    """What the report shows of a column with a class table.

    Args:
        counted_column: column of the result whose elements are counted.
        elements: function of Row that returns the elements of that column.
        title: of the table of classes.
        has_one_class: only the first element of an image counts as its class.
        score_title: of the histogram of scores; "" if the elements have no score.
        unit: of the elements, if they are counted too; "" if only images are.
        agreement: what the agreement with labels is a share of.
        description: function of Row that describes the predictions of an image; "" for nothing.
        caption: function of (row, colours) that returns what is below the image.
        layer_title: title of the layer over the image; "" without a layer.
        svg_layer: function of (row, colours, image_hw) that returns the layer.
        png_layer: function of (row, shown_hw) that returns the layer; None if the row has none.
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


def _describe_labels(row: Row) -> str:
    if not row.labels:
        return ""
    best = row.labels[0]
    return f"label {best['label']} {best['score']:.2f}"


def _label_caption(row: Row, colours: ClassColours) -> list[Element]:
    if not row.labels:
        return []
    chips = [
        el("li", {"class": "scored", "data-score": f"{label['score']:.6g}"},
           name_element(label["label"], NAME_LENGTH), f" {label['score']:.2f}")
        for label in row.labels[:MAX_NAMES]
    ]  # fmt: skip
    return [el("ul", {"class": "chips", "aria-label": "Labels"}, *chips)]


# ---------------------------------------------------------------- boxes


def _describe_boxes(row: Row) -> str:
    if row.boxes is None:
        return ""
    names = Counter(box["label"] for box in row.boxes).most_common(MAX_NAMES)
    counts = ", ".join(f"{number} {label}" for label, number in names)
    return f"boxes: {counts}" if counts else "no boxes"


def _box_caption(row: Row, colours: ClassColours) -> list[Element]:
    if not row.boxes:
        return [] if row.boxes is None else [paragraph("no boxes", kind="quiet")]
    chips = [
        el("li", {"class": "scored", "data-score": f"{box['score']:.6g}"},
           swatch(colours.get(box["label"], 0)), name_element(box["label"], NAME_LENGTH),
           f" {box['score']:.2f}")
        for box in row.boxes[:MAX_BOXES]
    ]  # fmt: skip
    title = f"{format_count(len(row.boxes))} box{'' if len(row.boxes) == 1 else 'es'}"
    if len(row.boxes) > MAX_BOXES:
        title += f", {MAX_BOXES} with the highest scores drawn"
    return [collapsible(title, el("ul", {"class": "chips"}, *chips))]


def _box_layer(row: Row, colours: ClassColours, image_hw: tuple[int, int]) -> SvgLayer:
    """Return the boxes without NaN or infinity, the one with the highest score on top.

    The mask of a box is below it, in the same group, so that the filter by score hides both.
    """
    boxes: list[dict[str, Any]] = []
    elements = []
    for number, box in enumerate(row.boxes or []):
        corners = [box[side] for side in _SIDES]
        if not all(map(math.isfinite, corners)) or len(boxes) == MAX_BOXES:
            continue
        name = f"{shorten(box['label'], NAME_LENGTH)} {box['score']:.2f}"
        colour = class_colour(colours.get(box["label"], 0))
        element = draw_box(corners, name, box["score"], colour, image_hw)
        region = row.box_mask(number)
        if region is not None:
            element.insert(0, draw_mask(region, colour))
        boxes.append(box)
        elements.append(element)
    names = ", ".join(f"{box['label']} {box['score']:.2f}" for box in boxes[:MAX_NAMES])
    return SvgLayer(elements[::-1], f"{format_count(len(boxes))} boxes: {names}")


# ---------------------------------------------------------------- masks


def _class_areas(row: Row) -> str:
    num_pixels = max((row.width or 1) * (row.height or 1), 1)
    areas = (row.mask_areas or [])[:MAX_NAMES]
    return ", ".join(f"{area['label']} {100 * area['area'] / num_pixels:.0f} %" for area in areas)


def _describe_mask(row: Row) -> str:
    return f"mask: {_class_areas(row)}" if row.mask_areas else ""


def _mask_layer(row: Row, shown_hw: tuple[int, int]) -> PngLayer | None:
    mask = row.mask
    if mask is None:
        return None
    return PngLayer(mask_layer(mask, shown_hw), f"Mask: {_class_areas(row)}")


COLUMN_PAGES: dict[str, ColumnPage] = {
    "labels": ColumnPage(
        counted_column="labels",
        elements=lambda row: row.labels,
        title="Best label",
        description=_describe_labels,
        caption=_label_caption,
        has_one_class=True,
        score_title="Score of the best label",
        agreement="labels",
    ),
    "boxes": ColumnPage(
        counted_column="boxes",
        elements=lambda row: row.boxes,
        title="Boxes",
        description=_describe_boxes,
        caption=_box_caption,
        score_title="Scores of boxes",
        unit="boxes",
        agreement="boxes",
        layer_title="Boxes",
        svg_layer=_box_layer,
    ),
    "mask": ColumnPage(
        counted_column="mask_areas",
        elements=lambda row: row.mask_areas,
        title="Masks",
        description=_describe_mask,
        caption=lambda row, colours: [],
        agreement="pixels",
        layer_title="Mask",
        png_layer=_mask_layer,
    ),
}
