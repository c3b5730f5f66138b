"""Report sections of two results side by side: counts of changes, and the changed images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

import numpy as np
import pyarrow as pa

from cvbatch.core.progress import Listener
from cvbatch.core.redaction import redact
from cvbatch.report.cards import CardStyle
from cvbatch.report.columns import BOX_SCORE, Words, class_colours
from cvbatch.report.facts import Facts
from cvbatch.report.gallery import gallery
from cvbatch.report.html import (
    Section,
    el,
    format_count,
    format_percent,
    metric_tiles,
    name_element,
    paragraph,
    shorten,
    table,
)
from cvbatch.report.overlays import ByteBudget
from cvbatch.report.result_changes import CHANGES, Changes, Pair, compare_pairs
from cvbatch.report.samples import Card, read_cards
from cvbatch.report.statistics import SEED

MAX_IMAGES = 400
_MAX_CHANGES = 100  # rows of the table of class changes
_MAX_NAMED = 20  # images that are in one result only
_WORDS = Words(
    truth="Predictions of A",
    marks={"tp": "kept", "fp": "gained", "miss": "lost"},
    verdicts=("same class", "other class"),
    outcomes={"tp": "Kept", "fp": "Gained", "miss": "Lost"},
    statuses=CHANGES,
)


def sections(
    changes: Changes, images: ByteBudget, page_uri: str, listener: Listener
) -> list[Section]:
    """Return summary, changes of classes, changed images, and images in one result only."""
    result = [Section("counts", "Summary", _summary(changes))]
    class_changes = changes.class_changes()
    if class_changes:
        result.append(Section("class-changes", "Changed classes", [_class_table(changes)]))
    body = _gallery(changes, images, page_uri, listener)
    result.append(Section("gallery", "Changed images", body))
    if len(changes.only_a) or len(changes.only_b):
        result.append(Section("only", "In one result only", _only(changes)))
    return result


def _summary(changes: Changes) -> list[Element]:
    counts = changes.counts()
    gained = sum(change.gained for change in changes.images.values())
    lost = sum(change.lost for change in changes.images.values())
    columns = {name for name in changes.b.footer.columns if name in changes.a.footer.columns}
    needed = {"class": "labels", "gained": "boxes", "lost": "boxes", "mask": "mask_areas"}
    tiles = [
        ("Images in both", format_count(changes.num_common), ""),
        ("Changed", format_count(len(changes.images)),
         format_percent(len(changes.images), changes.num_compared)),
    ]  # fmt: skip
    notes = {"gained": f"{gained:,} boxes", "lost": f"{lost:,} boxes"}
    for kind, title in CHANGES.items():
        if needed.get(kind, "image_id") in columns | {"image_id"}:
            note = notes.get(kind) or format_percent(counts[kind], changes.num_compared)
            tiles.append((title, format_count(counts[kind]), note))
    where = [
        el("li", {}, el("b", {}, f"{name}: "), el("code", {}, shorten(redact(result.uri), 300)))
        for name, result in (("A", changes.a), ("B", changes.b))
    ]
    text = (
        f"Boxes count from a score of {BOX_SCORE}; two boxes of one class are the same from an "
        "IoU of 0.5. A mask counts as changed if the areas of its classes differ by more than "
        "1 % of the pixels."
    )
    body = [
        el("ul", {"class": "plain"}, *where),
        metric_tiles(tiles),
        paragraph(text, kind="quiet"),
    ]
    if changes.num_compared < changes.num_common:
        text = (
            f"{format_count(changes.num_compared)} of {format_count(changes.num_common)} common "
            "images were compared, a sample of the files at equal distances."
        )
        body.append(paragraph(text, kind="note"))
    return [*body, *_column_notes(changes)]


def _column_notes(changes: Changes) -> list[Element]:
    """Return notes on columns and classes that only one of the results has."""
    notes = []
    for first, second, name in ((changes.a, changes.b, "A"), (changes.b, changes.a, "B")):
        columns = [column for column in first.classes if column not in second.classes]
        if columns:
            notes.append(f"Only {name} has {', '.join(columns)}, which are not compared.")
        for column, names in first.classes.items():
            other = set(second.classes.get(column, names))
            absent = [label for label in names if label not in other]
            if absent:
                listed = ", ".join(shorten(label, 40) for label in absent[:8])
                notes.append(f"Classes of {column} that only {name} has: {listed}.")
    return [paragraph(note, kind="note") for note in notes]


def _class_table(changes: Changes) -> Element:
    """Return the changes of the best label, the most frequent first; numbers filter the gallery."""
    counts = changes.class_changes().most_common(_MAX_CHANGES)
    rows = []
    for (label_a, label_b), number in counts:
        cell = json.dumps(["labels", shorten(label_a), shorten(label_b)])
        link = el(
            "a", {"href": "#gallery", "class": "confusion", "data-cell": cell,
                  "aria-label": f"{format_count(number, 'image')}: {shorten(label_a)} to "
                                f"{shorten(label_b)}, show images"},
            format_count(number),
        )  # fmt: skip
        rows.append((name_element(label_a or "none"), name_element(label_b or "none"), link))
    title = "Best label in A and in B; a number shows its images"
    return table(title, ("A", "B", "images"), rows, "ttn")


def _gallery(
    changes: Changes, images: ByteBudget, page_uri: str, listener: Listener
) -> list[Element]:
    changed = list(changes.images)
    if not changed:
        return [paragraph("The predictions of all compared images are the same.")]
    text = f"Shown: all {format_count(len(changed), 'changed image')}."
    if len(changed) > MAX_IMAGES:
        rng = np.random.default_rng(SEED)
        numbers = np.sort(rng.choice(len(changed), MAX_IMAGES, replace=False)).tolist()
        text = f"Shown: {MAX_IMAGES} of {len(changed):,} changed images at random (seed {SEED})."
        changed = [changed[i] for i in numbers]
    classes = {
        column: list(dict.fromkeys([*names, *changes.a.classes.get(column, ())]))
        for column, names in changes.b.classes.items()
    }
    style = CardStyle(
        class_colours(classes),
        page_uri,
        links_files=changes.b.reader.format.key == "",
        words=_WORDS,
    )
    cards = _cards(changes, changed, images)
    facts = Facts(is_multi_label=changes.b.is_multi_label)
    body = gallery(cards, len(changed), style, facts, images, listener)
    return [paragraph(text), *body]


def _cards(changes: Changes, changed: Sequence[Pair], images: ByteBudget) -> Iterator[Card]:
    """Yield the changed images of B, compared with A."""
    kinds = {pair.b: changes.images[pair].kinds for pair in changed}
    both_ok = [pair for pair in changed if not kinds[pair.b][0].startswith("failed")]
    comparisons = compare_pairs(changes, both_ok)
    cards = read_cards(changes.b, kinds, comparisons, images)
    for card, card_kinds in zip(cards, kinds.values(), strict=True):  # both in the order of B
        card.changes = card_kinds
        yield card


def _only(changes: Changes) -> list[Element]:
    """Return ids of images that are in one result only."""
    elements = []
    for name, ids in (("A", changes.only_a), ("B", changes.only_b)):
        if len(ids):
            elements.append(paragraph(f"Only in {name}: {format_count(len(ids), 'image')}."))
            elements.append(_names(ids))
    return elements


def _names(ids: pa.Array) -> Element:
    names = ids.slice(0, _MAX_NAMED).to_pylist()
    items = [el("li", {}, name_element(name)) for name in names]
    more = len(ids) - len(names)
    if more:
        items.append(el("li", {"class": "quiet"}, f"and {more:,} more"))
    return el("ul", {"class": "plain"}, *items)
