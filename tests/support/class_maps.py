"""Class probabilities interpolated pixel by pixel, by the definition."""

from __future__ import annotations

from math import floor

import numpy as np

from cvbatch.geometry.resize import Placement


def weighted_cells(
    pixel: int, source: tuple[int, int], target: tuple[int, int], side: int, cells: int
) -> list[tuple[int, float]]:
    """Return (cell, weight) of a pixel along one axis; none if it is outside the input.

    Args:
        source: start and size in the original.
        target: start and size in the input.
        side: of the input.
        cells: of the grid over the input.
    """
    position = (pixel + 0.5 - source[0]) * target[1] / source[1] + target[0]
    if not (source[0] <= pixel < sum(source) and 0 <= position < side):
        return []
    low = max(0, target[0]) * cells / side + 0.5
    high = min(side, sum(target)) * cells / side - 0.5
    in_cells = min(max(position * cells / side, low), high) if low < high else (low + high) / 2
    in_cells = min(max(in_cells, 0.5), cells - 0.5)
    first = floor(in_cells - 0.5)
    weight = in_cells - 0.5 - first
    return [(first, 1 - weight), (min(first + 1, cells - 1), weight)]


def interpolated(grid: np.ndarray, placement: Placement) -> np.ndarray:
    """Return the values (height, width, C) float64 of a grid (h, w, C); NaN outside the input."""
    p = placement
    result = np.full((p.height, p.width, grid.shape[2]), np.nan)
    columns = [
        weighted_cells(x, p.source[1::2], p.target[1::2], p.input_width, grid.shape[1])
        for x in range(p.width)
    ]
    for y in range(p.height):
        rows = weighted_cells(y, p.source[::2], p.target[::2], p.input_height, grid.shape[0])
        for x, across in enumerate(columns):
            if rows and across:
                result[y, x] = sum(
                    v * w * grid[row, column].astype(np.float64)
                    for row, v in rows
                    for column, w in across
                )
    return result
