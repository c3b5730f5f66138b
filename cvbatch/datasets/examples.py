"""Read labelled rows, decode them to training examples, and order them by seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cvbatch.core.errors import TrainingError
from cvbatch.core.types import Failure, InputKey, TrainingExample
from cvbatch.datasets.reader import RowGroup, Split
from cvbatch.datasets.schema import expand_label_columns
from cvbatch.geometry.resize import Placement, boxes_to_input, make_placement, mask_to_input
from cvbatch.images.decode import Limits, decode
from cvbatch.images.masks import decode_png
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage

_POOL_BYTES = 256 << 20  # encoded images that are shuffled together


class LabelledRow(NamedTuple):
    """One row of labelled Parquet: the encoded image and its labels."""

    image_id: str
    data: bytes
    labels: tuple[int, ...]  # class ids
    boxes: tuple[tuple[float, float, float, float, int], ...]  # xyxy of the original, class id
    mask: bytes | None  # PNG


def read_rows(
    storage: Storage, group: RowGroup, rows: Sequence[int], column: str
) -> list[LabelledRow]:
    """Return rows of a row group, in the given order.

    Args:
        storage: reads the file.
        group: the row group.
        rows: row numbers within the row group of the file.
        column: the label column that is read, a key of LABEL_COLUMNS.

    Raises:
        TrainingError: the file changed since the job began.
    """
    try:
        with storage.open_input(group.uri) as source:
            file = ParquetFile(source)
            names = [
                name for name in expand_label_columns([column]) if name in file.schema_arrow.names
            ]
            table = file.read_row_group(group.number, ["image_id", "image", *names])
        selected = table.take(pa.array(rows, pa.int64())).to_pylist()
    except (pa.ArrowException, OSError, LookupError) as error:
        raise TrainingError(
            f"{group.uri} can no longer be read ({str(error)[:200]}); restore the file"
        ) from None
    return [_row(values, column) for values in selected]


def _row(values: dict[str, Any], column: str) -> LabelledRow:
    labels = tuple(int(label["class_id"]) for label in values.get("labels") or ())
    crowds = values.get("box_is_crowd") or [False] * len(values.get("boxes") or ())
    boxes = tuple(
        (box["x_min"], box["y_min"], box["x_max"], box["y_max"], int(box["class_id"]))
        for box, is_crowd in zip(values.get("boxes") or (), crowds, strict=True)
        if not is_crowd  # a crowd box covers many objects, so it is no training target
    )
    mask = values["mask"]["bytes"] if column == "mask" and values["mask"] else None
    data = (values["image"] or {}).get("bytes") or b""
    return LabelledRow(values["image_id"], data, labels, boxes, mask)


def decode_example(row: LabelledRow, key: InputKey, limits: Limits) -> TrainingExample | Failure:
    """Return a row as a training example of the network's input size, or why it failed.

    Boxes outside the crop are dropped. Mask pixels that the image does not cover are void.

    Args:
        row: the row.
        key: size and resize rule of the network's input.
        limits: limits of the decoder.
    """
    decoded = decode(row.data, [key], limits)
    if isinstance(decoded, Failure):
        return decoded
    placement = make_placement(decoded.height, decoded.width, key)
    mask = None
    if row.mask is not None:
        resized = _resized_mask(row.mask, placement)
        if isinstance(resized, Failure):
            return resized
        mask = resized
    corners = np.array([box[:4] for box in row.boxes], np.float64).reshape(-1, 4)
    xyxy = boxes_to_input(corners, placement)
    is_visible = (xyxy[:, 2] > xyxy[:, 0]) & (xyxy[:, 3] > xyxy[:, 1])
    box_class = np.array([box[4] for box in row.boxes], np.int32)
    return TrainingExample(
        pixels=decoded.pixels[key],
        class_ids=np.array(row.labels, np.int32),
        boxes_xyxy=xyxy[is_visible],
        box_class=box_class[is_visible],
        mask=mask,
        image_id=row.image_id,
    )


def _resized_mask(data: bytes, placement: Placement) -> np.ndarray | Failure:  # (H, W) uint8
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
) -> Iterator[np.ndarray]:  # each (P, 2) int64
    """Yield the images of an epoch in random order, each once, as pools of (row group, row).

    A pool contains random row groups until they have `pool_images` images or 256 MiB; its images
    are shuffled. A smaller split is one pool. The same seed and epoch give the same order.

    Args:
        split: the split.
        seed: seed of the training.
        epoch: number of the epoch, from 0.
        pool_images: minimum number of images per pool.

    Yields:
        (P, 2) int64: index into `split.groups`, row number within the row group of the file.
    """
    rng = np.random.default_rng((seed, epoch))
    pool: list[np.ndarray] = []
    num_bytes = num_images = 0
    for number in rng.permutation(len(split.groups)).tolist():
        group = split.groups[number]
        pool.append(_positions(number, group))
        num_images += group.num_images
        num_bytes += group.size_bytes
        if num_images >= pool_images or num_bytes >= _POOL_BYTES:
            yield rng.permutation(np.concatenate(pool))
            pool, num_bytes, num_images = [], 0, 0
    if pool:
        yield rng.permutation(np.concatenate(pool))


def in_order(split: Split) -> Iterator[np.ndarray]:  # (P, 2) int64, as `shuffled`
    """Yield the images of a split in the order of the files, one row group at a time."""
    for number, group in enumerate(split.groups):
        yield _positions(number, group)


def _positions(number: int, group: RowGroup) -> np.ndarray:  # (P, 2) int64
    positions = np.empty((group.num_images, 2), np.int64)
    positions[:, 0] = number
    positions[:, 1] = range(group.num_images) if group.rows is None else group.rows
    return positions
