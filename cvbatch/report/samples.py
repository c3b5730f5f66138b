"""Read the rows that the gallery shows, with their images decoded at thumbnail size."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from cvbatch.core.errors import StoreError
from cvbatch.core.redaction import hidden
from cvbatch.core.types import ChunkRef, EncodedImage, Failure
from cvbatch.report.disagreements import Against
from cvbatch.report.overlays import fitted_hw
from cvbatch.report.statistics import Pick
from cvbatch.results.parts import take_rows
from cvbatch.results.result import Result, Row

_MAX_SEQUENTIAL_BYTES = 512 << 20  # of a file that is read up to its last image that is shown


@dataclass
class Card:
    """An image of the gallery."""

    row: Row
    groups: set[str] = field(default_factory=set)
    against: Against | None = None
    pixels: np.ndarray | None = None  # (h, w, 3) uint8 RGB, at the size it is shown
    lacks: str = ""  # why there are no pixels


def read_cards(
    result: Result, picks: Mapping[Pick, set[str]], against: Mapping[Pick, Against]
) -> list[Card]:
    """Return the picked rows with their images.

    Args:
        result: of the picks.
        picks: the rows, each with the groups of the gallery that it is in.
        against: the labels of some of them.

    Returns:
        A card for each pick, in their order. A card says why its image cannot be read, if so.

    Raises:
        SourceError: a part is damaged.
    """
    by_chunk: dict[ChunkRef, list[int]] = {}
    for pick in picks:
        by_chunk.setdefault(pick.ref, []).append(pick.row)
    cards: dict[Pick, Card] = {}
    store_error = ""  # after one, the store is not asked for other images
    for ref, rows in by_chunk.items():
        table = take_rows(result.storage, result.uri_of(ref), np.array(rows), None)
        for number, values in zip(rows, table.to_pylist(), strict=True):
            pick = Pick(ref, number)
            row = Row.of(values, result, ref)
            cards[pick] = Card(row, set(picks[pick]), against.get(pick))
        chosen = [cards[Pick(ref, number)] for number in rows]
        encoded: dict[str, EncodedImage] = {}
        if not store_error:
            wanted = {card.row.image_id for card in chosen if card.row.error is None}
            encoded, store_error = _encoded(result, ref, wanted)
        for card in chosen:
            _decode(card, encoded.get(card.row.image_id), store_error)
    return [cards[pick] for pick in picks]


def _encoded(
    result: Result, ref: ChunkRef, wanted: Collection[str]
) -> tuple[dict[str, EncodedImage], str]:
    """Return the images of a chunk that can be read, and the error of their store."""
    if result.reader.format.is_sequential and ref.size_bytes > _MAX_SEQUENTIAL_BYTES:
        return {}, ""
    try:
        return {image.image_id: image for image in result.images(ref, wanted)}, ""
    except StoreError as error:
        return {}, f"the store of the images cannot be read: {error}"


def _decode(card: Card, image: EncodedImage | None, store_error: str) -> None:
    """Decode a card's image as large as it is shown, or record why that is not possible."""
    row = card.row
    if row.error is not None:
        card.lacks = f"failed: {row.error.kind}"
        return
    if (image is None or image.failure) and card.against and card.against.data is not None:
        image = EncodedImage(row.image_id, row.uri, card.against.data)  # stored with the labels
    pixels = row.decoded(image, fitted_hw(*row.size_hw))
    if isinstance(pixels, Failure):
        why = store_error if image is None and store_error else pixels.message
        card.lacks = hidden(f"no picture: {why}")
    else:
        card.pixels = pixels
