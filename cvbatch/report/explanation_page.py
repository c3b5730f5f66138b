"""Report sections of an explanation: pictures of images and layers, failures, job file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

import pyarrow as pa

from cvbatch.core.errors import NotFoundError, SourceError
from cvbatch.core.redaction import redact
from cvbatch.core.types import Failure, InputKey
from cvbatch.images.decode import Limits, decode
from cvbatch.images.headers import read_header
from cvbatch.report.columns import Words
from cvbatch.report.evaluation_page import read_json
from cvbatch.report.facts import Facts
from cvbatch.report.gallery import assemble
from cvbatch.report.html import (
    Section,
    el,
    format_count,
    format_percent,
    metric_tiles,
    name_element,
    paragraph,
    shorten,
)
from cvbatch.report.overlays import ByteBudget, encode_photo, photo_side, thumbnail_hw
from cvbatch.report.prediction_page import failures_section, job_file_section
from cvbatch.report.statistics import equally_spaced
from cvbatch.storage import store
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage, TooLargeError

STATE = "_cvbatch/explain.json"
MAX_PICTURES = 300
_MAX_EXAMPLES = 4  # of images for each kind of failure
_MAX_PICTURE_BYTES = 64 << 20
_KINDS = {
    "gradcam": "Grad-CAM",
    "dream": "DeepDream",
    "activations": "Activations",
    "patterns": "Filter patterns",
    "weights": "Weights",
}
_LEAVES = {  # of the columns of an image, those that are read
    "activations": ("layer", "picture"),
    "heatmaps": ("label", "score", "layer", "picture"),
}
_WORDS = Words(statuses=_KINDS)


class Picture(NamedTuple):
    """A picture of an explanation."""

    kind: str  # a key of _KINDS
    name: str  # image id, or path of the layer
    path: str  # in the sink
    caption: str
    label: str = ""
    score: float | None = None


@dataclass
class Explanation:
    """State and pictures of an explanation."""

    storage: Storage
    uri: str
    state: dict[str, Any]
    of_network: list[Picture] = field(default_factory=list)
    of_images: dict[str, list[Picture]] = field(default_factory=dict)  # by image id
    num_images: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # "stage/kind" → images
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # → image id, message


def load(storage: Storage, uri: str) -> Explanation:
    """Read the state and the tables of an explanation, without its arrays.

    Raises:
        SourceError: a file is damaged.
    """
    uri = store.absolute(uri)
    explanation = Explanation(storage, uri, read_json(storage, store.join(uri, STATE)) or {})
    for kind in ("patterns", "weights"):
        for table_uri in _tables(storage, store.join(uri, kind)):
            with _damage_reported(table_uri):
                rows = _read(storage, table_uri, ["layer", "picture"])
                for row in rows[:1]:  # all filters of a layer are in one picture
                    num_filters = format_count(len(rows), "filter")
                    picture = Picture(kind, row["layer"], row["picture"], num_filters)
                    explanation.of_network.append(picture)
    leaves = [f"{name}.list.element.{leaf}" for name, names in _LEAVES.items() for leaf in names]
    columns = ["image_id", "status", "error", "dream.path", *leaves]
    for table_uri in _tables(storage, store.join(uri, "images")):
        with _damage_reported(table_uri):
            for row in _read(storage, table_uri, columns):
                _add_image(explanation, row)
    return explanation


def _tables(storage: Storage, uri: str) -> list[str]:
    names = sorted(storage.list_names(uri))
    return [store.join(uri, name) for name in names if name.endswith(".parquet")]


def _read(storage: Storage, uri: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return columns or leaves of a Parquet file, those that it has."""
    with storage.open_input(uri) as source:
        file = ParquetFile(source)
        names = set(file.schema_arrow.names)
        present = [column for column in columns if column.split(".")[0] in names]
        rows: list[dict[str, Any]] = file.read(present).to_pylist()
    return rows


