"""Post-processing of segmentation: masks of images, and one mask merged from many tiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cvbatch.config.models import SegmentationConfig
from cvbatch.core.types import VOID_CLASS, Masks, ModelPredictions, ModelSpec
from cvbatch.geometry.resize import Placement, sample_grid
from cvbatch.inference.engines import Outputs

_BAND_BYTES = 16 << 20  # of sums that are held while a band of the mask is decided


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
    """Return the mask of one image that was cut."""
    probabilities = (row["probabilities"][0] for row in tiles)
    return ModelPredictions(masks=merge_masks(probabilities, position, placements))


def read_masks(
    class_id: np.ndarray,  # (K, H, W) uint8
    image_index: np.ndarray,  # (K,) the images the rows are of
) -> Masks:
    """Return the masks at the network's own size."""
    count, height, width = class_id.shape
    return Masks(
        class_id=class_id.reshape(-1),
        height=np.full(count, height, np.int32),
        width=np.full(count, width, np.int32),
        image_index=image_index,
    )


def merge_masks(
    tiles: Iterable[np.ndarray],  # T of (H, W, C) float32 probabilities, at any scale
    position: int,  # of the image in its batch
    placements: Sequence[Placement],  # T ≥ 2, of `tile_placements`
) -> Masks:
    """Return the mask of an image that was cut, at the size of the original.

    To each pixel the class with the largest mean probability, of equal ones the lower: the mean
    over the tiles that cover the pixel, of the values at its centre. As the tiles are as many for
    every class, sums are compared, of float32 in the order of the tiles. What no tile covers is
    `VOID_CLASS`.

    The tiles are taken one at a time and pixels decided as soon as the last tile over them is
    there; of a tile only the part over undecided pixels stays.
    """
    first, second = placements[:2]
    mask = np.full((first.height, first.width), VOID_CLASS, np.uint8)
    is_by_columns = first.source.left == second.source.left
    upright = mask.T if is_by_columns else mask  # lines of tiles are rows of this view
    next_row, next_column = _next_starts(placements, is_by_columns)
    held: list[_Tile] = []
    for placement, probabilities in zip(placements, tiles, strict=True):
        tile = _laid_out(placement, probabilities, is_by_columns)
        held.append(tile)
        bottom, right = next_row[tile.top], next_column[tile.left]
        _decide(upright, held, (tile.top, bottom), (tile.left, right))
        held = [_undecided(one, bottom) if one.right <= right else one for one in held]
        held = [one for one in held if one.top < one.bottom]
    return Masks(
        class_id=mask.reshape(-1),
        height=np.array([first.height], np.int32),
        width=np.array([first.width], np.int32),
        image_index=np.array([position], np.int64),
    )


@dataclass(frozen=True)
class _Tile:
    """A tile's probabilities, and which of them each pixel of the original takes."""

    top: int
    left: int
    rows: np.ndarray  # (R,) of the probabilities, one for each row of the original from `top` on
    columns: np.ndarray  # (C',)
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
    """Return for each line of tiles, and each place in it, where the next begins or all ends."""
    first = placements[0]
    tops = sorted({one.source.top for one in placements})
    lefts = sorted({one.source.left for one in placements})
    by_row = dict(pairwise([*tops, first.height]))
    by_column = dict(pairwise([*lefts, first.width]))
    return (by_column, by_row) if is_by_columns else (by_row, by_column)


def _laid_out(
    placement: Placement,
    probabilities: np.ndarray,  # (H, W, C)
    is_by_columns: bool,
) -> _Tile:
    grid_hw = probabilities.shape[0], probabilities.shape[1]
    top, rows, left, columns = sample_grid(placement, (placement.height, placement.width), grid_hw)
    if is_by_columns:
        return _Tile(left, top, columns, rows, probabilities.swapaxes(0, 1))
    return _Tile(top, left, rows, columns, probabilities)


def _undecided(tile: _Tile, bottom: int) -> _Tile:
    """Return what of the tile lies in the rows from `bottom` on, perhaps nothing."""
    if tile.top >= bottom:
        return tile
    rows = tile.rows[bottom - tile.top :]
    if not len(rows):
        return _Tile(bottom, tile.left, rows, tile.columns, tile.probabilities[:0])
    kept = tile.probabilities[rows[0] :].copy()
    return _Tile(bottom, tile.left, rows - rows[0], tile.columns, kept)


def _decide(
    mask: np.ndarray,  # (h, w) uint8, written upon
    tiles: Sequence[_Tile],  # all that cover any of the pixels
    rows: tuple[int, int],  # from, to
    columns: tuple[int, int],
) -> None:
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
                seen = tile.probabilities.take(
                    tile.columns[first_column - tile.left : last_column - tile.left], axis=1
                ).take(tile.rows[first_row - tile.top : last_row - tile.top], axis=0)
                sums[
                    first_row - top : last_row - top, first_column - left : last_column - left
                ] += seen
        mask[top:bottom, left:right] = sums.argmax(axis=2)
