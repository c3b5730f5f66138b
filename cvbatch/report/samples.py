"""The rows that a gallery shows, with their images: picked by place, read once, made small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cvbatch.core.errors import SourceError, StoreError
from cvbatch.core.redaction import hidden
from cvbatch.core.types import EncodedImage, Failure, InputKey
from cvbatch.images.decode import decode
from cvbatch.report.disagreements import Against
from cvbatch.report.overlays import fitted_hw
from cvbatch.report.statistics import Pick
from cvbatch.results.parts import read_batches
from cvbatch.results.result import Result, Row

_MAX_SEQUENTIAL_BYTES = 512 << 20  # of a file that is read up to its last image that is shown
_ROWS_AT_ONCE = 64


@dataclass
class Card:
    """An image of the gallery."""

    row: Row
    groups: set[str] = field(default_factory=set)
    against: Against | None = None
    pixels: np.ndarray | None = None  # (h, w, 3) uint8 RGB, as large as it is shown
    lacks: str = ""  # why there are no pixels


def read_cards(
    result: Result, picks: Mapping[Pick, set[str]], against: Mapping[Pick, Against]
) -> list[Card]:
    """Return the picked rows with their images, in the order of the picks.

    Raises:
        SourceError: a part is damaged. An image that cannot be had is a word on its card.
    """
    by_chunk: dict[str, list[Pick]] = {}
    for pick in picks:
        by_chunk.setdefault(pick.ref.chunk_id, []).append(pick)
    cards: dict[Pick, Card] = {}
    away = ""  # why the store of the images is not asked again
    for chosen in by_chunk.values():
        ref = chosen[0].ref
        rows = _rows(result, chosen)
        some = {
            pick: Card(result.row(rows[pick.row], ref), set(picks[pick]), against.get(pick))
            for pick in chosen
            if pick.row in rows
        }
        wanted = {card.row.image_id for card in some.values() if card.row.error is None}
        encoded: dict[str, EncodedImage] = {}
        if not away:
            encoded, away = _encoded(result, chosen[0], wanted)
        for card in some.values():
            _lay(card, encoded.get(card.row.image_id), away, result)
        cards |= some
    return [cards[pick] for pick in picks if pick in cards]


def _rows(result: Result, picks: Sequence[Pick]) -> dict[int, dict[str, Any]]:
    """Return the picked rows of one part as plain values."""
    wanted, last = {pick.row for pick in picks}, max(pick.row for pick in picks)
    found: dict[int, dict[str, Any]] = {}
    first = 0
    for batch in read_batches(result.parts.uri_of(picks[0].ref), None, _ROWS_AT_ONCE):
        for row in sorted(wanted & set(range(first, first + batch.num_rows))):
            found[row] = batch.slice(row - first, 1).to_pylist()[0]
        first += batch.num_rows
        if first > last:
            break
    return found


def _encoded(result: Result, pick: Pick, wanted: set[str]) -> tuple[dict[str, EncodedImage], str]:
    """Return the images of one chunk that can be had, and why the store gives none, if so."""
    is_sequential = result.parts.reader.format.is_sequential
    if is_sequential and pick.ref.size_bytes > _MAX_SEQUENTIAL_BYTES:
        return {}, ""
    try:
        found = result.parts.encoded(pick.ref, wanted, result.limits.max_bytes)
        return {image.image_id: image for image in found}, ""
    except StoreError as error:
        return {}, f"the images' store gives none: {error}"


def _lay(card: Card, image: EncodedImage | None, away: str, result: Result) -> None:
    """Decode a card's image as large as it is shown, or note why there is none."""
    row = card.row
    if row.error is not None:
        card.lacks = f"failed: {row.error.kind}"
        return
    if row.height is None or row.width is None:
        raise SourceError(f"{result.uri}: {row.image_id!r} is ok and has no size; predict again")
    key = InputKey(*fitted_hw(row.height, row.width), "stretch")
    data = image.data if image and not image.failure else None
    why = image.failure if image else Failure("read", "missing", away or "it is not there")
    if data is None and card.against is not None:
        data = card.against.data  # the truth holds the image too
    if data is not None:
        decoded = decode(data, [key], result.limits)
        if isinstance(decoded, Failure):
            why = decoded
        elif (decoded.height, decoded.width) == (row.height, row.width):
            card.pixels = decoded.pixels[key]
            return
        else:
            why = Failure("read", "changed", f"it is {decoded.width} × {decoded.height} now")
    card.lacks = hidden(f"no picture: {why.message if why else 'it is not there'}")
