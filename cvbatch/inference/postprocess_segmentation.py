"""Post-processing of segmentation: masks, and masks of tiled images from mean probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cvbatch.config.models import SegmentationConfig
from cvbatch.core.types import VOID_CLASS, Masks, ModelPredictions, ModelSpec
from cvbatch.geometry.resize import Placement, sample_grid
from cvbatch.inference.engines import Outputs

_BAND_BYTES = 16 << 20  # maximum size of the probability sums of one band of rows


def read_outputs(
    config: SegmentationConfig,
    spec: ModelSpec,
    outputs: Outputs,  # mask (K, H, W) uint8
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
) -> ModelPredictions:
    """Return the masks of K images."""
    return ModelPredictions(masks=read_masks(outputs["mask"], image_index))


def merge_tiles(
    config: SegmentationConfig,
    spec: ModelSpec,
    tiles: Iterator[Outputs],  # T, each a batch of one: probabilities (1, H, W, C)
    placements: Sequence[Placement],  # T
    position: int,  # of the image in its batch
) -> ModelPredictions:
    """Return the mask of one tiled image."""
    probabilities = (outputs["probabilities"][0] for outputs in tiles)
    return ModelPredictions(masks=merge_masks(probabilities, position, placements))


def read_masks(
    class_id: np.ndarray,  # (K, H, W) uint8
    image_index: np.ndarray,  # (K,) positions in the batch
) -> Masks:
    """Return the masks at the size of the network's input."""
    count, height, width = class_id.shape
    return Masks(
        class_id=class_id.reshape(-1),
        height=np.full(count, height, np.int32),
        width=np.full(count, width, np.int32),
        image_index=image_index,
    )


def merge_masks(
    tiles: Iterable[np.ndarray],  # T of (H, W, C) float32
    position: int,  # of the image in its batch
    placements: Sequence[Placement],  # T ≥ 2
) -> Masks:
    """Merge the tiles of one image into a mask at the size of the original.

    The class of a pixel is the one with the largest mean probability over the tiles that cover the
    pixel, evaluated at its centre; of equal means the lower class id. The same number of tiles
    covers the pixel for every class, so sums are compared instead of means; they are float32, added
    in the order of the tiles. Pixels that no tile covers are `VOID_CLASS`.

    To save memory, tiles are processed one at a time. A pixel gets its class when the last tile
    that covers it was received, and only the part of a tile over pending pixels is retained.

    Args:
        tiles: class probabilities, on a grid of any size over the network's input.
        position: of the image in its batch.
        placements: of the tiles, in the order of `tile_placements`.
    """
    first, second = placements[:2]
    mask = np.full((first.height, first.width), VOID_CLASS, np.uint8)
    is_by_columns = first.source.left == second.source.left
    # Tiles are ordered along the rows of this view, also if they are ordered along columns.
    oriented_mask = mask.T if is_by_columns else mask
    next_row, next_column = _next_starts(placements, is_by_columns)
    pending: list[_Tile] = []
    for placement, probabilities in zip(placements, tiles, strict=True):
        tile = _make_tile(placement, probabilities, is_by_columns)
        pending.append(tile)
        bottom, right = next_row[tile.top], next_column[tile.left]
        _classify(oriented_mask, pending, (tile.top, bottom), (tile.left, right))
        pending = [_crop_above(t, bottom) if t.right <= right else t for t in pending]
        pending = [t for t in pending if t.top < t.bottom]
    return Masks(
        class_id=mask.reshape(-1),
        height=np.array([first.height], np.int32),
        width=np.array([first.width], np.int32),
        image_index=np.array([position], np.int64),
    )


@dataclass(frozen=True)
class _Tile:
    """Probabilities of a tile, and the mapping from pixels of the original to them.

    Attributes:
        top: first row of the original that the tile covers.
        left: first column.
        rows: row of `probabilities` for each row of the original, beginning at `top`.
        columns: column of `probabilities` for each column of the original, beginning at `left`.
        probabilities: of every class, on the grid of the tile.
    """

    top: int
    left: int
    rows: np.ndarray  # (R,)
    columns: np.ndarray  # (S,)
    probabilities: np.ndarray  # (H, W, C) float32

    @property
    def bottom(self) -> int:
        return self.top + len(self.rows)

    @property
    def right(self) -> int:
        return self.left + len(self.columns)


def _next_starts(
    placements: Sequence[Placement], is_by_columns: bool
) -> tuple[dict[int, int], dict[int, int]]:
    """Map the first row of each tile to that of the next tile or the mask's end; also columns."""
    first = placements[0]
    tops = sorted({placement.source.top for placement in placements})
    lefts = sorted({placement.source.left for placement in placements})
    by_row = dict(pairwise([*tops, first.height]))
    by_column = dict(pairwise([*lefts, first.width]))
    return (by_column, by_row) if is_by_columns else (by_row, by_column)


def _make_tile(
    placement: Placement,
    probabilities: np.ndarray,  # (H, W, C)
    is_by_columns: bool,
) -> _Tile:
    grid_hw = probabilities.shape[0], probabilities.shape[1]
    top, rows, left, columns = sample_grid(placement, (placement.height, placement.width), grid_hw)
    if is_by_columns:
        return _Tile(left, top, columns, rows, probabilities.swapaxes(0, 1))
    return _Tile(top, left, rows, columns, probabilities)


def _crop_above(tile: _Tile, bottom: int) -> _Tile:
    """Return the part of the tile in rows from `bottom` on; it may be empty."""
    if tile.top >= bottom:
        return tile
    rows = tile.rows[bottom - tile.top :]
    if not len(rows):
        return _Tile(bottom, tile.left, rows, tile.columns, tile.probabilities[:0])
    kept = tile.probabilities[rows[0] :].copy()
    return _Tile(bottom, tile.left, rows - rows[0], tile.columns, kept)


def _classify(
    mask: np.ndarray,  # (h, w) uint8, modified
    tiles: Sequence[_Tile],  # all that cover any of the pixels
    rows: tuple[int, int],  # start, stop
    columns: tuple[int, int],
) -> None:
    """Write the class of the pixels in these rows and columns into the mask."""
    left, right = columns
    num_classes = tiles[0].probabilities.shape[2]
    step = max(1, _BAND_BYTES // (4 * num_classes * (right - left)))
    for top in range(rows[0], rows[1], step):
        bottom = min(top + step, rows[1])
        sums = np.zeros((bottom - top, right - left, num_classes), np.float32)
        for tile in tiles:
            first_row, last_row = max(top, tile.top), min(bottom, tile.bottom)
            first_column, last_column = max(left, tile.left), min(right, tile.right)
            if first_row < last_row and first_column < last_column:
                sums[
                    first_row - top : last_row - top, first_column - left : last_column - left
                ] += tile.probabilities.take(
                    tile.columns[first_column - tile.left : last_column - tile.left], axis=1
                ).take(tile.rows[first_row - tile.top : last_row - tile.top], axis=0)
        mask[top:bottom, left:right] = sums.argmax(axis=2)
