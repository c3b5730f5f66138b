"""Rasterize COCO segmentations: polygons and run-length encoding (RLE).

A pixel belongs to a polygon if its centre is inside, by the even-odd rule. RLE lists the pixels
itself. `cvbatch.images.rle` writes it.

Source: cocodataset.org/#format-data; pycocotools, maskApi.c.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cvbatch.core.errors import SourceError
from cvbatch.images.orientation import Size
from cvbatch.importers.parsing import finite_numbers, non_negative_int

_CELLS_AT_ONCE = 1 << 20  # rows × edges, or rows × columns, in one step
_MAX_COORDINATE_PX = 1e7  # beyond it the slopes of edges lose their precision
_MAX_SHIFT = 60  # bits of a run length; no image has longer runs


def fill_polygon(
    region: np.ndarray,  # (h, w) bool, changed in place
    corners: np.ndarray,  # (K, 2) float64 x, y in pixels
) -> None:
    """Add to a region the pixels whose centres are inside a closed polygon (even-odd rule)."""
    height, width = region.shape
    x, y = corners.T
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    is_crossed = y_next != y  # no row crosses a horizontal edge
    x, y, x_next, y_next = x[is_crossed], y[is_crossed], x_next[is_crossed], y_next[is_crossed]
    if not len(x):
        return
    slope = (x_next - x) / (y_next - y)
    first = int(np.clip(np.floor(y.min()), 0, height))
    last = int(np.clip(np.ceil(y.max()), 0, height))
    step = max(1, _CELLS_AT_ONCE // max(len(x), width))
    for start in range(first, last, step):
        end = min(start + step, last)
        centre = np.arange(start, end)[:, None] + 0.5  # (rows, 1)
        row, edge = np.nonzero((y <= centre) != (y_next <= centre))
        crossing = x[edge] + (centre[row, 0] - y[edge]) * slope[edge]
        column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
        toggles = np.zeros((end - start, width + 1), np.int32)
        np.add.at(toggles, (row, column), 1)
        region[start:end] |= np.cumsum(toggles, axis=1)[:, :width] % 2 == 1


def decode_rle(counts: np.ndarray, size: Size) -> np.ndarray:  # (R,) → (h, w) bool
    """Return the region of run lengths: outside, inside, outside, ..., column by column.

    Raises:
        ValueError: the runs do not sum to the number of pixels.
    """
    height, width = size
    is_invalid = counts.min(initial=0) < 0 or counts.max(initial=0) > height * width
    if is_invalid or int(counts.sum()) != height * width:
        raise ValueError(f"the runs do not sum to {height} x {width} pixels")
    is_inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(is_inside, counts).reshape(width, height).T


def parse_compressed_rle(text: str) -> np.ndarray:  # (R,) int64
    """Return the run lengths of COCO's compressed string.

    A character contains five bits of a number, least significant first, as an offset from "0".
    Bit 5 is set if more characters follow; bit 4 of the last one is the sign. From the fourth
    number on it is the difference to the number two before.

    Source: pycocotools, maskApi.c, rleFrString.

    Raises:
        ValueError: the string is not valid.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > _MAX_SHIFT:
            raise ValueError(f"{character!r} is not a character of a run length")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the last run length is truncated")
    try:
        return np.array(counts, np.int64)
    except OverflowError:
        raise ValueError("a run length is larger than any image") from None


def parse_segmentation(value: Any, where: str) -> list[np.ndarray] | dict[str, Any]:
    """Return a segmentation as polygons, (K, 2) float64 each, or as RLE with size and counts.

    Args:
        value: the JSON value.
        where: its place in the document, for error messages.

    Raises:
        SourceError: the value is neither.
    """
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, list | str):
            raise SourceError(f"{where} is not RLE: size [h, w] or counts is missing")
        height, width = (non_negative_int(side, f"{where}: size") for side in size)
        if isinstance(counts, list):
            counts = np.array(
                [non_negative_int(count, f"{where}: counts") for count in counts], np.int64
            )
        return {"size": (height, width), "counts": counts}
    if not isinstance(value, list):
        raise SourceError(f"{where} is neither a list of polygons nor RLE")
    polygons = []
    for polygon in value:
        if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) < 6:
            raise SourceError(f"{where} has a polygon that is not x, y of at least three corners")
        corners = np.array(finite_numbers(polygon, len(polygon), where), np.float64)
        if np.abs(corners).max() > _MAX_COORDINATE_PX:
            raise SourceError(
                f"{where} has a corner at {np.abs(corners).max():g}; no image is that large"
            )
        polygons.append(corners.reshape(-1, 2))
    return polygons


def rasterize(
    segmentation: list[np.ndarray] | dict[str, Any], size: Size
) -> np.ndarray:  # (h, w) bool
    """Return the pixels of a parsed segmentation: RLE, or the union of its polygons.

    Raises:
        ValueError: the RLE has another size, or is not valid.
    """
    if isinstance(segmentation, dict):
        if segmentation["size"] != size:
            raise ValueError(f"the RLE is of {segmentation['size']} pixels, the image of {size}")
        counts = segmentation["counts"]
        return decode_rle(parse_compressed_rle(counts) if isinstance(counts, str) else counts, size)
    region = np.zeros(size, bool)
    for polygon in segmentation:
        fill_polygon(region, polygon)
    return region
