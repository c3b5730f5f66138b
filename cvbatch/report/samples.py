"""Choose and load the images of the report's gallery."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from cvbatch.core.errors import StoreError
from cvbatch.core.redaction import redact
from cvbatch.core.types import ChunkRef, EncodedImage, Failure
from cvbatch.report.disagreements import LabelComparison
from cvbatch.report.overlays import thumbnail_hw
from cvbatch.report.statistics import RowRef
from cvbatch.results.parts import take_rows
from cvbatch.results.result import Result, Row

_MAX_SEQUENTIAL_BYTES = 512 << 20  # of a container that is read only from the start, such as a tar


@dataclass
class Card:
    """An image of the gallery."""

    row: Row
    groups: set[str] = field(default_factory=set)
    comparison: LabelComparison | None = None
    pixels: np.ndarray | None = None  # (h, w, 3) uint8 RGB, of the displayed size
    missing_reason: str = ""  # why there are no pixels


def read_cards(
    result: Result,
    row_groups: Mapping[RowRef, set[str]],
    comparisons: Mapping[RowRef, LabelComparison],
) -> list[Card]:
    """Return rows of a result with their images decoded at thumbnail size.

    Args:
        result: the prediction.
        row_groups: the rows to read → groups of the gallery that each row is in.
        comparisons: the rows that were compared with labels.

    Returns:
        A card for each row, in the order of `row_groups`. An image that cannot be read is
        reported in its card.

    Raises:
        SourceError: a part file is damaged.
    """
    by_chunk: dict[ChunkRef, list[int]] = {}
    for row_ref in row_groups:
        by_chunk.setdefault(row_ref.ref, []).append(row_ref.row)
    cards: dict[RowRef, Card] = {}
    store_error = ""  # after the first one no further image is requested
    for ref, row_numbers in by_chunk.items():
        table = take_rows(result.storage, result.uri_of(ref), np.array(row_numbers), None)
        chunk_cards = []
        for number, values in zip(row_numbers, table.to_pylist(), strict=True):
            row_ref = RowRef(ref, number)
            row = Row.of(values, result, ref)
            cards[row_ref] = Card(row, set(row_groups[row_ref]), comparisons.get(row_ref))
            chunk_cards.append(cards[row_ref])
        encoded: dict[str, EncodedImage] = {}
        if not store_error:
            image_ids = {card.row.image_id for card in chunk_cards if card.row.error is None}
            encoded, store_error = _read_images(result, ref, image_ids)
        for card in chunk_cards:
            _decode(card, encoded.get(card.row.image_id), store_error)
    return [cards[row_ref] for row_ref in row_groups]


def _read_images(
    result: Result, ref: ChunkRef, image_ids: Collection[str]
) -> tuple[dict[str, EncodedImage], str]:
    """Return the readable images of a chunk by id, and the error of the image store or ""."""
    if result.reader.format.is_sequential and ref.size_bytes > _MAX_SEQUENTIAL_BYTES:
        return {}, ""
    try:
        return {image.image_id: image for image in result.images(ref, image_ids)}, ""
    except StoreError as error:
        return {}, f"the images cannot be read: {error}"


def _decode(card: Card, image: EncodedImage | None, store_error: str) -> None:
    """Decode a card's image at the displayed size, or record why this is not possible."""
    row = card.row
    if row.error is not None:
        card.missing_reason = f"failed: {row.error.kind}"
        return
    label_image = card.comparison.data if card.comparison else None
    if label_image is not None and (image is None or image.failure):
        image = EncodedImage(row.image_id, row.uri, label_image)
    pixels = row.decoded(image, thumbnail_hw(*row.size_hw))
    if isinstance(pixels, Failure):
        reason = store_error if image is None and store_error else pixels.message
        card.missing_reason = redact(f"no image: {reason}")
    else:
        card.pixels = pixels
