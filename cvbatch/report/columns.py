"""Table of what the report shows of each result column: statistics, captions, image layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree.ElementTree import Element, tostring

from cvbatch.report.html import (
    collapsible,
    el,
    format_count,
    format_percent,
    name_element,
    paragraph,
    shorten,
)
from cvbatch.report.overlays import mask_layer
from cvbatch.report.svg_boxes import Tags, class_colour, draw_box, draw_mask, swatch
from cvbatch.results.row import Row

if TYPE_CHECKING:
    from cvbatch.report.statistics import Statistics

MAX_BOXES = 50  # drawn in one image
MAX_NAMES = 8  # of classes, below one image
_SIDES = ("x_min", "y_min", "x_max", "y_max")
NAME_LENGTH = 60  # characters of a class name
BOX_SCORE = 0.25  # minimum score of boxes that a page shows first
BACKGROUND = "background"
_MAX_AREAS = 4  # of classes of a mask, below one image
ClassColours = Mapping[str, int]  # class name → the mask value that has its colour
Elements = list[dict[str, Any]] | None  # of a row; None: the result lacks the column
Tile = tuple[str, str, str]  # title, value, note
# Title of the switch by CSS class of the boxes, whose colours page.css has.
OUTCOMES = {"tp": "True positives", "fp": "False positives", "miss": "Misses"}
_MARKS = {"tp": "true positive", "fp": "false positive", "miss": "missed"}
# Title by key of the status filter in page.js.
STATUSES = {
    "ok": "Read",
    "failed": "Failed",
    "correct": "Best label correct",
    "wrong": "Best label wrong",
    "boxes": "With boxes from the minimum score",
    "no-boxes": "Without such boxes",
    "false-positive": "With false positives",
    "miss": "With misses",
}


def class_colours(classes: Mapping[str, Sequence[str]]) -> ClassColours:
    """Return the colour of every class; boxes and masks of one class name have one colour.

    Args:
        classes: class names by column.
    """
    colours: dict[str, int] = {label: value for value, label in enumerate(classes.get("mask", ()))}
    for class_id, label in enumerate(classes.get("boxes", ())):
        colours.setdefault(label, class_id + 1)  # class 0 of a mask is the background
    return colours


class Words(NamedTuple):
    """Names on the page of what the predictions are compared with, and of the outcomes."""

    truth: str = "Ground truth"
    marks: Mapping[str, str] = _MARKS  # of one box
    verdicts: tuple[str, str] = ("correct", "wrong")  # of an image with one true label
    outcomes: Mapping[str, str] = OUTCOMES
    statuses: Mapping[str, str] = STATUSES


class Drawing(NamedTuple):
    """How the elements of a row are drawn.

    Args:
        colours: of the classes.
        outcomes: of the boxes, keys of OUTCOMES or ""; () if there is nothing to compare with.
        max_bytes: of the elements in the page.
        words: names of the outcomes.
    """

    colours: ClassColours
    outcomes: Sequence[str] = ()
    max_bytes: float = math.inf
    words: Words = Words()

    def outcome(self, number: int) -> str:
        """Return the outcome of a box; "" if it has none."""
        return self.outcomes[number] if number < len(self.outcomes) else ""


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
        caption: function of (row, drawing) that returns what is below the image.
        tiles: function of (classes, statistics) that returns the main figures.
        layer_title: title of the layer over the image; "" without a layer.
        svg_layer: function of (row, drawing, tags) that returns the layer.
        png_layer: function of (row, shown_hw) that returns the layer; None if the row has none.
    """

    counted_column: str
    elements: Callable[[Row], Elements]
    title: str
    description: Callable[[Row], str]
    caption: Callable[[Row, Drawing], list[Element]]
    tiles: Callable[[Sequence[str], Statistics], list[Tile]]
    has_one_class: bool = False
    score_title: str = ""
    unit: str = ""
    agreement: str = ""
    layer_title: str = ""
    svg_layer: Callable[[Row, Drawing, Tags], SvgLayer] | None = None
    png_layer: Callable[[Row, tuple[int, int]], PngLayer | None] | None = None


def describe(row: Row) -> list[str]:
    """Return the predictions of an image as texts."""
    texts = [page.description(row) for page in COLUMN_PAGES.values()]
    return [text for text in (*texts, describe_values(row)) if text]


def describe_values(row: Row) -> str:
    """Return the values of a regression as text; "" without any."""
    values = [f"{name} {value:.4g}" for name, value in (row.values or {}).items()]
    return ", ".join(values[:MAX_NAMES])


# ---------------------------------------------------------------- labels


def _describe_labels(row: Row) -> str:
    if not row.labels:
        return ""
    best = row.labels[0]
    return f"label {best['label']} {best['score']:.2f}"


def _label_caption(row: Row, drawing: Drawing) -> list[Element]:
    if not row.labels:
        return []
    chips = [
        el("li", {}, name_element(label["label"], NAME_LENGTH), f" {label['score']:.2f}")
        for label in row.labels[:MAX_NAMES]
    ]
    return [el("ul", {"class": "chips", "aria-label": "Labels"}, *chips)]


def _label_tiles(classes: Sequence[str], statistics: Statistics) -> list[Tile]:
    num_images = statistics.num_images["labels"]
    if not num_images:
        return []
    top, count = min(num_images.items(), key=lambda item: (-item[1], item[0]))
    share = format_percent(count, statistics.num_rows - statistics.num_failed)
    tiles = [
        ("Classes predicted", format_count(len(num_images)), f"of {len(classes):,}"),
        ("Most frequent class", shorten(classes[top], 40), f"{share} of the images"),
    ]
    num_low, num_scores = statistics.scores_below("labels", 0.5)
    if num_scores:
        note = format_percent(num_low, num_scores)
        tiles.append(("Best score below 0.5", format_count(num_low), note))
    return tiles


