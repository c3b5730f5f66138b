"""Grids of anchor boxes over the levels of a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pyramid_anchors(
    height: int,
    width: int,
    *,
    min_level: int,
    max_level: int,
    num_scales: int,
    aspect_ratios: Sequence[float],
    anchor_size: float,
) -> np.ndarray:  # (N, 4) float32 center_xywh in pixels
    """Return the anchors of a RetinaNet: level by level, row by row, all shapes of a cell together.

    A cell of level l has sides of 2 ** l pixels, and its anchors are centred on its top left
    corner. Sizes are whole pixels, and half sides are rounded, as in both libraries below.

    Args:
        height: of the network's input in pixels.
        width: likewise.
        min_level: first level of the pyramid.
        max_level: last level.
        num_scales: sizes per octave.
        aspect_ratios: height / width of the shapes.
        anchor_size: side of the smallest square anchor, in cells.

    Source: `keras_hub.layers.AnchorGenerator`, `torchvision.models.detection.anchor_utils`; Lin et
        al., Focal Loss for Dense Object Detection, 2017, section 4.
    """
    levels = []
    for level in range(min_level, max_level + 1):
        cell = 2**level
        scales = [int(cell * anchor_size * 2 ** (i / num_scales)) for i in range(num_scales)]
        half = _half_sides(scales, aspect_ratios)
        rows, columns = -(-height // cell), -(-width // cell)
        y, x = np.mgrid[0:rows, 0:columns]
        center = np.stack([x * (width // columns), y * (height // rows)], axis=-1)
        pairs = np.broadcast_arrays(center[:, :, None, :], 2 * half)
        levels.append(np.concatenate(pairs, axis=-1).reshape(-1, 4).astype(np.float32))
    return np.concatenate(levels)


def _half_sides(
    scales: Sequence[int], aspect_ratios: Sequence[float]
) -> np.ndarray:  # (A, 2) float32 x, y
    """Return half of width and height of each shape, all scales of one aspect ratio together."""
    tall = np.sqrt(np.array(aspect_ratios, np.float32))[:, None]
    sides = np.array(scales, np.float32)[None, :]
    shapes = np.stack([(1 / tall) * sides, tall * sides], axis=-1).reshape(-1, 2)
    half: np.ndarray = np.round(shapes / 2)
    return half
