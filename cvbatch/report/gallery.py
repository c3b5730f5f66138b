"""Image gallery with search, sort, filters and overlays that the reader switches on and off."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from xml.etree.ElementTree import Element

from cvbatch.core.progress import Listener
from cvbatch.report.cards import CardStyle, draw_card, markup_bytes
from cvbatch.report.columns import (
    BOX_SCORE,
    COLUMN_PAGES,
    NAME_LENGTH,
    OUTCOMES,
    ClassColours,
    Words,
)
from cvbatch.report.facts import Facts
from cvbatch.report.html import el, format_count, name_element, paragraph, shorten
from cvbatch.report.overlays import ByteBudget
from cvbatch.report.samples import Card
from cvbatch.report.svg_boxes import swatch

MARKUP_BYTES = 7_000_000  # of boxes and captions of all images
_MAX_LEGEND = 64
_SORTS = {
    "order": "Order of the result",
    "name": "Name",
    "agreement": "Lowest agreement",
    "loss": "Largest loss",
    "low": "Lowest score",
    "high": "Highest score",
    "large": "Largest image",
    "small": "Smallest image",
}


def gallery(
    cards: Iterable[Card],
    num_cards: int,
    style: CardStyle,
    facts: Facts,
    images: ByteBudget,
    listener: Listener,
) -> list[Element]:
    """Return the legend of the classes, the controls and the images.

    Args:
        cards: the images.
        num_cards: their number.
        style: of the images.
        facts: to which those of the images are added.
        images: limit of the bytes of all images.
        listener: receives the number of drawn images.
    """
    listener.phase("drawing the report", num_cards, "images")
    figures, layers, markup = list[Element](), dict[str, str](), ByteBudget(MARKUP_BYTES)
    for card in cards:
        figure = draw_card(card, style, images, markup.share(num_cards - len(figures)))
        markup.remaining -= markup_bytes(figure)
        figures.append(figure)
        layers |= _layers(card, style.words)
        facts.add(card)
        listener.advanced(len(figures))
    notes = []
    if images.num_omitted:
        note = f"{images.num_omitted} layers are left out: the size of the page is limited."
        notes = [paragraph(note)]
    named = {key: layers[key] for key in sorted(layers)}
    return [*_legend(style.colours, facts), *notes, *assemble(figures, facts, named, style.words)]


def assemble(
    figures: Sequence[Element], facts: Facts, layers: Mapping[str, str], words: Words
) -> list[Element]:
    """Return controls, images, the dialog of the enlarged view, and the facts for the script.

    Args:
        figures: the images.
        facts: about each of them.
        layers: key → title of the layers of all images.
        words: names of the filters.
    """
    script = el("script", {"type": "application/json", "id": "facts"})
    script.text = facts.as_script()
    return [
        _controls(facts, layers, words),
        el("div", {"class": "cards", "id": "cards"}, *figures),
        _viewer(),
        script,
    ]


def _layers(card: Card, words: Words) -> dict[str, str]:
    """Return key → title of the layers of a card."""
    layers = {
        column: page.layer_title
        for column, page in COLUMN_PAGES.items()
        if page.layer_title and page.elements(card.row)
    }
    if card.row.heatmaps:
        layers["heatmap"] = "Heatmap"
    if card.comparison and (card.comparison.true_boxes or card.comparison.difference):
        layers["truth"] = words.truth
    return layers


def _controls(facts: Facts, layers: Mapping[str, str], words: Words) -> Element:
    """Return the form with the filters and the layer switches."""
    form = el("form", {"class": "controls", "aria-label": "Gallery controls"})
    search = {"type": "search", "id": "search", "placeholder": "part of a name"}
    form.append(el("label", {}, "Name ", el("input", search)))
    form.append(_select("sort", "Sort by ", _used_sorts(facts)))
    classes = {str(index): name for name, index in sorted(facts.classes.items())}
    if len(classes) > 1:
        form.append(_select("class", "Class ", {"": "Any", **classes}))
    statuses = _used_statuses(facts, words.statuses)
    if statuses:
        form.append(_select("status", "Show ", {"": "All", **statuses}))
    if any(card["score"] is not None for card in facts.cards):
        form.append(_score_range())
    box_scores = [score for card in facts.cards for _, score in card["boxes"] or ()]
    if box_scores:
        form.append(_score_slider(box_scores))
    has_outcomes = any("found" in card and card["boxes"] is not None for card in facts.cards)
    form.extend(_switches(layers, words.outcomes if has_outcomes else {}))
    num_shown = f"{format_count(len(facts.cards), 'image')} shown"
    form.append(
        el("p", {"class": "shown"}, el("span", {"id": "shown", "aria-live": "polite"}, num_shown),
           el("span", {"id": "cell", "hidden": True}),
           el("button", {"type": "reset"}, "Reset filters"),
           el("button", {"type": "button", "id": "csv"}, "Download this list as CSV"))
    )  # fmt: skip
    return form


def _used_sorts(facts: Facts) -> dict[str, str]:
    """Return the orders that the images have values for, the first one preselected."""
    keys = {"low": "score", "high": "score", "large": "width", "small": "width"}
    used = {
        sort: title
        for sort, title in _SORTS.items()
        if sort in ("order", "name") or any(card.get(keys.get(sort, sort)) for card in facts.cards)
    }
    if "agreement" in used:
        used = {"agreement": used["agreement"], **used}
    return used


def _used_statuses(facts: Facts, titles: Mapping[str, str]) -> dict[str, str]:
    """Return the statuses that could differ between the images."""
    cards = facts.cards
    has_boxes = any(card["boxes"] is not None for card in cards)
    has_true_boxes = any("found" in card and card["boxes"] is not None for card in cards)
    is_used = {
        "ok": any(card["status"] != "ok" for card in cards),
        "failed": any(card["status"] != "ok" for card in cards),
        "correct": any(card.get("correct") is not None for card in cards),
        "wrong": any(card.get("correct") is not None for card in cards),
        "boxes": has_boxes,
        "no-boxes": has_boxes,
        "false-positive": has_true_boxes,
        "miss": has_true_boxes,
    }
    changes = {key for card in cards for key in card["changes"]}
    return {key: title for key, title in titles.items() if is_used.get(key, key in changes)}


def _select(key: str, title: str, options: Mapping[str, str]) -> Element:
    items = [
        el("option", {"value": value}, shorten(name, NAME_LENGTH))
        for value, name in options.items()
    ]
    return el("label", {}, title, el("select", {"id": key}, *items))


def _score_range() -> Element:
    """Return two fields that limit the best score of an image."""
    limits = [
        el("input", {"type": "number", "id": key, "step": "0.01", "aria-label": title,
                     "placeholder": word})
        for key, word, title in (("from", "from", "Lowest score of an image"),
                                 ("to", "to", "Highest score of an image"))
    ]  # fmt: skip
    return el("fieldset", {"class": "range"}, el("legend", {}, "Score of the image"), *limits)


def _score_slider(scores: Sequence[float]) -> Element:
    low, high = math.floor(min([0.0, *scores])), math.ceil(max([1.0, *scores]))
    start = max(low, BOX_SCORE)
    return el(
        "label", {"class": "range"}, "Minimum score of boxes ",
        el("output", {"id": "threshold-value", "for": "threshold"}, f"{start:.2f}"),
        el("input", {"type": "range", "id": "threshold", "min": low, "max": high, "step": "0.01",
                     "value": f"{start:.2f}"}),
    )  # fmt: skip


def _switches(layers: Mapping[str, str], outcomes: Mapping[str, str]) -> list[Element]:
    """Return the switches of the layers and of the outcomes of boxes."""
    fieldsets = []
    if layers:
        boxes = [_switch(key, title, is_on=key == "boxes") for key, title in layers.items()]
        fieldsets.append(el("fieldset", {}, el("legend", {}, "Layers"), *boxes))
    png_layers = {column for column, page in COLUMN_PAGES.items() if page.png_layer} | {"heatmap"}
    if not png_layers.isdisjoint(layers):
        slider = {"type": "range", "id": "strength", "min": "0.1", "max": "1", "step": "0.05",
                  "value": "0.6"}  # fmt: skip
        fieldsets.append(el("label", {"class": "range"}, "Overlay opacity", el("input", slider)))
    if outcomes:
        switches = [_switch(key, title, is_on=True) for key, title in outcomes.items()]
        switches.append(_switch("by-outcome", "Colour by outcome", is_on=True))
        fieldsets.append(el("fieldset", {}, el("legend", {}, "Boxes"), *switches))
    return fieldsets


def _switch(key: str, title: str, *, is_on: bool) -> Element:
    box = el("input", {"type": "checkbox", "data-layer": key, "checked": is_on})
    colour = el("span", {"class": f"swatch {key}", "aria-hidden": "true"})
    return el("label", {"class": "switch"}, box, colour if key in OUTCOMES else None, title)


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


def _legend(colours: ClassColours, facts: Facts) -> list[Element]:
    """Return the colours of the classes that occur, if they are few enough to be distinguished."""
    shown = {label: value for label, value in colours.items() if shorten(label) in facts.classes}
    if not 0 < len(shown) <= _MAX_LEGEND:
        return []
    items = [
        el("li", {}, swatch(value), name_element(label, NAME_LENGTH))
        for label, value in shown.items()
    ]
    return [el("ul", {"class": "legend", "aria-label": "Colours of the classes"}, *items)]