# ---------------------------------------------------------------- boxes


def _describe_boxes(row: Row) -> str:
    if row.boxes is None:
        return ""
    names = Counter(box["label"] for box in row.boxes).most_common(MAX_NAMES)
    counts = ", ".join(f"{number} {label}" for label, number in names)
    return f"boxes: {counts}" if counts else "no boxes"


def _box_caption(row: Row, drawing: Drawing) -> list[Element]:
    if not row.boxes:
        return [] if row.boxes is None else [paragraph("no boxes", kind="quiet")]
    count = min(len(row.boxes), MAX_BOXES)
    chips = [_box_chip(row, number, drawing) for number in range(count)]
    chips = first_within(chips, drawing.max_bytes / 3)
    title = f"{format_count(len(row.boxes))} box{'' if len(row.boxes) == 1 else 'es'}"
    if len(row.boxes) > len(chips):
        title += f", the {len(chips)} with the highest scores listed"
    return [collapsible(title, el("ul", {"class": "chips"}, *chips))]


def _box_chip(row: Row, number: int, drawing: Drawing) -> Element:
    box, outcome = (row.boxes or [])[number], drawing.outcome(number)
    attributes = {"class": f"scored {outcome}".strip(), "data-score": f"{box['score']:.6g}"}
    mark = el("span", {"class": "mark"}, drawing.words.marks[outcome]) if outcome else None
    name = name_element(box["label"], NAME_LENGTH)
    colour = swatch(drawing.colours.get(box["label"], 0))
    return el("li", attributes, colour, name, f" {box['score']:.2f}", mark)


def first_within(elements: Sequence[Element], max_bytes: float) -> list[Element]:
    """Return the first elements that fit into a number of bytes, at least one of them."""
    kept: list[Element] = []
    for element in elements:
        max_bytes -= len(tostring(element))
        if max_bytes < 0 and kept:
            break
        kept.append(element)
    return kept


def _box_tiles(classes: Sequence[str], statistics: Statistics) -> list[Tile]:
    num_boxes = statistics.num_elements["boxes"].total()
    num_ok = statistics.num_rows - statistics.num_failed
    tiles = [("Boxes", format_count(num_boxes), f"{num_boxes / max(num_ok, 1):.3g} per image")]
    num_low, num_scores = statistics.scores_below("boxes", BOX_SCORE)
    if num_low:
        title = f"Boxes from a score of {BOX_SCORE}"
        note = f"{format_percent(num_scores - num_low, num_scores)} of all"
        tiles.append((title, format_count(num_scores - num_low), note))
    num_classes = len(statistics.num_images["boxes"])
    tiles.append(("Classes in boxes", format_count(num_classes), f"of {len(classes):,}"))
    return tiles


def _box_layer(row: Row, drawing: Drawing, tags: Tags) -> SvgLayer:
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
        colour = class_colour(drawing.colours.get(box["label"], 0))
        element = draw_box(corners, name, box["score"], colour, tags)
        element.set("class", f"box {drawing.outcome(number)}".strip())
        region = row.box_mask(number)
        if region is not None:
            element.insert(0, draw_mask(region, colour))
        boxes.append(box)
        elements.append(element)
    elements = first_within(elements, drawing.max_bytes)
    boxes = boxes[: len(elements)]
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
    has_background = any(
        area["class_id"] == 0 and area["label"] == BACKGROUND for area in row.mask_areas or ()
    )
    png = mask_layer(mask, shown_hw, has_background=has_background)
    return PngLayer(png, f"Mask: {_class_areas(row)}")


def _mask_caption(row: Row, drawing: Drawing) -> list[Element]:
    if not row.mask_areas:
        return []
    num_pixels = max((row.width or 1) * (row.height or 1), 1)
    chips = [
        el("li", {}, swatch(drawing.colours.get(area["label"], 0)),
           name_element(area["label"], NAME_LENGTH), f" {100 * area['area'] / num_pixels:.0f} %")
        for area in row.mask_areas[:_MAX_AREAS]
    ]  # fmt: skip
    return [el("ul", {"class": "chips", "aria-label": "Share of the mask"}, *chips)]


def _mask_tiles(classes: Sequence[str], statistics: Statistics) -> list[Tile]:
    num_images = statistics.num_images["mask_areas"]
    num_ok = statistics.num_rows - statistics.num_failed
    tiles = [("Classes in masks", format_count(len(num_images)), f"of {len(classes):,}")]
    shown = [k for k in num_images if classes[k] != BACKGROUND]
    if shown:
        top = min(shown, key=lambda k: (-num_images[k], k))
        share = format_percent(num_images[top], num_ok)
        tiles.append(
            ("Most frequent in masks", shorten(classes[top], 40), f"{share} of the images")
        )
    return tiles


COLUMN_PAGES: dict[str, ColumnPage] = {
    "labels": ColumnPage(
        counted_column="labels",
        elements=lambda row: row.labels,
        title="Best label",
        description=_describe_labels,
        caption=_label_caption,
        tiles=_label_tiles,
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
        tiles=_box_tiles,
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
        caption=_mask_caption,
        tiles=_mask_tiles,
        agreement="pixels",
        layer_title="Mask",
        png_layer=_mask_layer,
    ),
}
