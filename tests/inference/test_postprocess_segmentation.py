"""Masks of tiled images, compared with the arg-max of probabilities averaged by loops."""

import numpy as np
import pytest

from cvbatch.core.types import VOID_CLASS, InputKey, Tiling
from cvbatch.geometry.tiling import tile_placements
from cvbatch.images.masks import decode_png
from cvbatch.inference import postprocess_segmentation
from cvbatch.inference.class_maps import ClassRule
from cvbatch.inference.postprocess_segmentation import encode_masks, merge_masks
from tests.support.class_maps import interpolated


def merge_by_loop(placements, tiles):
    """Return the mask by its definition: mean over all tiles of each pixel, then arg-max."""
    values = [interpolated(tile, p) for tile, p in zip(tiles, placements, strict=True)]
    mean = np.nanmean(values, axis=0)
    assert np.isfinite(mean).all()
    ranked = np.sort(mean, axis=2)
    return mean.argmax(axis=2), ranked[..., -1] - ranked[..., -2] > 1e-5


def probabilities(count, height, width, num_classes, seed=0):
    """Return values in eighths, whose sums are exact and whose means are often equal."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 9, (count, height, width, num_classes)).astype(np.float32) / 8


def merge(placements, tiles):
    mask = merge_masks(iter(tiles), placements, lambda channels: ClassRule(None, 0, 0))
    assert mask.dtype == np.uint8
    return mask


def test_no_images_give_no_masks():
    masks = encode_masks([], np.zeros(0, np.int64), 3)
    assert [len(column) for column in vars(masks).values()] == [0, 0, 0, 0]
    assert masks.area.shape == (0, 3)


def test_masks_are_stored_as_png_with_the_pixels_of_each_class():
    arrays = [
        np.arange(20, dtype=np.uint8).reshape(4, 5) % 3,
        np.full((2, 2), VOID_CLASS, np.uint8),
    ]
    masks = encode_masks(arrays, np.array([3, 5]), 3)
    files = np.split(masks.png, np.cumsum(masks.num_bytes)[:-1])
    for file, array in zip(files, arrays, strict=True):
        np.testing.assert_array_equal(decode_png(file.tobytes()), array)
    assert masks.area.tolist() == [[7, 7, 6], [0, 0, 0]]
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
    expected, is_clear = merge_by_loop(placements, tiles)
    assert is_clear.mean() > 0.8
    np.testing.assert_array_equal(merge(placements, tiles)[is_clear], expected[is_clear])


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
