"""Images of a result beside what was found in them, in layers that the reader switches."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from cvbatch.core.types import VOID_CLASS
from cvbatch.images.drawing import PALETTE
from cvbatch.report.disagreements import Against
from cvbatch.report.html import count, el, fold, name, paragraph, shortened
from cvbatch.report.overlays import (
    Budget,
    difference_layer,
    fitted_hw,
    heatmap_layer,
    mask_layer,
    photo,
)
from cvbatch.report.samples import Card
from cvbatch.results.row import Row

MAX_BOXES = 50  # drawn in one image
MAX_LABELS = 8  # named under one image
_LINE = 0.045  # height of letters over a picture, of its frame's width
_NAME = 60  # characters of a class
_MAX_LEGEND = 64


Tints = Mapping[str, int]  # name of a class → the value of a mask whose colour it has


def gallery(
    cards: Sequence[Card], groups: Mapping[str, str], tints: Tints, budget: Budget
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
    if budget.num_refused:
        more = [paragraph(f"{budget.num_refused} layers are left out: the page has a limit.")]
    legend = _legend(tints)
    return [
        *legend,
        controls,
        *more,
        el("div", {"class": "cards", "id": "cards"}, *drawn),
        _viewer(),
    ]


def _controls(cards: Sequence[Card], groups: Mapping[str, str]) -> Element:
    layers = {
        "boxes": ("Boxes", any(card.row.boxes for card in cards)),
        "mask": ("Mask", any(card.row.mask_areas for card in cards)),
        "heatmap": ("Heatmap", any(card.row.heatmaps for card in cards)),
        "truth": ("Truth", any(card.against for card in cards)),
    }
    switches = [
        el(
            "label", {"class": "switch"},
            el("input", {"type": "checkbox", "data-layer": key, "checked": key == "boxes"}), said,
        )
        for key, (said, is_there) in layers.items() if is_there
    ]  # fmt: skip
    answers = [one for card in cards for one in (*(card.row.labels or []), *(card.row.boxes or []))]
    scores = [one["score"] for one in answers if math.isfinite(one["score"])]
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
    if any(is_there for key, (_, is_there) in layers.items() if key in ("mask", "heatmap")):
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
        options = [el("option", {"value": one}, shortened(one, _NAME)) for one in classes]
        chosen = el("select", {"id": "class"}, el("option", {"value": ""}, "Any"), *options)
        made.append(el("label", {}, "Class ", chosen))
    shown = f"{count(len(cards), 'image')} shown"
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
    """Return the names of all classes that a card is about."""
    row = card.row
    named = [one["label"] for one in (row.labels or [])[:1]]
    named += [one["label"] for one in (*(row.boxes or []), *(row.mask_areas or []))]
    if card.against:
        named += [*card.against.labels, *card.against.names]
    return {shortened(one) for one in named}


def _surest(row: Row) -> float | None:
    """Return the score of the surest answer; None where there is none."""
    best = (row.labels or row.boxes or [])[:1]
    return best[0]["score"] if best else None


def _card(number: int, card: Card, tints: Tints, budget: Budget) -> Element:
    row = card.row
    surest = _surest(row)
    button = el("button", {"type": "button", "class": "open"}, _stage(card, tints, budget))
    caption = el("figcaption", {}, el("h3", {}, name(row.image_id, 80)), *_answers(card, tints))
    return el(
        "figure",
        {
            "class": "card",
            "data-number": number,
            "data-groups": " ".join(sorted(card.groups)),
            "data-classes": "\n".join(sorted(_classes(card))),
            "data-score": None if surest is None else f"{surest:.6g}",
            "data-agreement": f"{1 - card.against.disagreement:.6g}" if card.against else None,
        },
        button,
        caption,
    )


def _stage(card: Card, tints: Tints, budget: Budget) -> Element:
    """Return the picture and its layers, one upon the other."""
    row = card.row
    made = el("span", {"class": "stage"})
    height, width = row.height or 3, row.width or 4
    size = fitted_hw(height, width)
    drawn = budget.spend(photo(card.pixels), "webp") if card.pixels is not None else None
    if drawn:
        made.append(el("img", {"class": "photo", "src": drawn, "alt": alternative(card)}))
    else:
        why = card.lacks or "no picture: the page has a limit"
        made.append(el("span", {"class": "lacks"}, shortened(why)))
    for kind, data, said in _pictures(card, size):
        uri = budget.spend(data, "webp" if kind == "heatmap" else "png")
        if uri:
            layer = "truth" if kind == "difference" else kind
            made.append(el("img", {"class": f"layer {layer}", "src": uri, "alt": said}))
    if row.boxes or (card.against and len(card.against.xyxy)):
        made.append(_boxes(card, tints, height, width))
    return made


def _pictures(card: Card, size: tuple[int, int]) -> Iterable[tuple[str, bytes, str]]:
    """Yield the layers that are pictures: kind, bytes, what they show in words."""
    mask = card.row.mask
    if mask is not None:
        yield "mask", mask_layer(mask, size), f"Mask: {_areas(card.row)}"
    for heatmap in (card.row.heatmaps or [])[:1]:
        said = f"Heatmap of {heatmap['label']}, layer {heatmap['layer']}"
        yield "heatmap", heatmap_layer(card.row.heat(), size), shortened(said)
    if card.against and card.against.mask is not None and card.against.answered is not None:
        counted = card.against.mask != VOID_CLASS
        is_wrong = counted & (card.against.mask != card.against.answered)
        told = f"{100 * is_wrong.sum() / max(counted.sum(), 1):.1f} % of the pixels differ from it"
        yield "difference", difference_layer(is_wrong, size), f"The true mask: {told}"


def _boxes(card: Card, tints: Tints, height: int, width: int) -> Element:
    """Return the boxes as lines over the picture, in pixels of the original; the best on top."""
    boxes, size = _drawable(card.row)[:MAX_BOXES], (height, width)
    letter = f"{_letter(height, width):.4g}"
    named = ", ".join(f"{box['label']} {box['score']:.2f}" for box in boxes[:MAX_LABELS])
    made = el(
        "svg",
        {"class": "over", "viewBox": f"0 0 {width} {height}", "role": "img",
         "aria-label": shortened(f"{count(len(boxes))} boxes: {named}", 400)},
    )  # fmt: skip
    layer = el("g", {"class": "layer boxes", "font-size": letter})
    for box in reversed(boxes):
        corners = [box[side_] for side_ in ("x_min", "y_min", "x_max", "y_max")]
        said = f"{shortened(box['label'], _NAME)} {box['score']:.2f}"
        layer.append(_box(corners, said, box["score"], _colour(tints.get(box["label"], 0)), size))
    made.append(layer)
    if card.against is not None and len(card.against.xyxy):
        truth = el("g", {"class": "layer truth", "font-size": letter})
        some = zip(card.against.xyxy.tolist(), card.against.names, strict=True)
        for corners, label in list(some)[:MAX_BOXES]:
            truth.append(_box(corners, shortened(label, _NAME), None, "#ffffff", size))
        made.append(truth)
    return made


def _drawable(row: Row) -> list[dict[str, Any]]:
    """Return the boxes with a place; a network without a number for it has answered nowhere."""
    sides = ("x_min", "y_min", "x_max", "y_max")
    return [box for box in row.boxes or [] if all(math.isfinite(box[side]) for side in sides)]


def _box(
    corners: Sequence[float], said: str, score: float | None, tint: str, image_hw: tuple[int, int]
) -> Element:
    """Return a box with a tag that says its name; the tag stays inside the picture."""
    left, top, right, bottom = corners
    height, width = image_hw
    letter = _letter(height, width)
    tag = min(_letters(said) * 0.58 * letter + 0.5 * letter, width)
    x = max(0.0, min(left, width - tag))
    wanted = bottom if score is None else top - 1.3 * letter  # the truth's stands below
    y = max(0.0, min(wanted, height - 1.3 * letter))
    at = {"x": f"{left:.6g}", "y": f"{top:.6g}"}
    size = {"width": f"{max(right - left, 0):.6g}", "height": f"{max(bottom - top, 0):.6g}"}
    written = el(
        "g",
        {"class": "name"},
        el(
            "rect",
            {"x": f"{x:.6g}", "y": f"{y:.6g}", "width": f"{tag:.6g}",
             "height": f"{1.3 * letter:.6g}", "fill": tint},
        ),
        el(
            "text",
            {"x": f"{x + 0.25 * letter:.6g}", "y": f"{y + letter:.6g}", "fill": _on(tint),
             "textLength": f"{tag - 0.5 * letter:.6g}", "lengthAdjust": "spacingAndGlyphs"},
            said,
        ),
    )  # fmt: skip
    return el(
        "g",
        {"class": "box", "data-score": None if score is None else f"{score:.6g}"},
        el("rect", {"class": "halo", **at, **size}),
        el("rect", {"class": "edge", **at, **size, "stroke": tint}),
        written,
    )


def _letter(height: int, width: int) -> float:
    """Return the height of letters over a picture, in its pixels: as seen all are alike."""
    return _LINE * max(width, height * 4 / 3)  # a frame is 4 wide and 3 high


def _letters(said: str) -> float:
    """Return about how many letters wide a text is."""
    return sum(1.7 if unicodedata.east_asian_width(one) in "WF" else 1.0 for one in said)


def _on(tint: str) -> str:
    """Return black or white, whichever is read better on a colour."""
    red, green, blue = (int(tint[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.3 * red + 0.59 * green + 0.11 * blue > 110 else "#ffffff"


def _colour(value: int) -> str:
    """Return the colour of a mask's value."""
    red, green, blue = PALETTE[1 + (value - 1) % (VOID_CLASS - 1) if value > 0 else 0].tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def _swatch(value: int) -> Element:
    """Return a small square in a class's colour."""
    return el(
        "svg", {"class": "swatch", "viewBox": "0 0 1 1", "aria-hidden": "true"},
        el("rect", {"width": "1", "height": "1", "fill": _colour(value)}),
    )  # fmt: skip