@contextmanager
def _damage_reported(uri: str) -> Iterator[None]:
    """Raise SourceError for a file that is not as cvbatch writes it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise SourceError(
            f"{uri} cannot be read as Parquet of an explanation ({str(error)[:200]}); explain "
            "again with --overwrite"
        ) from None


def _add_image(explanation: Explanation, row: Mapping[str, Any]) -> None:
    explanation.num_images += 1
    image_id = row["image_id"]
    if row["status"] != "ok":
        error = row["error"] or {"stage": "", "kind": "unknown", "message": ""}
        kind = f"{error['stage']}/{error['kind']}"
        explanation.failures[kind] += 1
        examples = explanation.examples.setdefault(kind, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append((image_id, error["message"]))
        return
    pictures = [
        Picture("gradcam", image_id, heatmap["picture"],
                f"{shorten(heatmap['label'], 60)} {heatmap['score']:.2f}, layer {heatmap['layer']}",
                heatmap["label"], heatmap["score"])
        for heatmap in row.get("heatmaps") or []
    ]  # fmt: skip
    if row.get("dream"):
        pictures.append(Picture("dream", image_id, row["dream"]["path"], ""))
    pictures += [
        Picture("activations", image_id, layer["picture"], f"layer {layer['layer']}")
        for layer in row.get("activations") or []
    ]
    explanation.of_images[image_id] = pictures


def sections(explanation: Explanation, images: ByteBudget) -> list[Section]:
    """Return summary, pictures, failures and job file."""
    pictures, text = _choose(explanation)
    body: list[Element] = [paragraph(text)]
    if pictures:
        body += _gallery(explanation, pictures, images)
    result = [
        Section("counts", "Summary", _summary(explanation)),
        Section("gallery", "Pictures", body),
    ]
    if explanation.failures:
        result.append(failures_section(explanation.failures, explanation.examples))
    job = job_file_section(explanation.state.get("job"))
    return [*result, job] if job else result


def _summary(explanation: Explanation) -> list[Element]:
    job = explanation.state.get("job") or {}
    model = job.get("model") or {}
    num_failed = explanation.failures.total()
    counts = Counter(
        picture.kind
        for pictures in (explanation.of_network, *explanation.of_images.values())
        for picture in pictures
    )
    tiles = [
        ("Network", shorten(redact(str(model.get("model", "–"))), 40), str(model.get("task", ""))),
        ("Images", format_count(explanation.num_images), ""),
        ("Failed", format_count(num_failed), format_percent(num_failed, explanation.num_images)),
        ("Pictures", format_count(counts.total()), ""),
        *(
            (title, format_count(counts[kind]), "")
            for kind, title in _KINDS.items()
            if counts[kind]
        ),
    ]
    body = [metric_tiles(tiles)]
    if not explanation.state.get("is_complete"):
        text = "The explanation is not complete: run the same command again to resume."
        body.append(paragraph(text, kind="note"))
    return body


def _choose(explanation: Explanation) -> tuple[list[Picture], str]:
    """Return the pictures to show, and how they were chosen as text."""
    pictures = explanation.of_network[:MAX_PICTURES]
    names = list(explanation.of_images)
    total = sum(map(len, explanation.of_images.values()))
    count = len(names)
    if len(pictures) + total > MAX_PICTURES:
        count = max(1, (MAX_PICTURES - len(pictures)) * len(names) // max(total, 1))
    chosen = equally_spaced(len(names), count)
    pictures += [picture for i in chosen for picture in explanation.of_images[names[i]]]
    pictures = pictures[:MAX_PICTURES]
    if not pictures:
        return [], "There is no picture to show."
    of = "all" if len(chosen) == len(names) else f"{len(chosen)} at equal distances of"
    return (
        pictures,
        f"Shown: pictures of {of} {format_count(len(names), 'image')} and of the network.",
    )


def _gallery(
    explanation: Explanation, pictures: Sequence[Picture], images: ByteBudget
) -> list[Element]:
    facts = Facts()
    figures = []
    photo_bytes = images.share(len(pictures))
    for picture in pictures:
        figures.append(_card(explanation, picture, images, photo_bytes))
        facts.cards.append(_facts(facts, picture))
    return assemble(figures, facts, {}, _WORDS)


def _facts(facts: Facts, picture: Picture) -> dict[str, Any]:
    return {
        "id": picture.name, "uri": picture.path, "status": "ok", "error": "", "width": 0,
        "height": 0, "score": picture.score, "predicted": shorten(picture.caption), "boxes": None,
        "classes": [facts.class_index(picture.label)] if picture.label else [],
        "changes": [picture.kind],
    }  # fmt: skip


def _card(
    explanation: Explanation, picture: Picture, images: ByteBudget, photo_bytes: float
) -> Element:
    """Return one picture with its caption."""
    data = _encode(explanation, picture, photo_bytes)
    source = data and images.embed(data, "webp")
    kind = _KINDS[picture.kind]
    stage = el("span", {"class": "stage"})
    if source:
        alt = shorten(f"{kind} of {picture.name} {picture.caption}", 300)
        attributes = {"class": "photo", "src": source, "alt": alt, "loading": "lazy"}
        stage.append(el("img", attributes))
    else:
        stage.append(el("span", {"class": "lacks"}, "the picture cannot be read"))
    text = f"{kind}: {picture.caption}" if picture.caption else kind
    caption = el("figcaption", {}, el("h3", {}, name_element(picture.name, 80)),
                 paragraph(shorten(text, 200)))  # fmt: skip
    button = el("button", {"type": "button", "class": "open"}, stage)
    return el("figure", {"class": "card"}, button, caption)


def _encode(explanation: Explanation, picture: Picture, max_bytes: float) -> bytes | None:
    """Return a picture of the sink as WebP; None if it cannot be read."""
    parts = picture.path.split("/")
    if parts[0] != "pictures" or ".." in parts:  # not written by cvbatch
        return None
    try:
        uri = store.join(explanation.uri, *parts)
        data = explanation.storage.read_bytes(uri, _MAX_PICTURE_BYTES)
    except (NotFoundError, TooLargeError):
        return None
    limits = Limits()
    header = read_header(data, limits)
    if isinstance(header, Failure):
        return None
    height, width = thumbnail_hw(*header.upright_hw, photo_side(max_bytes))
    key = InputKey(height, width, "stretch")
    decoded = decode(data, [key], limits)
    return None if isinstance(decoded, Failure) else encode_photo(decoded.pixels[key], max_bytes)
