"""Divide a large image into overlapping tiles, so that a network gets it at a suitable scale."""

from __future__ import annotations

from dataclasses import replace

from cvbatch.core.types import InputKey
from cvbatch.geometry.resize import Placement, divide_rounded, make_placement, window_size


def tile_placements(height: int, width: int, key: InputKey) -> list[Placement]:
    """Return the placement of each tile of an original, or of the original where it is not tiled.

    An original is tiled if the key has a tiling and either side is longer than that of a tile. The
    tiles have the size of `window_size`. They are spaced along each axis from border to border, as
    evenly as whole pixels allow; there are no more than the overlap requires.

    Args:
        height: of the original in pixels.
        width: likewise.
        key: size of the input, resize mode and tiling.

    Returns:
        The placements, line by line; a line runs along the axis with fewer tiles, so that code that
        merges tiles in this order has the fewest unfinished lines in memory.
    """
    rows, columns = _tile_grid(height, width, key)
    if rows * columns == 1:
        return [make_placement(height, width, key)]
    window = window_size(height, width, key)
    inner = make_placement(*window, key)
    tops, lefts = _starts(height, window[0], rows), _starts(width, window[1], columns)
    if rows <= columns:
        corners = [(top, left) for left in lefts for top in tops]
    else:
        corners = [(top, left) for top in tops for left in lefts]
    return [
        replace(
            inner,
            height=height,
            width=width,
            source=inner.source._replace(top=top + inner.source.top, left=left + inner.source.left),
        )
        for top, left in corners
    ]


def count_tiles(height: int, width: int, key: InputKey) -> int:
    """Return the number of tiles of an original; 1 where it is not tiled."""
    rows, columns = _tile_grid(height, width, key)
    return rows * columns


def canvas_size(placement: Placement, grid_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the (rows, columns) of a grid over the original with cells of the same size.

    Args:
        placement: of the original or of one of its tiles.
        grid_hw: rows and columns of the grid over the network's input.
    """
    source, target = placement.source, placement.target
    rows = divide_rounded(
        placement.height * target.height * grid_hw[0], source.height * placement.input_height
    )
    columns = divide_rounded(
        placement.width * target.width * grid_hw[1], source.width * placement.input_width
    )
    return max(1, rows), max(1, columns)


def _tile_grid(height: int, width: int, key: InputKey) -> tuple[int, int]:
    if key.tiling is None:
        return 1, 1
    rows = _count_windows(height, key.tiling.tile_height, key.tiling.overlap_height)
    return rows, _count_windows(width, key.tiling.tile_width, key.tiling.overlap_width)


def _count_windows(length: int, size: int, overlap: int) -> int:
    return 1 if length <= size else -(-(length - overlap) // (size - overlap))


def _starts(length: int, size: int, count: int) -> list[int]:
    """Return the first pixel of each window, from 0 to `length − size`."""
    return [divide_rounded(i * (length - size), max(1, count - 1)) for i in range(count)]