def alternative(card: Card) -> str:
    """Return what a picture shows, in words."""
    row = card.row
    said = [f"{row.image_id}, {row.width} × {row.height} pixels"]
    if row.labels:
        best = row.labels[0]
        said.append(f"label {best['label']} {best['score']:.2f}")
    if row.boxes is not None:
        names = Counter(box["label"] for box in row.boxes).most_common(MAX_LABELS)
        told = ", ".join(f"{number} {label}" for label, number in names)
        said.append(f"boxes: {told}" if told else "no boxes")
    if row.mask_areas:
        said.append(f"mask: {_areas(row)}")
    return shortened("; ".join(said), 600)


def _areas(row: Row) -> str:
    whole = max((row.width or 1) * (row.height or 1), 1)
    areas = (row.mask_areas or [])[:MAX_LABELS]
    return ", ".join(f"{one['label']} {100 * one['area'] / whole:.0f} %" for one in areas)


def _answers(card: Card, tints: Tints) -> list[Element]:
    """Return what was found, in words under the picture."""
    row = card.row
    made = []
    if row.labels:
        chips = [
            el("li", {"class": "scored", "data-score": f"{one['score']:.6g}"},
               name(one["label"], _NAME), f" {one['score']:.2f}")
            for one in row.labels[:MAX_LABELS]
        ]  # fmt: skip
        made.append(el("ul", {"class": "chips", "aria-label": "Labels"}, *chips))
    if row.boxes:
        more = len(row.boxes) - MAX_BOXES
        cells = [
            el("li", {"class": "scored", "data-score": f"{box['score']:.6g}"},
               _swatch(tints.get(box["label"], 0)), name(box["label"], _NAME),
               f" {box['score']:.2f}")
            for box in row.boxes[:MAX_BOXES]
        ]  # fmt: skip
        told = f"{count(len(row.boxes))} box{'' if len(row.boxes) == 1 else 'es'}"
        if more > 0:
            told += f", the {MAX_BOXES} best drawn"
        made.append(fold(told, el("ul", {"class": "chips"}, *cells)))
    elif row.boxes is not None:
        made.append(paragraph("no boxes", kind="quiet"))
    if card.against is not None:
        made.append(_truth(card.against))
    return made


