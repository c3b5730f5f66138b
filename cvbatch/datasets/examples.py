"""Labelled rows become examples, in an order that the seed and the epoch alone decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.core.errors import TrainingError
from cvbatch.core.types import Failure, InputKey, TrainingExample
from cvbatch.datasets.reader import RowGroup, Split
from cvbatch.datasets.schema import with_extras
from cvbatch.geometry.resize import Placement, boxes_to_input, make_placement, mask_to_input
from cvbatch.images.decode import Limits, decode
from cvbatch.images.masks import decode_png
from cvbatch.storage.store import Storage

_POOL_BYTES = 256 << 20  # of encoded images among which one may change place


class LabelledRow(NamedTuple):
    """One image as it lies in the file."""

    image_id: str
    data: bytes
    labels: tuple[int, ...]
    boxes: tuple[tuple[float, float, float, float, int], ...]  # xyxy of the original, class
    mask: bytes | None


def read_rows(
    storage: Storage, group: RowGroup, rows: Sequence[int], column: str
) -> list[LabelledRow]:
    """Return some rows of a group, in the order asked for; numbers are those in the file's group.

    Raises:
        TrainingError: the file is not what it was when the job began.
    """
    try:
        with storage.open_input(group.uri) as source:
            file = pq.ParquetFile(source, pre_buffer=False)
            names = [name for name in with_extras([column]) if name in file.schema_arrow.names]
            table = file.read_row_group(group.number, ["image_id", "image", *names])
        found = table.take(pa.array(rows, pa.int64())).to_pylist()
    except (pa.ArrowException, OSError, LookupError) as error:
        raise TrainingError(
            f"{group.uri} cannot be read any more ({str(error)[:200]}); put it there as it was"
        ) from None
    return [_row(values, column) for values in found]


def _row(values: dict[str, Any], column: str) -> LabelledRow:
    labels = tuple(int(label["class_id"]) for label in values.get("labels") or ())
    crowds = values.get("box_is_crowd") or [False] * len(values.get("boxes") or ())
    boxes = tuple(
        (box["x_min"], box["y_min"], box["x_max"], box["y_max"], int(box["class_id"]))
        for box, is_crowd in zip(values.get("boxes") or (), crowds, strict=True)
        if not is_crowd  # of many objects together: no network is to answer it
    )
    mask = values["mask"]["bytes"] if column == "mask" and values["mask"] else None
    data = (values["image"] or {}).get("bytes") or b""
    return LabelledRow(values["image_id"], data, labels, boxes, mask)


def example_of(row: LabelledRow, key: InputKey, limits: Limits) -> TrainingExample | Failure:
    """Return a row laid into a network's input, or why that cannot be done.

    Boxes that a crop leaves nothing of are dropped; what the image does not fill of the input is
    void in the mask.
    """
    decoded = decode(row.data, [key], limits)
    if isinstance(decoded, Failure):
        return decoded
    placement = make_placement(decoded.height, decoded.width, key)
    mask = None
    if row.mask is not None:
        laid = _laid_mask(row.mask, placement)
        if isinstance(laid, Failure):
            return laid
        mask = laid
    corners = np.array([box[:4] for box in row.boxes], np.float64).reshape(-1, 4)
    xyxy = boxes_to_input(corners, placement)
    is_left = (xyxy[:, 2] > xyxy[:, 0]) & (xyxy[:, 3] > xyxy[:, 1])
    box_class = np.array([box[4] for box in row.boxes], np.int32)
    return TrainingExample(
        pixels=decoded.pixels[key],
        class_ids=np.array(row.labels, np.int32),
        boxes_xyxy=xyxy[is_left],
        box_class=box_class[is_left],
        mask=mask,
        image_id=row.image_id,
    )


def _laid_mask(data: bytes, placement: Placement) -> np.ndarray | Failure:  # (H, W) uint8
    try:
        mask = decode_png(data)
    except ValueError as error:
        return Failure("decode", "mask", str(error))
    if mask.shape != (placement.height, placement.width):
        size = f"{mask.shape[0]} x {mask.shape[1]}"
        return Failure(
            "decode", "mask", f"the mask is {size}, the image {placement.height} x "
            f"{placement.width}",
        )  # fmt: skip
    return mask_to_input(mask, placement)


def shuffled(
    split: Split, seed: int, epoch: int, pool_images: int
) -> Iterator[np.ndarray]:  # (P, 2) int64: number of the group, row in it
    """Yield an epoch's images in a random order, pool after pool; each image is in one of them.

    A pool is some row groups drawn at random, of at least `pool_images` together (or of 256 MiB),
    and its images are in any order: a split that is no larger is shuffled whole. The same seed and
    epoch give the same order.
    """
    rng = np.random.default_rng((seed, epoch))
    pool: list[np.ndarray] = []
    size = count = 0
    for number in rng.permutation(len(split.groups)).tolist():
        group = split.groups[number]
        pool.append(_places(number, group))
        count += group.num_images
        size += group.size_bytes
        if count >= pool_images or size >= _POOL_BYTES:
            yield rng.permutation(np.concatenate(pool))
            pool, size, count = [], 0, 0
    if pool:
        yield rng.permutation(np.concatenate(pool))


def in_order(split: Split) -> Iterator[np.ndarray]:  # (P, 2) int64, as `shuffled`
    """Yield the split's images in the files' order, a row group at a time."""
    for number, group in enumerate(split.groups):
        yield _places(number, group)


def _places(number: int, group: RowGroup) -> np.ndarray:  # (P, 2) int64
    rows = range(group.num_images) if group.rows is None else group.rows
    places = np.empty((group.num_images, 2), np.int64)
    places[:, 0], places[:, 1] = number, rows
    return places
