"""Resample heatmaps and class maps from the network's grid to the input, its tiles, the original.

Between the centres of its cells a heatmap is interpolated linearly; outside the outermost centres
it is constant. `cv2.resize` does the same; this module also samples at irregular positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cvbatch.geometry.resize import Placement

MAX_SIDE = 1024  # of a heatmap over an original: finer than the grid of any layer


class _Axis(NamedTuple):
    """The height or the width of a placement, with the cells of a grid over the input."""

    original: int  # pixels
    source: int  # first pixel of the source rectangle in the original
    source_size: int
    target: int  # first pixel of the target rectangle in the input
    target_size: int
    input: int  # pixels
    cells: int


class Taps(NamedTuple):
    """The two cells along one axis between which each of R pixels is interpolated."""

    low: np.ndarray  # (R,) int64, ascending
    high: np.ndarray  # (R,) int64
    weight: np.ndarray  # (R,) float32, of the higher cell

    @classmethod
    def at(cls, positions: np.ndarray, count: int) -> Taps:  # (R,) ascending
        """Return the taps of positions on `count` cells; the centre of the first cell is at 0."""
        inside = positions.clip(0, count - 1)
        low = inside.astype(np.int64)
        return cls(low, np.minimum(low + 1, count - 1), (inside - low).astype(np.float32))

    def __len__(self) -> int:
        return len(self.low)

    @property
    def cells(self) -> slice:
        """Return the cells that are used."""
        return slice(int(self.low[0]), int(self.high[-1]) + 1)

    def part(self, pixels: slice) -> Taps:
        """Return the taps of some pixels."""
        return Taps(self.low[pixels], self.high[pixels], self.weight[pixels])

    def from_first(self) -> Taps:
        """Return the taps on a grid that begins at the first cell."""
        return Taps(self.low - self.low[0], self.high - self.low[0], self.weight)


def bilinear_taps(
    placement: Placement, grid_hw: tuple[int, ...]
) -> tuple[int, Taps, int, Taps]:  # first row, its taps, first column, its taps
    """Map the pixels of the original that are in the input to cells of a grid over the input.

    Outside the centres of the outermost cells of the original, not of its padding, the nearest
    value is used.

    Args:
        placement: position of the original in the input.
        grid_hw: numbers of rows and columns that the input is divided into.
    """
    (top, rows), (left, columns) = (_axis_taps(axis) for axis in _axes(placement, grid_hw))
    return top, rows, left, columns


def _axis_taps(axis: _Axis) -> tuple[int, Taps]:
    position = cell_centres(axis.source_size) * axis.target_size / axis.source_size + axis.target
    start, stop = np.searchsorted(position, (0, axis.input)).tolist()
    ends = max(0, axis.target), min(axis.input, axis.target + axis.target_size)
    low, high = (end * axis.cells / axis.input for end in ends)
    first, last = (low, high - 1) if high - low > 1 else ((low + high - 1) / 2,) * 2
    cell = (position[start:stop] * axis.cells / axis.input - 0.5).clip(first, last)
    return axis.source + start, Taps.at(cell, axis.cells)


def interpolate(values: np.ndarray, taps: Taps, axis: int) -> np.ndarray:
    """Return values with an axis of cells interpolated to an axis of pixels."""
    below = values.take(taps.low, axis=axis)
    if not taps.weight.any():
        return below
    shape = [1] * values.ndim
    shape[axis] = len(taps)
    change = values.take(taps.high, axis=axis)
    change -= below
    change *= taps.weight.reshape(shape)
    below += change
    return below


def sample_bilinear(
    values: np.ndarray,  # (h, w)
    rows: np.ndarray,  # (R,)
    columns: np.ndarray,  # (C,)
) -> np.ndarray:  # (R, C) float64
    """Sample a heatmap at every pair of a row and a column.

    Args:
        values: the heatmap.
        rows: positions in cells; the centre of the first cell is at 0.5.
        columns: likewise.
    """
    height, width = values.shape
    row_weights, column_weights = _cell_weights(rows, height), _cell_weights(columns, width)
    sampled: np.ndarray = row_weights @ values.astype(np.float64) @ column_weights.T
    return sampled


def _cell_weights(positions: np.ndarray, count: int) -> np.ndarray:  # (R,) → (R, count)
    """Return the weight of each cell at each position; rows sum to 1."""
    inside = np.clip(positions, 0.5, count - 0.5)[:, None]
    weights: np.ndarray = np.maximum(0, 1 - np.abs(inside - cell_centres(count)))
    return weights


def resize_bilinear(
    values: np.ndarray,  # (h, w)
    height: int,
    width: int,
) -> np.ndarray:  # (height, width) float64
    """Stretch a heatmap to a size."""
    return sample_bilinear(
        values,
        cell_centres(height) * values.shape[0] / height,
        cell_centres(width) * values.shape[1] / width,
    )


def heatmap_to_original(
    values: np.ndarray,  # (h, w)
    placement: Placement,
) -> np.ndarray:  # (R, C) float64
    """Resample a heatmap over the network's input to the original.

    Returns:
        The heatmap over the whole original, 0 where a crop removed pixels. It has the size of the
        original, with each side limited to `MAX_SIDE`.
    """
    positions, is_covered = [], []
    for axis in _axes(placement, values.shape):
        size = min(axis.original, MAX_SIDE)
        position = cell_centres(size) * axis.original / size
        in_input = (position - axis.source) * axis.target_size / axis.source_size + axis.target
        is_in_source = (position >= axis.source) & (position < axis.source + axis.source_size)
        is_covered.append(is_in_source & (in_input >= 0) & (in_input < axis.input))
        positions.append(in_input * axis.cells / axis.input)
    return sample_bilinear(values, *positions) * np.outer(*is_covered)


def heatmap_to_input(
    values: np.ndarray,  # (h, w)
    placements: Sequence[Placement],  # T
) -> np.ndarray:  # (T, H, W) float64
    """Resample a heatmap to the pixels of the network's input.

    Args:
        values: the heatmap, over the input if T is 1, otherwise over the original.
        placements: of the image, or of each of its tiles.

    Returns:
        The heatmap over the input, or the part of each tile.
    """
    resampled = []
    for placement in placements:
        positions = []
        for axis in _axes(placement, values.shape):
            position = cell_centres(axis.input)
            if len(placements) == 1:
                positions.append(position * axis.cells / axis.input)
                continue
            scaled = (position - axis.target) * axis.source_size / axis.target_size
            positions.append((scaled + axis.source) * axis.cells / axis.original)
        resampled.append(sample_bilinear(values, *positions))
    return np.stack(resampled)


def peak_in_original(
    values: np.ndarray,  # (h, w)
    placement: Placement,
) -> tuple[float, float] | None:
    """Return the centre of the cell with the maximum of a heatmap over the network's input.

    Cells with their centre in the padding are ignored. Of equal cells the first counts, row by row.

    Returns:
        x and y in pixels of the original; None where no cell is above 0.
    """
    positions, is_padding = [], np.zeros(values.shape, bool)
    for dimension, axis in enumerate(_axes(placement, values.shape)):
        centre = cell_centres(axis.cells) * axis.input / axis.cells - axis.target
        is_outside = (centre < 0) | (centre >= axis.target_size)
        is_padding |= is_outside[:, None] if dimension == 0 else is_outside
        positions.append(centre * axis.source_size / axis.target_size + axis.source)
    inside = np.where(is_padding, 0, values)
    row, column = np.unravel_index(int(inside.argmax()), values.shape)
    if not inside[row, column] > 0:
        return None
    return float(positions[1][column]), float(positions[0][row])


def cell_centres(count: int) -> np.ndarray:  # (count,) float64
    """Return the centres of `count` cells of side 1."""
    return np.arange(count) + 0.5


def _axes(placement: Placement, grid_hw: tuple[int, ...]) -> tuple[_Axis, _Axis]:
    p, source, target = placement, placement.source, placement.target
    rows = (p.height, source.top, source.height, target.top, target.height, p.input_height)
    columns = (p.width, source.left, source.width, target.left, target.width, p.input_width)
    return _Axis(*rows, grid_hw[0]), _Axis(*columns, grid_hw[1])
