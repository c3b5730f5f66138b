"""Rasterize COCO segmentations: polygons and run-length encoding (RLE).

A pixel belongs to a polygon if its centre is inside, by the even-odd rule. RLE lists the pixels
itself, see `cvbatch.images.rle`.

Source: cocodataset.org/#format-data; pycocotools, maskApi.c.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np

from cvbatch.images.orientation import Size
from cvbatch.images.rle import decode_rle, parse_compressed_rle
from cvbatch.importers.parsing import to_number

Outline = list[np.ndarray] | dict[str, Any]  # polygons, each (K, 2) float64; or RLE: size, counts

_CELLS_AT_ONCE = 1 << 20  # rows × edges, or rows × columns, in one step
_MAX_COORDINATE_PX = 1e7  # beyond it the slopes of edges lose their precision
_MAX_RUN = 2**53
_COCO_SCALE = 5.0
_MAX_OUTLINE_PX = 1e6


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


def coco_region(segmentation: Outline, size: Size) -> np.ndarray:  # (h, w) bool
    """Return the pixels that pycocotools gives a segmentation; other polygons than `rasterize`.

    A polygon is drawn at five times the size, in whole numbers, and its points toggle the pixels
    below them. A polygon with a longer outline than any image has its pixels by their centres.

    Raises:
        ValueError: as `rasterize`.

    Source: pycocotools, maskApi.c, rleFrPoly.
    """
    if isinstance(segmentation, dict):
        return rasterize(segmentation, size)
    region = np.zeros(size, bool)
    for polygon in segmentation:
        if np.abs(np.diff(polygon, axis=0, append=polygon[:1])).sum() > _MAX_OUTLINE_PX:
            fill_polygon(region, polygon)
            continue
        column, row = _crossings(*_outline_points(polygon), size)
        toggles = np.bincount(column * size[0] + row, minlength=region.size + 1)[: region.size]
        region |= (np.cumsum(toggles) % 2 == 1).reshape(size[::-1]).T
    return region


def _outline_points(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (K, 2) → (P,), (P,)
    """Return x and y of all points along a polygon at five times the size."""
    points = np.trunc(corners * _COCO_SCALE + 0.5).astype(np.int64)
    ends = np.roll(points, -1, axis=0)
    sides = np.abs(ends - points)
    is_wide = sides[:, 0] >= sides[:, 1]
    length = sides.max(axis=1)
    along = np.where(is_wide, 0, 1)[:, None]  # the axis in which points are one apart
    a, b = (np.take_along_axis(p, along, 1)[:, 0] for p in (points, ends))
    c, d = (np.take_along_axis(p, 1 - along, 1)[:, 0] for p in (points, ends))
    is_flipped = a > b
    start, other, last = (np.where(is_flipped, *pair) for pair in ((b, a), (d, c), (c, d)))
    slope = np.divide(last - other, length, out=np.zeros(len(length)), where=length > 0)
    edge = np.repeat(np.arange(len(length)), length + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    step = np.where(is_flipped[edge], length[edge] - step, step)
    first = start[edge] + step
    second = np.trunc(other[edge] + slope[edge] * step + 0.5).astype(np.int64)
    return np.where(is_wide[edge], first, second), np.where(is_wide[edge], second, first)


def _crossings(
    u: np.ndarray,  # (P,) x of the points of an outline
    v: np.ndarray,  # (P,) y
    size: Size,
) -> tuple[np.ndarray, np.ndarray]:  # (C,), (C,)
    """Return columns, and the first rows below, where an outline crosses centres of columns."""
    is_step = u[1:] != u[:-1]
    x = (np.where(u[1:] < u[:-1], u[1:], u[1:] - 1)[is_step] + 0.5) / _COCO_SCALE - 0.5
    y = (np.minimum(v[1:], v[:-1])[is_step] + 0.5) / _COCO_SCALE - 0.5
    is_centre = (np.floor(x) == x) & (x >= 0) & (x <= size[1] - 1)
    rows = np.ceil(np.clip(y[is_centre], 0, size[0]))
    return x[is_centre].astype(np.int64), rows.astype(np.int64)


class ParsedOutline(NamedTuple):
    """An outline, and what of it could not be used."""

    outline: Outline | None  # None: there is none, or nothing of it can be used
    faults: tuple[str, ...] = ()


def parse_outline(value: Any) -> ParsedOutline:
    """Return a COCO segmentation as polygons, (K, 2) float64 each, or as RLE with size and counts.

    Polygons that cannot be used are left out: those with fewer than three corners or with corners
    that are no numbers.

    Args:
        value: the JSON value. A polygon may be flat (x, y, x, y, ...) or a list of points.
    """
    if value is None or value == []:
        return ParsedOutline(None)
    if isinstance(value, dict):
        return _parse_rle(value)
    if not isinstance(value, list):
        return ParsedOutline(None, ("it is neither a list of polygons nor RLE",))
    if not isinstance(value[0], list):  # one polygon that is not in a list
        value = [value]
    polygons, faults = [], []
    for item in value:
        polygon = _parse_polygon(item)
        if isinstance(polygon, str):
            faults.append(polygon)
        else:
            polygons.append(polygon)
    return ParsedOutline(polygons or None, tuple(faults))


def _parse_polygon(value: Any) -> np.ndarray | str:  # (K, 2) float64, or why it cannot be used
    if not isinstance(value, list):
        return "a polygon is not a list"
    if value and all(isinstance(point, list) and len(point) == 2 for point in value):
        value = [side for point in value for side in point]
    corners = np.array([to_number(side) for side in value], np.float64)
    if len(corners) < 6 or len(corners) % 2:
        return (
            f"a polygon has {len(corners)} coordinates; x, y of at least three corners are needed"
        )
    if not np.isfinite(corners).all():
        return "a corner of a polygon is not a finite number"
    if np.abs(corners).max() > _MAX_COORDINATE_PX:
        return f"a polygon has a corner at {np.abs(corners).max():g}; no image is that large"
    points = corners.reshape(-1, 2)
    return "the corners of a polygon are on one line" if _is_flat(points) else points


def _is_flat(points: np.ndarray) -> bool:  # (K, 2)
    """Return whether all points are on one line, so that they enclose nothing."""
    x, y = (points - points[0]).T
    farthest = int(np.argmax(x * x + y * y))
    return bool((x * y[farthest] == y * x[farthest]).all())


def _parse_rle(value: dict[str, Any]) -> ParsedOutline:
    size, counts = value.get("size"), value.get("counts")
    is_complete = isinstance(size, list) and len(size) == 2 and isinstance(counts, list | str)
    sides = [to_number(side) for side in size] if is_complete and size else []
    if len(sides) != 2 or not all(side >= 1 and side == int(side) for side in sides):
        return ParsedOutline(None, ("RLE needs size [h, w] and counts",))
    if isinstance(counts, list):
        runs = np.array([to_number(run) for run in counts], np.float64)
        if not (np.isfinite(runs).all() and (runs >= 0).all() and (runs < _MAX_RUN).all()):
            return ParsedOutline(None, ("a run length of RLE is not a whole number of 0 or more",))
        counts = runs.astype(np.int64)
    return ParsedOutline({"size": (int(sides[0]), int(sides[1])), "counts": counts})


def outline_bounds(
    outline: Outline, max_pixels: int
) -> tuple[float, float, float, float] | None:  # half-open xyxy
    """Return the box around an outline; None if it is empty, not valid or too large.

    Args:
        outline: the outline.
        max_pixels: maximum size of an RLE.
    """
    if isinstance(outline, list):
        corners = np.concatenate(outline)
        (x_min, y_min), (x_max, y_max) = corners.min(axis=0), corners.max(axis=0)
        return float(x_min), float(y_min), float(x_max), float(y_max)
    if outline["size"][0] * outline["size"][1] > max_pixels:
        return None
    try:
        region = rasterize(outline, outline["size"])
    except ValueError:
        return None
    left, top, width, height = cv2.boundingRect(region.astype(np.uint8))
    return (left, top, left + width, top + height) if width else None


def rasterize(segmentation: Outline, size: Size) -> np.ndarray:  # (h, w) bool
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
