"""Gallery of images with their predictions, in layers that the reader shows or hides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from cvbatch.core.types import VOID_CLASS
from cvbatch.report.columns import COLUMN_PAGES, MAX_BOXES, MAX_NAMES, NAME_LENGTH, ClassColours
from cvbatch.report.disagreements import LabelComparison
from cvbatch.report.html import el, format_count, name_element, paragraph, shorten
from cvbatch.report.overlays import (
    ByteBudget,
    difference_layer,
    encode_photo,
    heatmap_layer,
    thumbnail_hw,
)
from cvbatch.report.samples import Card
from cvbatch.report.svg_boxes import draw_box, font_size, swatch
from cvbatch.results.row import Row

_MAX_LEGEND = 64


def gallery(
    cards: Sequence[Card], groups: Mapping[str, str], tints: ClassColours, budget: ByteBudget
) -> list[Element]:
    """Return the controls and the images.

    groups: key → what the reader is offered; those without a card are left out.
    """
    if not cards:
        return [paragraph("There is no image to show.")]
    drawn = [_card(number, card, tints, budget) for number, card in enumerate(cards)]
    there = {key: said for key, said in groups.items() if any(key in c.groups for c in cards)}
    controls = _controls(cards, there)
    more = []
    if budget.num_omitted:
        more = [paragraph(f"{budget.num_omitted} layers are left out: the page has a limit.")]
    legend = _legend(tints)
    return [
        *legend,
        controls,
        *more,
        el("div", {"class": "cards", "id": "cards"}, *drawn),
        _viewer(),
    ]


def _layers(cards: Sequence[Card]) -> dict[str, str]:
    """Return the titles of the layers that some card has."""
    layers = {
        column: page.layer_title
        for column, page in COLUMN_PAGES.items()
        if page.layer_title and any(page.elements(card.row) for card in cards)
    }
    if any(card.row.heatmaps for card in cards):
        layers["heatmap"] = "Heatmap"
    if any(card.comparison for card in cards):
        layers["truth"] = "Truth"
    return layers


def _controls(cards: Sequence[Card], groups: Mapping[str, str]) -> Element:
    layers = _layers(cards)
    switches = [
        el(
            "label", {"class": "switch"},
            el("input", {"type": "checkbox", "data-layer": key, "checked": key == "boxes"}), title,
        )
        for key, title in layers.items()
    ]  # fmt: skip
    scores = [
        one["score"] for card in cards for one in _scored(card.row) if math.isfinite(one["score"])
    ]
    low, high = min([0.0, *scores]), max([1.0, *scores])
    classes = sorted({one for card in cards for one in _classes(card)})
    made = el("form", {"class": "controls", "aria-label": "What the gallery shows"})
    if switches:
        made.append(el("fieldset", {}, el("legend", {}, "Layers"), *switches))
    if scores:
        made.append(
            el("label", {"class": "range"}, "Least score ",
               el("output", {"id": "threshold-said", "for": "threshold"}, f"{low:.2f}"),
               el("input", {"type": "range", "id": "threshold", "min": f"{np.floor(low):.0f}",
                            "max": f"{np.ceil(high):.0f}", "step": "0.01", "value": f"{low:.2f}"}))
        )  # fmt: skip
    pictures = {column for column, page in COLUMN_PAGES.items() if page.png_layer} | {"heatmap"}
    if not pictures.isdisjoint(layers):
        made.append(
            el("label", {"class": "range"}, "Strength of layers",
               el("input", {"type": "range", "id": "strength", "min": "0.1", "max": "1",
                            "step": "0.05", "value": "0.8"}))
        )  # fmt: skip
    if groups:
        options = [el("option", {"value": key}, said) for key, said in groups.items()]
        every = el("option", {"value": ""}, f"All {len(cards)}")
        chosen = el("select", {"id": "group"}, every, *options)
        made.append(el("label", {}, "Sample ", chosen))
    if len(classes) > 1:
        options = [el("option", {"value": one}, shorten(one, NAME_LENGTH)) for one in classes]
        chosen = el("select", {"id": "class"}, el("option", {"value": ""}, "Any"), *options)
        made.append(el("label", {}, "Class ", chosen))
    shown = f"{format_count(len(cards), 'image')} shown"
    made.append(el("p", {"class": "shown", "id": "shown", "aria-live": "polite"}, shown))
    return made


def _viewer() -> Element:
    """Return the window in which an image is seen large."""
    buttons = [
        el("button", {"type": "button", "data-go": "-1", "aria-label": "Image before"}, "←"),
        el("button", {"type": "button", "data-go": "1", "aria-label": "Next image"}, "→"),
        el("button", {"type": "button", "data-go": "0", "aria-label": "Close"}, "×"),
    ]
    return el(
        "dialog",
        {"id": "viewer", "aria-label": "One image, large"},
        el("div", {"class": "bar-top"}, el("span", {"id": "viewer-place"}), *buttons),
        el("div", {"id": "viewer-body"}),
    )


def _classes(card: Card) -> set[str]:
    """Return the names of all classes that a card shows, of predictions and labels."""
    names = [
        one["label"]
        for page in COLUMN_PAGES.values()
        for one in (page.elements(card.row) or [])[: 1 if page.has_one_class else None]
    ]
    if card.comparison:
        names += [*card.comparison.labels, *card.comparison.names]
    return {shorten(one) for one in names}


def _scored(row: Row) -> list[dict[str, Any]]:
    """Return the elements with a score of all columns, those of the first column first."""
    pages = [page for page in COLUMN_PAGES.values() if page.score_title]
    return [one for page in pages for one in page.elements(row) or []]


def _card(number: int, card: Card, tints: ClassColours, budget: ByteBudget) -> Element:
    row = card.row
    best = next((one["score"] for one in _scored(row)), None)
    button = el("button", {"type": "button", "class": "open"}, _stage(card, tints, budget))
    caption = el(
        "figcaption", {}, el("h3", {}, name_element(row.image_id, 80)), *_captions(card, tints)
    )
    return el(
        "figure",
        {
            "class": "card",
            "data-number": number,
            "data-groups": " ".join(sorted(card.groups)),
            "data-classes": "\n".join(sorted(_classes(card))),
            "data-score": None if best is None else f"{best:.6g}",
            "data-agreement": f"{1 - card.comparison.disagreement:.6g}"
            if card.comparison
            else None,
        },
        button,
        caption,
    )


def _stage(card: Card, tints: ClassColours, budget: ByteBudget) -> Element:
    """Return the picture and its layers, one upon the other."""
    row = card.row
    made = el("span", {"class": "stage"})
    height, width = row.height or 3, row.width or 4
    size = thumbnail_hw(height, width)
    drawn = budget.embed(encode_photo(card.pixels), "webp") if card.pixels is not None else None
    if drawn:
        made.append(el("img", {"class": "photo", "src": drawn, "alt": alternative(card)}))
    else:
        why = card.missing_reason or "no picture: the page has a limit"
        made.append(el("span", {"class": "lacks"}, shorten(why)))
    for layer, data, words in _pictures(card, size):
        uri = budget.embed(data, "webp" if layer == "heatmap" else "png")
        if uri:
            made.append(el("img", {"class": f"layer {layer}", "src": uri, "alt": words}))
    has_shapes = any(page.svg_layer and page.elements(row) for page in COLUMN_PAGES.values())
    if has_shapes or (card.comparison and len(card.comparison.xyxy)):
        made.append(_shapes(card, tints, (height, width)))
    return made


def _pictures(card: Card, shown_hw: tuple[int, int]) -> Iterable[tuple[str, bytes, str]]:
    """Yield the layers that are pictures: layer, bytes, what they show in words."""
    for column, page in COLUMN_PAGES.items():
        picture = page.png_layer and page.png_layer(card.row, shown_hw)
        if picture:
            yield column, *picture
    for heatmap in (card.row.heatmaps or [])[:1]:
        words = f"Heatmap of {heatmap['label']}, layer {heatmap['layer']}"
        yield "heatmap", heatmap_layer(card.row.heat(), shown_hw), shorten(words)
    if (
        card.comparison
        and card.comparison.mask is not None
        and card.comparison.predicted is not None
    ):
        counted = card.comparison.mask != VOID_CLASS
        is_wrong = counted & (card.comparison.mask != card.comparison.predicted)
        share = 100 * is_wrong.sum() / max(counted.sum(), 1)
        words = f"The true mask: {share:.1f} % of the pixels differ from it"
        yield "truth", difference_layer(is_wrong, shown_hw), words


def _shapes(card: Card, tints: ClassColours, image_hw: tuple[int, int]) -> Element:
    """Return the layers that are SVG, in pixels of the original."""
    height, width = image_hw
    letter = f"{font_size(height, width):.4g}"
    layers, words = [], []
    for column, page in COLUMN_PAGES.items():
        if page.svg_layer:
            shapes = page.svg_layer(card.row, tints, image_hw)
            group = {"class": f"layer {column}", "font-size": letter}
            layers.append(el("g", group, *shapes.elements))
            words.append(shapes.description)
    if card.comparison is not None and len(card.comparison.xyxy):
        truth = el("g", {"class": "layer truth", "font-size": letter})
        some = zip(card.comparison.xyxy.tolist(), card.comparison.names, strict=True)
        for corners, label in list(some)[:MAX_BOXES]:
            text = shorten(label, NAME_LENGTH)
            truth.append(draw_box(corners, text, None, "#ffffff", image_hw))
        layers.append(truth)
    return el(
        "svg",
        {"class": "over", "viewBox": f"0 0 {width} {height}", "role": "img",
         "aria-label": shorten("; ".join(words), 400)},
        *layers,
    )  # fmt: skip


def alternative(card: Card) -> str:
    """Return what an image shows, in words."""
    row = card.row
    words = [page.description(row) for page in COLUMN_PAGES.values()]
    size = f"{row.image_id}, {row.width} × {row.height} pixels"
    return shorten("; ".join([size, *filter(None, words)]), 600)


def _captions(card: Card, tints: ClassColours) -> list[Element]:
    """Return the predictions in words under the image, and the labels if there are any."""
    made = [one for page in COLUMN_PAGES.values() for one in page.caption(card.row, tints)]
    return made if card.comparison is None else [*made, _truth(card.comparison)]


def _truth(against: LabelComparison) -> Element:
    """Return the labels, and how far the predictions agree with them."""
    agreed = ", ".join(
        f"{COLUMN_PAGES[column].agreement} {100 * part:.0f} %"
        for column, part in against.agreement.items()
    )
    named = ", ".join(shorten(label, NAME_LENGTH) for label in against.labels[:MAX_NAMES])
    made = el("p", {"class": "truth-said"}, el("b", {}, "Truth "))
    if named:
        made.append(name_element(named))
    made.append(el("span", {"class": "quiet"}, f" agrees: {agreed}" if agreed else ""))
    return made


def _legend(tints: ClassColours) -> list[Element]:
    """Return the colours of the classes, where they are few enough to be told apart."""
    if not 0 < len(tints) <= _MAX_LEGEND:
        return []
    items = [
        el("li", {}, swatch(value), name_element(label, NAME_LENGTH))
        for label, value in tints.items()
    ]
    return [el("ul", {"class": "legend", "aria-label": "Colours of the classes"}, *items)]