def _truth(against: Against) -> Element:
    """Return what the truth says, and how far it agrees."""
    words = {"labels": "labels", "boxes": "boxes", "mask": "pixels"}
    agreed = ", ".join(
        f"{words[column]} {100 * part:.0f} %" for column, part in against.agreement.items()
    )
    named = ", ".join(shortened(label, _NAME) for label in against.labels[:MAX_LABELS])
    made = el("p", {"class": "truth-said"}, el("b", {}, "Truth "))
    if named:
        made.append(name(named))
    made.append(el("span", {"class": "quiet"}, f" agrees: {agreed}" if agreed else ""))
    return made


def tints_of(classes: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the colour of every class: a name has the same in boxes and masks.

    classes: of the columns boxes and mask.
    """
    tints = {label: value for value, label in enumerate(classes.get("mask", ()))}
    for number, label in enumerate(classes.get("boxes", ())):
        tints.setdefault(label, number + 1)  # a mask's class 0 is the background
    return tints


def _legend(tints: Tints) -> list[Element]:
    """Return the colours of the classes, where they are few enough to be told apart."""
    if not 0 < len(tints) <= _MAX_LEGEND:
        return []
    items = [el("li", {}, _swatch(value), name(label, _NAME)) for label, value in tints.items()]
    return [el("ul", {"class": "legend", "aria-label": "Colours of the classes"}, *items)]
