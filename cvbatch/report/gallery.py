"""Image gallery with overlays that the reader switches on and off."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from cvbatch.core.types import VOID_CLASS
from cvbatch.report.columns import (
    COLUMN_PAGES,
    MAX_BOXES,
    MAX_NAMES,
    NAME_LENGTH,
    ClassColours,
)
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
    cards: Sequence[Card], groups: Mapping[str, str], colours: ClassColours, budget: ByteBudget
) -> list[Element]:
    """Return the legend, the controls and the images.

    Args:
        cards: the images.
        groups: key → title of each group of images; groups without a card are left out.
        colours: of the classes.
        budget: limit of the bytes of all images.
    """
    if not cards:
        return [paragraph("There is no image to show.")]
    figures = [_card(number, card, colours, budget) for number, card in enumerate(cards)]
    used_groups = {
        key: title for key, title in groups.items() if any(key in card.groups for card in cards)
    }
    notes = []
    if budget.num_omitted:
        text = f"{budget.num_omitted} layers are left out: the size of the page is limited."
        notes = [paragraph(text)]
    return [
        *_legend(colours),
        _controls(cards, used_groups),
        *notes,
        el("div", {"class": "cards", "id": "cards"}, *figures),
        _viewer(),
    ]


def _layers(cards: Sequence[Card]) -> dict[str, str]:
    """Return key → title of the layers that at least one card has."""
    layers = {
        column: page.layer_title
        for column, page in COLUMN_PAGES.items()
        if page.layer_title and any(page.elements(card.row) for card in cards)
    }
    if any(card.row.heatmaps for card in cards):
        layers["heatmap"] = "Heatmap"
    if any(card.comparison for card in cards):
        layers["truth"] = "Ground truth"
    return layers


def _controls(cards: Sequence[Card], groups: Mapping[str, str]) -> Element:
    """Return the form with the layer switches and the filters."""
    layers = _layers(cards)
    switches = [
        el(
            "label", {"class": "switch"},
            el("input", {"type": "checkbox", "data-layer": key, "checked": key == "boxes"}), title,
        )
        for key, title in layers.items()
    ]  # fmt: skip
    form = el("form", {"class": "controls", "aria-label": "Gallery controls"})
    if switches:
        form.append(el("fieldset", {}, el("legend", {}, "Layers"), *switches))
    scores = [
        element["score"]
        for card in cards
        for element in _scored(card.row)
        if math.isfinite(element["score"])
    ]
    if scores:
        form.append(_score_slider(min([0.0, *scores]), max([1.0, *scores])))
    png_layers = {column for column, page in COLUMN_PAGES.items() if page.png_layer} | {"heatmap"}
    if not png_layers.isdisjoint(layers):
        form.append(
            el("label", {"class": "range"}, "Overlay opacity",
               el("input", {"type": "range", "id": "strength", "min": "0.1", "max": "1",
                            "step": "0.05", "value": "0.8"}))
        )  # fmt: skip
    if groups:
        options = [el("option", {"value": key}, title) for key, title in groups.items()]
        all_cards = el("option", {"value": ""}, f"All {len(cards)}")
        form.append(el("label", {}, "Sample ", el("select", {"id": "group"}, all_cards, *options)))
    classes = sorted({label for card in cards for label in _classes(card)})
    if len(classes) > 1:
        options = [el("option", {"value": label}, shorten(label, NAME_LENGTH)) for label in classes]
        select = el("select", {"id": "class"}, el("option", {"value": ""}, "Any"), *options)
        form.append(el("label", {}, "Class ", select))
    num_shown = f"{format_count(len(cards), 'image')} shown"
    form.append(el("p", {"class": "shown", "id": "shown", "aria-live": "polite"}, num_shown))
    return form


def _score_slider(low: float, high: float) -> Element:
    return el(
        "label", {"class": "range"}, "Minimum score ",
        el("output", {"id": "threshold-value", "for": "threshold"}, f"{low:.2f}"),
        el("input", {"type": "range", "id": "threshold", "min": f"{np.floor(low):.0f}",
                     "max": f"{np.ceil(high):.0f}", "step": "0.01", "value": f"{low:.2f}"}),
    )  # fmt: skip


def _viewer() -> Element:
    """Return the dialog that shows one image enlarged."""
    buttons = [
        el("button", {"type": "button", "data-go": "-1", "aria-label": "Previous image"}, "←"),
        el("button", {"type": "button", "data-go": "1", "aria-label": "Next image"}, "→"),
        el("button", {"type": "button", "data-go": "0", "aria-label": "Close"}, "×"),
    ]
    return el(
        "dialog",
        {"id": "viewer", "aria-label": "Enlarged image"},
        el("div", {"class": "bar-top"}, el("span", {"id": "viewer-place"}), *buttons),
        el("div", {"id": "viewer-body"}),
    )


def _classes(card: Card) -> set[str]:
    """Return the names of all classes of a card, of predictions and labels."""
    names = [
        element["label"]
        for page in COLUMN_PAGES.values()
        for element in (page.elements(card.row) or [])[: 1 if page.has_one_class else None]
    ]
    if card.comparison:
        names += [*card.comparison.labels, *card.comparison.names]
    return {shorten(label) for label in names}


def _scored(row: Row) -> list[dict[str, Any]]:
    """Return the elements with a score of all columns, in the order of `COLUMN_PAGES`."""
    pages = [page for page in COLUMN_PAGES.values() if page.score_title]
    return [element for page in pages for element in page.elements(row) or []]


def _card(number: int, card: Card, colours: ClassColours, budget: ByteBudget) -> Element:
    row = card.row
    best_score = next((element["score"] for element in _scored(row)), None)
    comparison = card.comparison
    button = el("button", {"type": "button", "class": "open"}, _stage(card, colours, budget))
    title = el("h3", {}, name_element(row.image_id, 80))
    return el(
        "figure",
        {
            "class": "card",
            "data-number": number,
            "data-groups": " ".join(sorted(card.groups)),
            "data-classes": "\n".join(sorted(_classes(card))),
            "data-score": None if best_score is None else f"{best_score:.6g}",
            "data-agreement": f"{1 - comparison.disagreement:.6g}" if comparison else None,
        },
        button,
        el("figcaption", {}, title, *_captions(card, colours)),
    )


def _stage(card: Card, colours: ClassColours, budget: ByteBudget) -> Element:
    """Return the image and its layers, stacked."""
    row = card.row
    stage = el("span", {"class": "stage"})
    height, width = row.height or 3, row.width or 4
    shown_hw = thumbnail_hw(height, width)
    photo = None if card.pixels is None else budget.embed(encode_photo(card.pixels), "webp")
    if photo:
        stage.append(el("img", {"class": "photo", "src": photo, "alt": alt_text(card)}))
    else:
        reason = card.missing_reason or "no image: the size of the page is limited"
        stage.append(el("span", {"class": "lacks"}, shorten(reason)))
    for layer, data, description in _image_layers(card, shown_hw):
        uri = budget.embed(data, "webp" if layer == "heatmap" else "png")
        if uri:
            stage.append(el("img", {"class": f"layer {layer}", "src": uri, "alt": description}))
    has_svg = any(page.svg_layer and page.elements(row) for page in COLUMN_PAGES.values())
    if has_svg or (card.comparison and len(card.comparison.xyxy)):
        stage.append(_svg_layers(card, colours, (height, width)))
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
    comparison = card.comparison
    if comparison and comparison.mask is not None and comparison.predicted is not None:
        is_counted = comparison.mask != VOID_CLASS
        is_wrong = is_counted & (comparison.mask != comparison.predicted)
        percent = 100 * is_wrong.sum() / max(is_counted.sum(), 1)
        description = f"Differences from the true mask: {percent:.1f} % of the pixels"
        yield "truth", difference_layer(is_wrong, shown_hw), description


def _svg_layers(card: Card, colours: ClassColours, image_hw: tuple[int, int]) -> Element:
    """Return the SVG layers, in pixels of the original."""
    height, width = image_hw
    letter = f"{font_size(height, width):.4g}"
    layers, descriptions = [], []
    for column, page in COLUMN_PAGES.items():
        if page.svg_layer:
            layer = page.svg_layer(card.row, colours, image_hw)
            group = {"class": f"layer {column}", "font-size": letter}
            layers.append(el("g", group, *layer.elements))
            descriptions.append(layer.description)
    if card.comparison is not None and len(card.comparison.xyxy):
        true_boxes = el("g", {"class": "layer truth", "font-size": letter})
        boxes = zip(card.comparison.xyxy.tolist(), card.comparison.names, strict=True)
        for xyxy, label in list(boxes)[:MAX_BOXES]:
            text = shorten(label, NAME_LENGTH)
            true_boxes.append(draw_box(xyxy, text, None, "#ffffff", image_hw))
        layers.append(true_boxes)
    return el(
        "svg",
        {"class": "over", "viewBox": f"0 0 {width} {height}", "role": "img",
         "aria-label": shorten("; ".join(descriptions), 400)},
        *layers,
    )  # fmt: skip


def alt_text(card: Card) -> str:
    """Return the text alternative of an image: id, size, predictions."""
    row = card.row
    predictions = [page.description(row) for page in COLUMN_PAGES.values()]
    size = f"{row.image_id}, {row.width} × {row.height} pixels"
    return shorten("; ".join([size, *filter(None, predictions)]), 600)


def _captions(card: Card, colours: ClassColours) -> list[Element]:
    """Return the predictions as text, and the labels if there are any."""
    captions = [
        element for page in COLUMN_PAGES.values() for element in page.caption(card.row, colours)
    ]
    values = [f"{name} {value:.4g}" for name, value in (card.row.values or {}).items()][:MAX_NAMES]
    captions += [paragraph(shorten(", ".join(values), 300))] if values else []
    if card.comparison is not None:
        captions.append(_label_caption(card.comparison))
    return captions


def _label_caption(comparison: LabelComparison) -> Element:
    """Return the labels, and the agreement of the predictions with them."""
    agreement = ", ".join(
        f"{COLUMN_PAGES[column].agreement} {100 * f1:.0f} %"
        for column, f1 in comparison.agreement.items()
    )
    labels = ", ".join(shorten(label, NAME_LENGTH) for label in comparison.labels[:MAX_NAMES])
    caption = el("p", {"class": "truth-labels"}, el("b", {}, "Ground truth "))
    if labels:
        caption.append(name_element(labels))
    text = f" agreement (F1): {agreement}" if agreement else ""
    caption.append(el("span", {"class": "quiet"}, text))
    return caption


def _legend(colours: ClassColours) -> list[Element]:
    """Return the colours of the classes, if they are few enough to be distinguished."""
    if not 0 < len(colours) <= _MAX_LEGEND:
        return []
    items = [
        el("li", {}, swatch(value), name_element(label, NAME_LENGTH))
        for label, value in colours.items()
    ]
    return [el("ul", {"class": "legend", "aria-label": "Colours of the classes"}, *items)]
