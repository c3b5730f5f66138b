"""A layer's map is laid where it belongs: over the original, or over what its network was fed.

Between the centres of its cells a map is interpolated linearly, beyond the outermost it is flat:
what `cv2.resize` does, at any positions and without rounding them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvbatch.geometry.resize import Placement

MAX_SIDE = 1024  # of a map over an original: finer than any layer sees


def sample_bilinear(
    values: np.ndarray,  # (h, w)
    rows: np.ndarray,  # (R,) positions in cells: the first cell's centre is at 0.5
    columns: np.ndarray,  # (C,)
) -> np.ndarray:  # (R, C) float64
    """Return the map's values at the crossings of rows and columns."""
    height, width = values.shape
    spread: np.ndarray = _hats(rows, height) @ values.astype(np.float64) @ _hats(columns, width).T
    return spread


def _hats(positions: np.ndarray, count: int) -> np.ndarray:  # (R,) → (R, count)
    """Return how much of each cell is at each position: rows sum to 1."""
    inside = np.clip(positions, 0.5, count - 0.5)[:, None]
    hats: np.ndarray = np.maximum(0, 1 - np.abs(inside - cell_centres(count)))
    return hats


def resize_bilinear(
    values: np.ndarray,  # (h, w)
    height: int,
    width: int,
) -> np.ndarray:  # (height, width) float64
    """Return the map stretched to a size, cells to rectangles."""
    return sample_bilinear(
        values, cell_centres(height) * values.shape[0] / height, cell_centres(width) * values.shape[1] / width
    )


def heatmap_to_original(
    values: np.ndarray,  # (h, w) over the network's input
    placement: Placement,
) -> np.ndarray:  # (R, C) float64, over all of the original
    """Return the map over the original, 0 where a crop left it out.

    It has the original's size, or the same shape with sides of at most `MAX_SIDE`.
    """
    axes, covered = [], []
    for original, source, target, side, cells in _axes(placement, values.shape):
        position = cell_centres(min(original, MAX_SIDE)) * original / min(original, MAX_SIDE)
        is_seen = (position >= source[0]) & (position < source[0] + source[1])
        in_input = (position - source[0]) * target[1] / source[1] + target[0]
        axes.append(in_input * cells / side)
        covered.append(is_seen)
    return sample_bilinear(values, *axes) * np.outer(*covered)


def heatmap_to_input(
    values: np.ndarray,  # (h, w)
    placements: Sequence[Placement],  # T
) -> np.ndarray:  # (T, H, W) float64
    """Return the map over each pixel that the network is fed.

    Of an image that was not cut, T is 1 and the map covers the input; of one that was, it covers
    the original, and each tile has its part of it.
    """
    laid = []
    for placement in placements:
        positions = []
        for original, source, target, side, cells in _axes(placement, values.shape):
            position = cell_centres(side)
            if len(placements) == 1:
                positions.append(position * cells / side)
                continue
            in_original = (position - target[0]) * source[1] / target[1] + source[0]
            positions.append(in_original * cells / original)
        laid.append(sample_bilinear(values, *positions))
    return np.stack(laid)


def peak_in_original(
    values: np.ndarray,  # (h, w) over the network's input
    placement: Placement,
) -> tuple[float, float] | None:
    """Return x and y, in pixels of the original, of the centre of the map's strongest cell.

    Of equal ones the first, row by row; cells whose centre is beside the image do not count.
    None where no cell is above 0.
    """
    positions, is_beside = [], np.zeros(values.shape, bool)
    for axis, (_, source, target, side, cells) in enumerate(_axes(placement, values.shape)):
        centre = cell_centres(cells) * side / cells - target[0]
        outside = (centre < 0) | (centre >= target[1])
        is_beside |= outside[:, None] if axis == 0 else outside
        positions.append(centre * source[1] / target[1] + source[0])
    inside = np.where(is_beside, 0, values)
    row, column = np.unravel_index(int(inside.argmax()), values.shape)
    if not inside[row, column] > 0:
        return None
    return float(positions[1][column]), float(positions[0][row])


def cell_centres(count: int) -> np.ndarray:  # (count,) float64
    """Return the centres of cells of side 1."""
    return np.arange(count) + 0.5


_Axis = tuple[int, tuple[int, int], tuple[int, int], int, int]


def _axes(placement: Placement, shape: tuple[int, ...]) -> tuple[_Axis, _Axis]:
    """Return for each axis: the original's side, source, target, the input's side, the cells."""
    source, target = placement.source, placement.target
    return (
        (
            placement.height,
            (source.top, source.height),
            (target.top, target.height),
            placement.input_height,
            shape[0],
        ),
        (
            placement.width,
            (source.left, source.width),
            (target.left, target.width),
            placement.input_width,
            shape[1],
        ),
    )
