"""Choose the images of the gallery, and load them one after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cvbatch.core.errors import StoreError
from cvbatch.core.redaction import redact
from cvbatch.core.types import ChunkRef, EncodedImage, Failure
from cvbatch.report.columns import COLUMN_PAGES
from cvbatch.report.html import format_count
from cvbatch.report.outcomes import LabelComparison
from cvbatch.report.overlays import ByteBudget, encode_photo, photo_side, thumbnail_hw
from cvbatch.report.statistics import MAX_COMPLETE, SEED, RowRef, Statistics
from cvbatch.results.parts import take_rows
from cvbatch.results.result import Result, Row

_MAX_SEQUENTIAL_BYTES = 512 << 20  # of a container that is read only from the start, such as a tar
_PHOTO_SHARE = 0.75  # of the bytes of images; masks and heatmaps have the rest
_MAX_CLASS_IMAGES = 48  # in a sample, chosen by their class


@dataclass
class Card:
    """An image of the gallery.

    Attributes:
        row: with the predictions.
        comparison: with labels, or with another result; None: there are none.
        photo: the image as WebP; None: it cannot be read.
        missing_reason: why there is no photo.
        changes: kinds of its differences between two results.
    """

    row: Row
    comparison: LabelComparison | None = None
    photo: bytes | None = None
    missing_reason: str = ""
    changes: Sequence[str] = ()


def is_sample(statistics: Statistics) -> bool:
    """Return whether the gallery shows a sample, not all rows."""
    return not statistics.is_complete or statistics.num_rows > MAX_COMPLETE


def choose_rows(result: Result, statistics: Statistics) -> tuple[list[RowRef], str]:
    """Return the rows of the gallery, and how they were chosen as text."""
    rows = statistics.random_rows()
    if not is_sample(statistics):
        return rows, f"all {format_count(len(rows), 'image')}"
    low, by_class = statistics.least_confident_rows(), _rows_by_class(result, statistics)
    text = f"{len(rows)} images at random (seed {SEED})"
    if low:
        text += f", the {len(low)} least confident and {len(by_class)} examples of the classes"
    return list(dict.fromkeys([*rows, *low, *by_class])), text


def _rows_by_class(result: Result, statistics: Statistics) -> list[RowRef]:
    """Return rows that show the classes of the first column that has any."""
    for column, page in COLUMN_PAGES.items():
        by_class = statistics.rows_of_class(page.counted_column)
        if column in result.classes and by_class:
            num_images = statistics.num_images[page.counted_column]
            order = sorted(by_class, key=lambda k: (-num_images[k], k))[:_MAX_CLASS_IMAGES]
            per_class = max(1, _MAX_CLASS_IMAGES // len(order))
            return list(dict.fromkeys(ref for k in order for ref in by_class[k][:per_class]))
    return []


def read_cards(
    result: Result,
    row_refs: Collection[RowRef],
    comparisons: Mapping[RowRef, LabelComparison],
    images: ByteBudget,
) -> Iterator[Card]:
    """Yield rows of a result with their images, in the order of the result.

    One encoded image is in memory at a time.

    Args:
        result: the prediction.
        row_refs: the rows to read.
        comparisons: the rows that were compared with labels.
        images: limit of the bytes of all images of the page, which the rows share.

    Yields:
        A card for each row. An image that cannot be read is reported in its card.

    Raises:
        SourceError: a part file is damaged.
    """
    photo_bytes = images.share(len(row_refs)) * _PHOTO_SHARE
    by_chunk: dict[ChunkRef, list[int]] = {}
    for row_ref in row_refs:
        by_chunk.setdefault(row_ref.ref, []).append(row_ref.row)
    store_error = ""  # after the first one no further image is requested
    for ref in result.done:
        numbers = sorted(by_chunk.get(ref, ()))
        if not numbers:
            continue
        table = take_rows(result.storage, result.uri_of(ref), np.array(numbers), None)
        cards = [
            Card(Row.of(values, result, ref), comparisons.get(RowRef(ref, number)))
            for number, values in zip(numbers, table.to_pylist(), strict=True)
        ]
        store_error = store_error or _read_images(result, ref, cards, photo_bytes)
        for card in cards:
            if card.photo is None and not card.missing_reason:
                _add_photo(card, None, store_error, photo_bytes)
        cards.reverse()
        while cards:  # a row that was shown is freed, with its decoded mask
            yield cards.pop()


def _read_images(result: Result, ref: ChunkRef, cards: Sequence[Card], photo_bytes: float) -> str:
    """Add the readable images of a chunk to their cards; return the error of the store or ""."""
    if result.reader.format.is_sequential and ref.size_bytes > _MAX_SEQUENTIAL_BYTES:
        return ""
    by_id = {card.row.image_id: card for card in cards if card.row.error is None}
    try:
        for image in result.images(ref, by_id.keys()):
            _add_photo(by_id[image.image_id], image, "", photo_bytes)
    except StoreError as error:
        return f"the images cannot be read: {error}"
    return ""


def _add_photo(
    card: Card, image: EncodedImage | None, store_error: str, photo_bytes: float
) -> None:
    """Add the image of a card at the displayed size, or record why this is not possible."""
    row = card.row
    if row.error is not None:
        card.missing_reason = f"failed: {row.error.kind}"
        return
    if card.comparison and (image is None or image.failure):
        stored = card.comparison.stored_image()
        image = EncodedImage(row.image_id, row.uri, stored) if stored else image
    pixels = row.decoded(image, thumbnail_hw(*row.size_hw, photo_side(photo_bytes)))
    if isinstance(pixels, Failure):
        reason = store_error if image is None and store_error else pixels.message
        card.missing_reason = redact(f"no image: {reason}")
    else:
        card.photo = encode_photo(pixels, photo_bytes)
