"""A merged mask is the arg-max of probabilities averaged over the whole image at once."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest

from cvbatch.core.types import VOID_CLASS, InputKey, Tiling, pictures_of
from cvbatch.geometry.tiling import tile_placements
from cvbatch.inference import postprocess_segmentation
from cvbatch.inference.postprocess_segmentation import merge_masks, read_masks


def at_centre(i, start, size, target_start, target_size, input_size, cells):
    """Return the cell that holds the centre of pixel i, by exact fractions."""
    centre = Fraction(2 * (i - start) + 1, 2) * Fraction(target_size, size) + target_start
    return floor(centre * cells / input_size)


def average(placements, tiles):
    """Return the mask by sums over the whole image and every tile: the definition."""
    height, width = placements[0].height, placements[0].width
    sums = np.zeros((height, width, tiles[0].shape[2]), np.float32)
    count = np.zeros((height, width), int)
    for placement, tile in zip(placements, tiles, strict=True):
        (top, left, h, w), inner = placement.source, placement.target
        for y in range(top, top + h):
            row = at_centre(y, top, h, inner.top, inner.height, placement.input_height, len(tile))
            for x in range(left, left + w):
                column = at_centre(
                    x, left, w, inner.left, inner.width, placement.input_width, tile.shape[1]
                )
                sums[y, x] += tile[row, column]
                count[y, x] += 1
    assert (count > 0).all()
    return (sums / count[..., None]).argmax(axis=2)


def probabilities(count, height, width, num_classes, seed=0):
    """Return values in eighths: averages of up to four tie often, and are exact."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 9, (count, height, width, num_classes)).astype(np.float32) / 8


def merged(placements, tiles):
    masks = merge_masks(iter(tiles), 7, placements)
    assert masks.image_index.tolist() == [7]
    assert masks.class_id.dtype == np.uint8
    (mask,) = pictures_of(masks.class_id, masks.height, masks.width)
    return mask


def test_no_masks_are_none():
    masks = read_masks(np.zeros((0, 4, 5), np.uint8), np.zeros(0, np.int64))
    assert [len(column) for column in vars(masks).values()] == [0, 0, 0, 0]


def test_masks_that_are_not_merged_stay_as_they_are():
    class_id = np.arange(40, dtype=np.uint8).reshape(2, 4, 5)
    masks = read_masks(class_id, np.array([3, 5]))
    pictures = list(pictures_of(masks.class_id, masks.height, masks.width))
    np.testing.assert_array_equal(pictures, class_id)
    assert masks.image_index.tolist() == [3, 5]


@pytest.mark.parametrize("band_bytes", [1, 300, 1 << 20])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize(
    ("size", "tiling", "grid"),
    [
        ((12, 9), Tiling(8, 8, 2, 2), (8, 8)),  # few rows and columns
        ((9, 30), Tiling(8, 8, 2, 3), (8, 8)),  # lines are columns
        ((30, 9), Tiling(8, 8, 3, 2), (8, 8)),  # lines are rows
        ((5, 30), Tiling(8, 8, 2, 2), (8, 8)),  # a single row
        ((30, 5), Tiling(8, 8, 2, 2), (8, 8)),  # a single column
        ((16, 16), Tiling(8, 8, 0, 0), (8, 8)),  # no overlap at all
        ((23, 19), Tiling(8, 8, 6, 6), (8, 8)),  # up to sixteen tiles over a pixel
        ((23, 19), Tiling(9, 7, 4, 3), (4, 4)),  # the network answers on a coarser grid
    ],
)
def test_the_mask_is_the_whole_images_average(size, tiling, grid, resize, band_bytes, monkeypatch):
    monkeypatch.setattr(postprocess_segmentation, "_BAND_BYTES", band_bytes)
    placements = tile_placements(*size, InputKey(8, 8, resize, tiling))
    tiles = probabilities(len(placements), *grid, 3)
    np.testing.assert_array_equal(merged(placements, tiles), average(placements, tiles))


def test_of_equal_averages_the_lower_class_is_taken():
    placements = tile_placements(8, 20, InputKey(8, 8, "stretch", Tiling(8, 8, 2, 2)))
    tiles = np.full((len(placements), 8, 8, 4), 0.25, np.float32)
    assert (merged(placements, tiles) == 0).all()


def test_only_what_is_undecided_is_held():
    """A long image is merged with the memory of a few tiles, whatever its length."""
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

    mask = merged(placements, tiles())
    assert (mask != VOID_CLASS).all()
