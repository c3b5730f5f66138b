"""Trace the regions of a mask as polygons along the edges of their pixels.

Filled by the rule that a pixel belongs to a polygon if its centre is inside, they give the same
pixels again. A hole is joined to its region by a bridge of width 0, there and back, because
YOLO has one polygon per object.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np


def trace_regions(
    region: np.ndarray,  # (h, w) bool
) -> Iterator[np.ndarray]:  # each (K, 2) float64 x, y in pixels
    """Yield a polygon for each connected part of a region; pixels that touch at a corner connect.

    The contours are traced at twice the size, where the edge of a pixel has its own coordinate.
    """
    doubled = np.repeat(np.repeat(region.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if hierarchy is None:
        return
    edges = [_pixel_edges(contour.reshape(-1, 2)) for contour in contours]
    for number, (_, _, first_hole, parent) in enumerate(hierarchy[0].tolist()):
        if parent >= 0:
            continue
        polygon, hole = edges[number], first_hole
        while hole >= 0:
            polygon = _with_hole(polygon, edges[hole])
            hole = int(hierarchy[0][hole][0])
        yield polygon.astype(np.float64)


def trace_object(
    region: np.ndarray,  # (h, w) bool, with a pixel inside
) -> np.ndarray:  # (K, 2) float64 x, y in pixels
    """Return one polygon around all parts of a region, with bridges between them."""
    polygon, *others = trace_regions(region)
    for other in others:
        polygon = _with_hole(polygon, other)
    return polygon


def _pixel_edges(contour: np.ndarray) -> np.ndarray:  # (N, 2) at twice the size → (K, 2)
    """Return the corners of a contour on the edges of the pixels, without points on a line."""
    points = (contour.astype(np.int64) + 1) >> 1
    is_new = (points != np.roll(points, 1, axis=0)).any(axis=1)
    points = points[is_new]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    is_reversed = (before * after).sum(axis=1) < 0
    corners: np.ndarray = points[(turns != 0) | is_reversed]
    return corners


def _with_hole(polygon: np.ndarray, hole: np.ndarray) -> np.ndarray:  # (K, 2), (L, 2) → (M, 2)
    """Return one polygon: over a bridge to the hole, or to another part, around it, and back.

    The bridge has a right angle: along the edges of pixels it passes through no centre.
    """
    start = int(np.argmin(np.abs(polygon - hole[0]).sum(axis=1)))
    bend = np.array([[hole[0, 0], polygon[start, 1]]])
    way = [polygon[: start + 1], bend, hole, hole[:1], bend, polygon[start:]]
    return np.concatenate(way)
