"""Large images are cut into tiles here, so that a network sees them at the scale it is made for."""

from __future__ import annotations

from dataclasses import replace

from cvbatch.core.types import InputKey
from cvbatch.geometry.resize import Placement, divide_rounded, make_placement, window_size


def tile_placements(height: int, width: int, key: InputKey) -> list[Placement]:
    """Return how each tile of an original lies in its input; uncut, the one is that of `place`.

    An original is cut where the key has a tiling and either side is longer than a tile's. Windows
    of a tile's size, or the original's where that is shorter, then stand along each axis from
    border to border, as evenly as whole pixels allow and no more of them than the overlap takes.
    They come line by line, a line running along the axis that has fewer: who merges them in this
    order has the fewest unfinished at once.
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
    seen = inner.source
    return [
        replace(
            inner,
            height=height,
            width=width,
            source=seen._replace(top=top + seen.top, left=left + seen.left),
        )
        for top, left in corners
    ]


def count_tiles(height: int, width: int, key: InputKey) -> int:
    """Return how many tiles an original is cut into; 1: it stays whole."""
    rows, columns = _tile_grid(height, width, key)
    return rows * columns


def canvas_size(placement: Placement, grid_hw: tuple[int, int]) -> tuple[int, int]:
    """Return how many rows and columns of the grid's cells, as seen there, the original has."""
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
    """Return where windows begin: the first at 0, the last so that it ends with the original."""
    return [divide_rounded(i * (length - size), max(1, count - 1)) for i in range(count)]
