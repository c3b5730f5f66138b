"""Report sections of two results side by side: counts of changes, and the changed images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np
import pyarrow as pa

from cvbatch.core.progress import Listener
from cvbatch.core.redaction import redact
from cvbatch.report.cards import CardStyle
from cvbatch.report.columns import BOX_SCORE, class_colours
from cvbatch.report.facts import Facts
from cvbatch.report.gallery import GalleryText, gallery, with_progress
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
from cvbatch.report.prediction_page import PHOTO_SHARE
from cvbatch.report.result_changes import (
    CHANGES,
    Changes,
    Pair,
    compare_pair,
    comparison_spec,
    find_changes,
)
from cvbatch.report.samples import Card, read_cards
from cvbatch.report.statistics import SEED
from cvbatch.results.result import Result

MAX_IMAGES = 400
_MAX_CHANGES = 100  # rows of the table of class changes
_MAX_NAMED = 20  # images that are in one result only
_OUTCOMES = {"tp": "Kept", "fp": "Gained", "miss": "Lost"}
_TEXT = GalleryText(truth="Predictions of A", outcomes=_OUTCOMES, statuses=CHANGES)


@dataclass(frozen=True)
class ResultPair:
    """Two results and their differences."""

    a: Result
    b: Result
    changes: Changes

    @classmethod
    def of(cls, a: Result, b: Result, listener: Listener) -> ResultPair:
        """Compare two results. Raises SourceError and ConfigError, as `find_changes`."""
        return cls(a, b, find_changes(a, b, listener))


def sections(
    pair: ResultPair, images: ByteBudget, page_uri: str, listener: Listener
) -> list[Section]:
    """Return summary, changes of classes, changed images, and images in one result only."""
    result = [Section("counts", "Summary", _summary(pair))]
    class_changes = pair.changes.class_changes()
    if class_changes:
        result.append(Section("class-changes", "Changed classes", [_class_table(pair)]))
    body = _gallery(pair, images, page_uri, listener)
    result.append(Section("gallery", "Changed images", body))
    if len(pair.changes.only_a) or len(pair.changes.only_b):
        result.append(Section("only", "In one result only", _only(pair.changes)))
    return result


def _summary(pair: ResultPair) -> list[Element]:
    changes, counts = pair.changes, pair.changes.counts()
    gained = sum(change.gained for change in changes.images.values())
    lost = sum(change.lost for change in changes.images.values())
    columns = {name for name in pair.b.footer.columns if name in pair.a.footer.columns}
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
        for name, result in (("A", pair.a), ("B", pair.b))
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
    return [*body, *_column_notes(pair)]


def _column_notes(pair: ResultPair) -> list[Element]:
    """Return notes on columns and classes that only one of the results has."""
    notes = []
    for first, second, name in ((pair.a, pair.b, "A"), (pair.b, pair.a, "B")):
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


def _class_table(pair: ResultPair) -> Element:
    """Return the changes of the best label, the most frequent first; numbers filter the gallery."""
    counts = pair.changes.class_changes().most_common(_MAX_CHANGES)
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
    pair: ResultPair, images: ByteBudget, page_uri: str, listener: Listener
) -> list[Element]:
    changed = list(pair.changes.images)
    if not changed:
        return [paragraph("The predictions of all compared images are the same.")]
    text = f"Shown: all {format_count(len(changed), 'changed image')}."
    if len(changed) > MAX_IMAGES:
        rng = np.random.default_rng(SEED)
        numbers = np.sort(rng.choice(len(changed), MAX_IMAGES, replace=False)).tolist()
        text = f"Shown: {MAX_IMAGES} of {len(changed):,} changed images at random (seed {SEED})."
        changed = [changed[i] for i in numbers]
    classes = {
        column: list(dict.fromkeys([*names, *pair.a.classes.get(column, ())]))
        for column, names in pair.b.classes.items()
    }
    style = CardStyle(
        class_colours(classes),
        page_uri,
        links_files=pair.b.reader.format.key == "",
        truth="A:",
        missed="lost",
        verdicts=("same class", "other class"),
        outcomes={"tp": "kept", "fp": "gained"},
    )
    photo_bytes = images.share(len(changed)) * PHOTO_SHARE
    listener.phase("drawing the report", len(changed), "images")
    cards = with_progress(_cards(pair, changed, photo_bytes), listener)
    facts = Facts(is_multi_label=pair.b.is_multi_label)
    return [paragraph(text), *gallery(cards, len(changed), style, facts, images, _TEXT)]


def _cards(
    pair: ResultPair, changed: Sequence[Pair], photo_bytes: float
) -> Iterator[tuple[Card, Sequence[str]]]:
    """Yield the changed images of B, compared with A, with their kinds of changes."""
    spec = comparison_spec(pair.a, pair.b)
    comparisons = {
        item.b: compare_pair(spec, pair.a, pair.b, item)
        for item in changed
        if not pair.changes.images[item].kinds[0].startswith("failed")
    }
    cards = read_cards(pair.b, [item.b for item in changed], comparisons, photo_bytes)
    for item, card in zip(changed, cards, strict=True):  # both are in the order of B
        yield card, pair.changes.images[item].kinds


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
