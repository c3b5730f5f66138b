"""One image of the gallery as HTML: layers, captions, link to the original."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote
from xml.etree.ElementTree import Element, tostring

from cvbatch.core.errors import CvbatchError
from cvbatch.core.redaction import redact
from cvbatch.report.columns import (
    BOX_SCORE,
    COLUMN_PAGES,
    MAX_BOXES,
    MAX_NAMES,
    NAME_LENGTH,
    ClassColours,
    Drawing,
    Words,
    describe,
    describe_values,
    first_within,
)
from cvbatch.report.html import el, name_element, paragraph, shorten
from cvbatch.report.outcomes import LabelComparison, TrueBox
from cvbatch.report.overlays import ByteBudget, heatmap_layer, thumbnail_hw
from cvbatch.report.samples import Card
from cvbatch.report.svg_boxes import Tags, draw_box
from cvbatch.storage import store

# Layers of boxes that share the bytes of a card: predictions with captions, labels, misses.
_SHARES = {True: 3.5, False: 1.5}  # by whether there are labels


class CardStyle(NamedTuple):
    """What all cards of a page share.

    Args:
        colours: of the classes.
        page_uri: of the page, for links to the images.
        links_files: every image is a file of its own.
        words: names of what the predictions are compared with.
    """

    colours: ClassColours
    page_uri: str
    links_files: bool
    words: Words = Words()


def draw_card(card: Card, style: CardStyle, images: ByteBudget, max_bytes: float) -> Element:
    """Return an image with its layers and captions.

    Args:
        card: the image.
        style: of all cards.
        images: limit of the bytes of all images of the page.
        max_bytes: of the boxes and captions of this image, about.
    """
    outcomes = card.comparison.outcomes if card.comparison else ()
    max_bytes /= _SHARES[card.comparison is not None]
    drawing = Drawing(style.colours, outcomes, max_bytes, style.words)
    title = el("h3", {}, name_element(card.row.image_id, 80))
    button = el("button", {"type": "button", "class": "open"}, _stage(card, drawing, images))
    caption = el("figcaption", {}, title, *_captions(card, drawing), _location(card, style))
    return el("figure", {"class": "card"}, button, caption)


def markup_bytes(figure: Element) -> int:
    """Return the bytes of a card without its images."""
    return len(tostring(figure)) - sum(len(image.get("src", "")) for image in figure.iter("img"))


def _stage(card: Card, drawing: Drawing, images: ByteBudget) -> Element:
    """Return the image and its layers, stacked."""
    row = card.row
    stage = el("span", {"class": "stage"})
    size_hw = row.height or 3, row.width or 4
    photo = card.photo and images.embed(card.photo, "webp")
    if photo:
        attributes = {"class": "photo", "src": photo, "alt": alt_text(card)}
        stage.append(el("img", {**attributes, "loading": "lazy", "decoding": "async"}))
    else:
        reason = card.missing_reason or "no image: the size of the page is limited"
        stage.append(el("span", {"class": "lacks"}, shorten(reason)))
    for layer, data, description in _image_layers(card, thumbnail_hw(*size_hw)):
        uri = images.embed(data, "webp" if layer == "heatmap" else "png")
        if uri:
            attributes = {"class": f"layer {layer}", "src": uri, "alt": description}
            stage.append(el("img", {**attributes, "loading": "lazy"}))
    has_svg = any(page.svg_layer and page.elements(row) for page in COLUMN_PAGES.values())
    if has_svg or (card.comparison and card.comparison.true_boxes):
        stage.append(_svg_layers(card, drawing, size_hw))
    return stage


def _image_layers(card: Card, shown_hw: tuple[int, int]) -> Iterable[tuple[str, bytes, str]]:
    """Yield the layers that are images: key, encoded image, text alternative."""
    for column, page in COLUMN_PAGES.items():
        layer = page.png_layer and page.png_layer(card.row, shown_hw)
        if layer:
            yield column, *layer
    for heatmap in (card.row.heatmaps or [])[:1]:
        description = f"Heatmap of {heatmap['label']}, layer {heatmap['layer']}"
        yield "heatmap", heatmap_layer(card.row.heat(), shown_hw), shorten(description)
    difference = card.comparison and card.comparison.difference
    if difference:
        description = f"Differences of the masks: {100 * difference.share:.1f} % of the pixels"
        yield "truth", difference.png, description


def _svg_layers(card: Card, drawing: Drawing, image_hw: tuple[int, int]) -> Element:
    """Return the SVG layers, in pixels of the original."""
    height, width = image_hw
    tags = Tags(image_hw)
    layers, descriptions = [], []
    for column, page in COLUMN_PAGES.items():
        if page.svg_layer:
            layer = page.svg_layer(card.row, drawing, tags)
            layers.append(el("g", {"class": f"layer {column}"}, *layer.elements))
            descriptions.append(layer.description)
    if card.comparison:
        true_boxes = sorted(card.comparison.true_boxes, key=_found)[:MAX_BOXES]
        missed = drawing.words.marks["miss"]
        misses = [_miss(box, missed, tags) for box in true_boxes if not box.is_crowd]
        drawn = [_true_box(box, tags) for box in true_boxes]
        misses, drawn = (first_within(boxes, drawing.max_bytes) for boxes in (misses, drawn))
        layers.append(el("g", {"class": "layer truth"}, *drawn))
        layers.insert(0, el("g", {"class": "layer outcomes"}, *misses))
    return el(
        "svg",
        {"class": "over", "viewBox": f"0 0 {width} {height}", "role": "img",
         "font-size": f"{tags.letter:.4g}", "aria-label": shorten("; ".join(descriptions), 400)},
        *layers,
    )  # fmt: skip


def _found(box: TrueBox) -> float:
    """Return the score that finds a labelled box; missed ones are drawn first."""
    return -math.inf if box.found is None else box.found


def _true_box(box: TrueBox, tags: Tags) -> Element:
    return draw_box(box.xyxy, shorten(box.label, NAME_LENGTH), None, "#ffffff", tags)


def _miss(box: TrueBox, missed: str, tags: Tags) -> Element:
    """Return a labelled box that the page shows while its score is below the minimum."""
    text = f"{missed}: {shorten(box.label, NAME_LENGTH)}"
    element = draw_box(box.xyxy, text, None, "#f0e442", tags)
    is_found = box.found is not None and box.found >= BOX_SCORE  # until the slider is moved
    element.set("class", "box miss below" if is_found else "box miss")
    if box.found is not None:
        element.set("data-found", f"{box.found:.6g}")
    return element


def alt_text(card: Card) -> str:
    """Return the text alternative of an image: id, size, predictions."""
    row = card.row
    size = f"{row.image_id}, {row.width} × {row.height} pixels"
    return shorten("; ".join([size, *describe(row)]), 600)


def _captions(card: Card, drawing: Drawing) -> list[Element]:
    """Return the predictions as text, and the labels if there are any."""
    pages = COLUMN_PAGES.values()
    captions = [element for page in pages for element in page.caption(card.row, drawing)]
    values = describe_values(card.row)
    captions += [paragraph(shorten(values, 300))] if values else []
    if card.comparison is not None:
        captions.append(_label_caption(card.comparison, drawing.words))
    return captions


def _label_caption(comparison: LabelComparison, words: Words) -> Element:
    """Return the labels, and the agreement of the predictions with them."""
    notes = [
        f"{COLUMN_PAGES[column].agreement} {100 * f1:.0f} %"
        for column, f1 in comparison.agreement.items()
    ]
    threshold = f"{comparison.score_threshold:g}"
    texts = [f"agreement (F1 at score {threshold}): {', '.join(notes)}"] if notes else []
    if comparison.loss is not None:
        texts.append(f"loss {'at least ' if comparison.is_loss_bound else ''}{comparison.loss:.3f}")
    labels = ", ".join(shorten(label, NAME_LENGTH) for label in comparison.labels[:MAX_NAMES])
    caption = el("p", {"class": "truth-labels"}, el("b", {}, f"{words.truth} "))
    if labels:
        caption.append(name_element(labels))
    if comparison.is_correct is not None:
        kind = "right" if comparison.is_correct else "wrong"
        verdict = words.verdicts[0 if comparison.is_correct else 1]
        caption.append(el("span", {"class": f"verdict {kind}"}, verdict))
    caption.append(el("span", {"class": "quiet"}, f" {'; '.join(texts)}"))
    return caption


def _location(card: Card, style: CardStyle) -> Element:
    """Return a link to the original, or its URI if a browser cannot open it."""
    href = file_link(card.row.uri, style.page_uri) if style.links_files else None
    if href is None:
        return el("p", {"class": "where"}, el("code", {}, shorten(redact(card.row.uri), 200)))
    link = {"href": href, "target": "_blank", "rel": "noreferrer", "class": "original"}
    return el("p", {"class": "where"}, el("a", link, "Original"))


def file_link(uri: str, page_uri: str) -> str | None:
    """Return a link from a page to a file, relative to the page; None if one is not local."""
    try:
        locations = [store.Location.of(item) for item in (uri, page_uri)]
    except CvbatchError:  # the URI is of a result that cvbatch did not write
        return None
    if any(location.scheme != "file" for location in locations):
        return None
    path, page = (Path(location.path) for location in locations)
    return quote(os.path.relpath(path, page.parent), errors="surrogateescape")
