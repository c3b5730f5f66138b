"""Segmentations as COCO writes them, polygons and run lengths, as pixels.

A pixel belongs to a polygon when its centre lies inside, by the even-odd rule; run lengths say
themselves which pixels they mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cvbatch.core.errors import SourceError
from cvbatch.images.orientation import Size
from cvbatch.importers.parsing import numbers, whole

_CELLS_AT_ONCE = 1 << 20  # rows × edges, or rows × columns, looked at in one step
_FARTHEST_PX = 1e7  # of a corner, either way; beyond, slopes lose their meaning
_MAX_SHIFT = 60  # bits of a run length: more would be a number no image has


def paint_polygon(
    region: np.ndarray,  # (h, w) bool, changed
    corners: np.ndarray,  # (K, 2) float64 x, y in pixels
) -> None:
    """Add to a region the pixels whose centres lie inside a closed polygon, even-odd."""
    height, width = region.shape
    x, y = corners.T
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    is_rising = y_next != y  # an edge along a row is crossed by none
    x, y, x_next, y_next = x[is_rising], y[is_rising], x_next[is_rising], y_next[is_rising]
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


def decode_runs(counts: np.ndarray, size: Size) -> np.ndarray:  # (R,) → (h, w) bool
    """Return the region that run lengths mean: out, in, out, ..., down the columns.

    Raises:
        ValueError: they do not sum to the size.
    """
    height, width = size
    is_odd = counts.min(initial=0) < 0 or counts.max(initial=0) > height * width
    if is_odd or int(counts.sum()) != height * width:
        raise ValueError(f"its runs do not sum to {height} x {width} pixels")
    is_in = np.arange(len(counts)) % 2 == 1
    return np.repeat(is_in, counts).reshape(width, height).T


def unpack_runs(text: str) -> np.ndarray:  # (R,) int64
    """Return the run lengths in COCO's compressed string.

    Five bits a letter, least first, from "0" on; bit 5 says that more follow, bit 4 of the last
    is the sign. From the fourth on a number is the difference to the one two before.
    (pycocotools, maskApi.c, rleFrString.)

    Raises:
        ValueError: it is not such a string.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > _MAX_SHIFT:
            raise ValueError(f"{letter!r} is no letter of a run length")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("its last run length is cut off")
    try:
        return np.array(counts, np.int64)
    except OverflowError:
        raise ValueError("a run length is larger than any image") from None


def check_outline(value: Any, where: str) -> list[np.ndarray] | dict[str, Any]:
    """Return a segmentation as polygons, (K, 2) float64 each, or as the run lengths it has.

    Raises:
        SourceError: it is neither.
    """
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, list | str):
            raise SourceError(f"{where} has no size [h, w] and counts; it is no run-length mask")
        height, width = (whole(side, f"{where}: size") for side in size)
        if isinstance(counts, list):
            counts = np.array([whole(count, f"{where}: counts") for count in counts], np.int64)
        return {"size": (height, width), "counts": counts}
    if not isinstance(value, list):
        raise SourceError(f"{where} is neither a list of polygons nor run lengths")
    polygons = []
    for polygon in value:
        if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) < 6:
            raise SourceError(f"{where} has a polygon that is not x, y of three corners or more")
        corners = np.array(numbers(polygon, len(polygon), where), np.float64)
        if np.abs(corners).max() > _FARTHEST_PX:
            raise SourceError(f"{where} has a corner at {np.abs(corners).max():g}, on no image")
        polygons.append(corners.reshape(-1, 2))
    return polygons


def region_of(outline: list[np.ndarray] | dict[str, Any], size: Size) -> np.ndarray:  # (h, w) bool
    """Return the pixels of a checked segmentation; of several polygons, their union.

    Raises:
        ValueError: it is of another size, or its runs are no runs.
    """
    if isinstance(outline, dict):
        if outline["size"] != size:
            raise ValueError(f"it is of {outline['size']} pixels, its image of {size}")
        counts = outline["counts"]
        return decode_runs(unpack_runs(counts) if isinstance(counts, str) else counts, size)
    region = np.zeros(size, bool)
    for polygon in outline:
        paint_polygon(region, polygon)
    return region
