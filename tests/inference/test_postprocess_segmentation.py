"""Masks of tiled images, compared with the arg-max of probabilities averaged by loops."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest

from cvbatch.core.types import VOID_CLASS, InputKey, Tiling, unflatten
from cvbatch.geometry.tiling import tile_placements
from cvbatch.inference import postprocess_segmentation
from cvbatch.inference.postprocess_segmentation import merge_masks, read_masks


def cell_at_centre(i, start, size, target_start, target_size, input_size, cells):
    """Return the cell that contains the centre of pixel i, computed with fractions."""
    centre = Fraction(2 * (i - start) + 1, 2) * Fraction(target_size, size) + target_start
    return floor(centre * cells / input_size)


def merge_by_loop(placements, tiles):
    """Return the mask by its definition: mean over all tiles of each pixel, then arg-max."""
    height, width = placements[0].height, placements[0].width
    sums = np.zeros((height, width, tiles[0].shape[2]), np.float32)
    count = np.zeros((height, width), int)
    for placement, tile in zip(placements, tiles, strict=True):
        (top, left, h, w), inner = placement.source, placement.target
        for y in range(top, top + h):
            row = cell_at_centre(
                y, top, h, inner.top, inner.height, placement.input_height, len(tile)
            )
            for x in range(left, left + w):
                column = cell_at_centre(
                    x, left, w, inner.left, inner.width, placement.input_width, tile.shape[1]
                )
                sums[y, x] += tile[row, column]
                count[y, x] += 1
    assert (count > 0).all()
    return (sums / count[..., None]).argmax(axis=2)


def probabilities(count, height, width, num_classes, seed=0):
    """Return values in eighths, whose sums are exact and whose means are often equal."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 9, (count, height, width, num_classes)).astype(np.float32) / 8


def merge(placements, tiles):
    masks = merge_masks(iter(tiles), 7, placements)
    assert masks.image_index.tolist() == [7]
    assert masks.class_id.dtype == np.uint8
    (mask,) = unflatten(masks.class_id, masks.height, masks.width)
    return mask


def test_no_images_give_no_masks():
    masks = read_masks(np.zeros((0, 4, 5), np.uint8), np.zeros(0, np.int64))
    assert [len(column) for column in vars(masks).values()] == [0, 0, 0, 0]


def test_masks_of_untiled_images_are_unchanged():
    class_id = np.arange(40, dtype=np.uint8).reshape(2, 4, 5)
    masks = read_masks(class_id, np.array([3, 5]))
    unflattened = list(unflatten(masks.class_id, masks.height, masks.width))
    np.testing.assert_array_equal(unflattened, class_id)
    assert masks.image_index.tolist() == [3, 5]


@pytest.mark.parametrize("band_bytes", [1, 300, 1 << 20])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize(
    ("size", "tiling", "grid"),
    [
        ((12, 9), Tiling(8, 8, 2, 2), (8, 8)),  # few rows and columns of tiles
        ((9, 30), Tiling(8, 8, 2, 3), (8, 8)),  # tiles are ordered along columns
        ((30, 9), Tiling(8, 8, 3, 2), (8, 8)),  # tiles are ordered along rows
        ((5, 30), Tiling(8, 8, 2, 2), (8, 8)),  # one row of tiles
        ((30, 5), Tiling(8, 8, 2, 2), (8, 8)),  # one column of tiles
        ((16, 16), Tiling(8, 8, 0, 0), (8, 8)),  # no overlap
        ((23, 19), Tiling(8, 8, 6, 6), (8, 8)),  # up to 16 tiles per pixel
        ((23, 19), Tiling(9, 7, 4, 3), (4, 4)),  # probabilities on a coarser grid
    ],
)
def test_merged_mask_equals_loop(size, tiling, grid, resize, band_bytes, monkeypatch):
    monkeypatch.setattr(postprocess_segmentation, "_BAND_BYTES", band_bytes)
    placements = tile_placements(*size, InputKey(8, 8, resize, tiling))
    tiles = probabilities(len(placements), *grid, 3)
    np.testing.assert_array_equal(merge(placements, tiles), merge_by_loop(placements, tiles))


def test_lower_class_is_selected_of_equal_means():
    placements = tile_placements(8, 20, InputKey(8, 8, "stretch", Tiling(8, 8, 2, 2)))
    tiles = np.full((len(placements), 8, 8, 4), 0.25, np.float32)
    assert (merge(placements, tiles) == 0).all()


def test_only_tiles_over_pending_pixels_are_retained():
    """A long image is merged with the memory of a few tiles, independent of its length."""
    key = InputKey(4, 4, "stretch", Tiling(4, 4, 1, 1))
    placements = tile_placements(4, 3 * 500 + 1, key)
    assert len(placements) == 500
    alive = []

    def tiles():
        import weakref

        for seed in range(len(placements)):
            tile = probabilities(1, 4, 4, 2, seed)[0]
            alive.append(weakref.ref(tile))
            yield tile
            del tile
            assert sum(reference() is not None for reference in alive) <= 3

    mask = merge(placements, tiles())
    assert (mask != VOID_CLASS).all()
