"""Post-processing of segmentation: masks, and masks of tiled images from mean probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cvbatch.config.models import SegmentationConfig
from cvbatch.core.types import VOID_CLASS, InputKey, Masks, ModelPredictions, ModelSpec
from cvbatch.geometry.resampling import Taps, bilinear_taps, interpolate
from cvbatch.geometry.resize import Placement, make_placement, mask_to_original
from cvbatch.images.masks import count_pixels, encode_png
from cvbatch.inference.class_maps import ClassRule, classify
from cvbatch.inference.engines import Outputs

_BAND_BYTES = 16 << 20  # maximum size of the probability sums of one band of rows


def read_outputs(
    config: SegmentationConfig,
    spec: ModelSpec,
    outputs: Outputs,  # mask (K, h, w) uint8, or probabilities (K, h, w, C)
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
) -> ModelPredictions:
    """Return the masks of K images, at the size of the originals or of the network's input."""
    if config.mask_size == "model":
        size = spec.input_height, spec.input_width
        placements = [make_placement(*size, InputKey(*size, "stretch"))] * len(placements)
    masks: Iterator[np.ndarray]
    if "mask" in outputs:
        masks = map(mask_to_original, outputs["mask"], placements)
    else:
        maps = outputs["probabilities"]
        rule = ClassRule.of(config, spec.classes, maps.shape[3])
        masks = (classify(*pair, rule) for pair in zip(maps, placements, strict=True))
    return ModelPredictions(masks=encode_masks(masks, image_index, len(spec.classes)))


def merge_tiles(
    config: SegmentationConfig,
    spec: ModelSpec,
    tiles: Iterator[Outputs],  # T, each a batch of one: probabilities (1, h, w, C)
    placements: Sequence[Placement],  # T
    position: int,  # of the image in its batch
) -> ModelPredictions:
    """Return the mask of one tiled image."""
    probabilities = (outputs["probabilities"][0] for outputs in tiles)
    mask = merge_masks(probabilities, placements, lambda c: ClassRule.of(config, spec.classes, c))
    index = np.array([position], np.int64)
    return ModelPredictions(masks=encode_masks([mask], index, len(spec.classes)))


def encode_masks(
    masks: Iterable[np.ndarray],  # K of (h, w) uint8
    image_index: np.ndarray,  # (K,) positions in the batch
    num_classes: int,
) -> Masks:
    """Return masks as PNG; only one of them is in memory at a time."""
    files, areas = [np.zeros(0, np.uint8)], [np.zeros((0, num_classes), np.int64)]
    for mask in masks:
        files.append(np.frombuffer(encode_png(mask), np.uint8))
        areas.append(count_pixels(mask, num_classes)[None])
    num_bytes = np.array([len(file) for file in files[1:]], np.int64)
    return Masks(np.concatenate(files), num_bytes, np.concatenate(areas), image_index)


def merge_masks(
    tiles: Iterable[np.ndarray],  # T of (h, w, C) float32
    placements: Sequence[Placement],  # T ≥ 2
    rule_of: Callable[[int], ClassRule],
) -> np.ndarray:  # (height, width) uint8
    """Merge the tiles of one image into a mask at the size of the original.

    The class of a pixel is the one with the largest mean probability over the tiles that cover the
    pixel, interpolated to its centre; of equal means the lower class id. Sums are compared instead
    of means; they are float32, added in the order of the tiles. Pixels that no tile covers are
    `VOID_CLASS`.

    To save memory, tiles are processed one at a time. A pixel gets its class when the last tile
    that covers it was received, and only the part of a tile over pending pixels is retained.

    Args:
        tiles: class probabilities, on a grid of any size over the network's input.
        placements: of the tiles, in the order of `tile_placements`.
        rule_of: function of the number of channels C that returns how they become class ids.
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
        rule = rule_of(probabilities.shape[2])
        _classify(oriented_mask, pending, (tile.top, bottom), (tile.left, right), rule)
        pending = [_crop_above(t, bottom) if t.right <= right else t for t in pending]
        pending = [t for t in pending if t.top < t.bottom]
    return mask


@dataclass(frozen=True)
class _Tile:
    """Probabilities of a tile, and the mapping from pixels of the original to them.

    Attributes:
        top: first row of the original that the tile covers.
        left: first column.
        rows: rows of `probabilities` for each row of the original, beginning at `top`.
        columns: columns of `probabilities` for each column of the original, beginning at `left`.
        probabilities: of every class, on the grid of the tile.
    """

    top: int
    left: int
    rows: Taps  # R
    columns: Taps  # S
    probabilities: np.ndarray  # (h, w, C) float32

    @property
    def bottom(self) -> int:
        return self.top + len(self.rows)

    @property
    def right(self) -> int:
        return self.left + len(self.columns)

    def sample(self, rows: slice, columns: slice) -> np.ndarray:  # (r, s, C) float32
        """Return the probabilities of pixels of the original, relative to `top` and `left`."""
        by_columns = self.columns.part(columns)
        across = by_columns.low[0], by_columns.high[-1] + 1
        by_rows = self.rows.part(rows)
        down = by_rows.low[0], by_rows.high[-1] + 1
        part = self.probabilities[slice(*down), slice(*across)]
        sampled = interpolate(part, by_columns.from_first(), axis=1)
        return interpolate(sampled, by_rows.from_first(), axis=0)


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
    top, rows, left, columns = bilinear_taps(placement, probabilities.shape)
    if is_by_columns:
        return _Tile(left, top, columns, rows, probabilities.swapaxes(0, 1))
    return _Tile(top, left, rows, columns, probabilities)


def _crop_above(tile: _Tile, bottom: int) -> _Tile:
    """Return the part of the tile in rows from `bottom` on; it may be empty."""
    if tile.top >= bottom:
        return tile
    rows = tile.rows.part(slice(bottom - tile.top, None))
    if not len(rows):
        return _Tile(bottom, tile.left, rows, tile.columns, tile.probabilities[:0])
    kept = tile.probabilities[rows.low[0] :].copy()
    return _Tile(bottom, tile.left, rows.from_first(), tile.columns, kept)


def _classify(
    mask: np.ndarray,  # (h, w) uint8, modified
    tiles: Sequence[_Tile],  # all that cover any of the pixels
    rows: tuple[int, int],  # start, stop
    columns: tuple[int, int],
    rule: ClassRule,
) -> None:
    """Write the class of the pixels in these rows and columns into the mask."""
    left, right = columns
    num_classes = tiles[0].probabilities.shape[2]
    step = max(1, _BAND_BYTES // (4 * num_classes * (right - left)))
    for top in range(rows[0], rows[1], step):
        bottom = min(top + step, rows[1])
        sums = np.zeros((bottom - top, right - left, num_classes), np.float32)
        count = np.zeros((bottom - top, right - left), np.int32)
        for tile in tiles:
            first_row, last_row = max(top, tile.top), min(bottom, tile.bottom)
            first_column, last_column = max(left, tile.left), min(right, tile.right)
            if first_row < last_row and first_column < last_column:
                covered = (
                    slice(first_row - top, last_row - top),
                    slice(first_column - left, last_column - left),
                )
                sums[covered] += tile.sample(
                    slice(first_row - tile.top, last_row - tile.top),
                    slice(first_column - tile.left, last_column - tile.left),
                )
                count[covered] += 1
        channel = sums.argmax(axis=2)
        best = np.take_along_axis(sums, channel[..., None], axis=2)[..., 0]
        mask[top:bottom, left:right] = rule.classes(channel, best, count)
