"""Grids of channels, patterns and kernels, compared with plain loops."""

import numpy as np
import pytest

from cvbatch.explain import image_grids


def grid_by_loop(maps, columns=16):
    """Return the grid of Chollet's book: (side + 1) pixels a channel, each scaled to 128 ± 64."""
    height, width, count = maps.shape
    num_columns = min(columns, count)
    num_rows = -(-count // columns)
    grid = np.zeros((num_rows * (height + 1) - 1, num_columns * (width + 1) - 1))
    for channel in range(count):
        image = maps[..., channel].astype(np.float64)
        image = image - image.mean()
        if image.std() > 0:
            image = image / image.std()
        image = np.clip(image * 64 + 128, 0, 255)
        row, column = divmod(channel, columns)
        grid[
            row * (height + 1) : row * (height + 1) + height,
            column * (width + 1) : column * (width + 1) + width,
        ] = image
    return grid


def test_grid_without_images_is_black():
    assert image_grids.make_grid(np.zeros((0, 4, 5), np.uint8), 8, 2).size <= 4 * 5
    assert not image_grids.make_grid(np.zeros((0, 4, 5, 3), np.uint8), 8, 2).any()
    assert not image_grids.channel_grid(np.zeros((4, 5, 0))).any()


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_channel_grid_equals_loop(count):
    maps = np.random.default_rng(count).normal(5, 20, (7, 9, count)).astype(np.float32)
    grid = image_grids.channel_grid(maps)
    assert grid.dtype == np.uint8
    np.testing.assert_allclose(grid, grid_by_loop(maps), atol=0.51)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-30])
def test_constant_channel_is_grey(value):
    maps = np.full((5, 5, 2), value, np.float32)
    assert (image_grids.standardize(maps, axis=(0, 1)) == 128).all()


def test_standardizing_ignores_scale():
    image = np.random.default_rng(1).normal(0, 1, (6, 6, 3))
    standardized = image_grids.standardize(image)
    assert np.array_equal(image_grids.standardize(image * 1e-12), standardized)
    assert np.array_equal(image_grids.standardize(image * 1e9), standardized)


def test_pattern_grid_has_8_columns_and_keeps_colours():
    patterns = np.random.default_rng(2).uniform(0, 1, (11, 6, 5, 3))
    grid = image_grids.pattern_grid(patterns)
    assert grid.shape == (2 * 6 + 5, 8 * 5 + 7 * 5, 3)
    pattern_9 = grid[11:17, 10 * 1 : 10 * 1 + 5]  # second row, second column
    assert np.array_equal(pattern_9, image_grids.standardize(patterns[9]))
    assert not grid[6:11].any()


@pytest.mark.parametrize(
    ("side", "crop", "expected"),
    [(224, 25, 174), (60, 25, 30), (60, 0, 60), (3, 25, 3), (8, 1, 6)],
)
def test_crop_is_at_most_a_quarter_of_a_side(side, crop, expected):
    cropped = image_grids.crop_patterns(np.zeros((2, side, side, 3)), crop)
    assert cropped.shape == (2, expected, expected, 3)


def test_kernel_grid_has_one_row_per_filter():
    kernels = np.random.default_rng(3).normal(0, 1, (2, 3, 4, 5))
    grid = image_grids.kernel_grid(kernels)
    grey = (kernels - kernels.min()) / (kernels.max() - kernels.min()) * 255
    scale = 8
    assert grid.shape == (5 * (2 * scale + 1) - 1, 4 * (3 * scale + 1) - 1)
    for filter_id in range(5):
        for channel in range(4):
            top, left = filter_id * (2 * scale + 1), channel * (3 * scale + 1)
            for y in range(2):
                for x in range(3):
                    cell = grid[
                        top + y * scale : top + (y + 1) * scale,
                        left + x * scale : left + (x + 1) * scale,
                    ]
                    np.testing.assert_allclose(cell, grey[y, x, channel, filter_id], atol=0.51)


def test_kernel_grid_has_a_maximum_size():
    grid = image_grids.kernel_grid(np.zeros((3, 3, 600, 700), np.float32))
    assert max(grid.shape) <= 4096
