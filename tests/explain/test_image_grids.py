"""What a network holds is laid out as plain loops lay it out."""

import numpy as np
import pytest

from cvbatch.explain import image_grids


def plain_grid(maps, columns=16):
    """The textbook's: a page of (side + 1) a channel, every channel brought to 128 ± 64."""
    height, width, count = maps.shape
    across = min(columns, count)
    down = -(-count // columns)
    page = np.zeros((down * (height + 1) - 1, across * (width + 1) - 1))
    for channel in range(count):
        picture = maps[..., channel].astype(np.float64)
        picture = picture - picture.mean()
        if picture.std() > 0:
            picture = picture / picture.std()
        picture = np.clip(picture * 64 + 128, 0, 255)
        row, column = divmod(channel, columns)
        page[
            row * (height + 1) : row * (height + 1) + height,
            column * (width + 1) : column * (width + 1) + width,
        ] = picture
    return page


def test_no_pictures_are_an_empty_page():
    assert image_grids.tiled(np.zeros((0, 4, 5), np.uint8), 8, 2).size <= 4 * 5
    assert not image_grids.tiled(np.zeros((0, 4, 5, 3), np.uint8), 8, 2).any()
    assert not image_grids.channel_grid(np.zeros((4, 5, 0))).any()


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_channels_lie_as_the_textbook_lays_them(count):
    maps = np.random.default_rng(count).normal(5, 20, (7, 9, count)).astype(np.float32)
    found = image_grids.channel_grid(maps)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, plain_grid(maps), atol=0.51)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-30])
def test_a_dead_channel_is_grey(value):
    maps = np.full((5, 5, 2), value, np.float32)
    assert (image_grids.standardised(maps, axis=(0, 1)) == 128).all()


def test_faint_and_bright_pictures_look_alike():
    picture = np.random.default_rng(1).normal(0, 1, (6, 6, 3))
    bright = image_grids.standardised(picture)
    assert np.array_equal(image_grids.standardised(picture * 1e-12), bright)
    assert np.array_equal(image_grids.standardised(picture * 1e9), bright)


def test_patterns_keep_their_colours_and_stand_eight_a_row():
    patterns = np.random.default_rng(2).uniform(0, 1, (11, 6, 5, 3))
    page = image_grids.pattern_grid(patterns)
    assert page.shape == (2 * 6 + 5, 8 * 5 + 7 * 5, 3)
    ninth = page[11:17, 10 * 1 : 10 * 1 + 5]  # second row, second picture: number 9
    assert np.array_equal(ninth, image_grids.standardised(patterns[9]))
    assert not page[6:11].any()


@pytest.mark.parametrize(
    ("side", "crop", "left"), [(224, 25, 174), (60, 25, 30), (60, 0, 60), (3, 25, 3), (8, 1, 6)]
)
def test_a_border_of_at_most_a_quarter_is_cut_off(side, crop, left):
    assert image_grids.cropped(np.zeros((2, side, side, 3)), crop).shape == (2, left, left, 3)


def test_kernels_stand_filter_below_filter():
    kernels = np.random.default_rng(3).normal(0, 1, (2, 3, 4, 5))
    page = image_grids.kernel_grid(kernels)
    grey = (kernels - kernels.min()) / (kernels.max() - kernels.min()) * 255
    scale = 8
    assert page.shape == (5 * (2 * scale + 1) - 1, 4 * (3 * scale + 1) - 1)
    for filter_id in range(5):
        for channel in range(4):
            top, left = filter_id * (2 * scale + 1), channel * (3 * scale + 1)
            for y in range(2):
                for x in range(3):
                    cell = page[
                        top + y * scale : top + (y + 1) * scale,
                        left + x * scale : left + (x + 1) * scale,
                    ]
                    np.testing.assert_allclose(cell, grey[y, x, channel, filter_id], atol=0.51)


def test_many_kernels_make_no_giant_picture():
    page = image_grids.kernel_grid(np.zeros((3, 3, 600, 700), np.float32))
    assert max(page.shape) <= 4096
