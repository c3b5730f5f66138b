"""Pixels are replaced in the order of a heatmap, and nothing else changes."""

import cv2
import numpy as np
import pytest

from cvbatch.core.types import InputKey, Tiling
from cvbatch.evaluate.perturbation import (
    area_under_curve,
    blur,
    grey_like,
    mirror_and_shift,
    pixel_order,
    replace_pixels,
    seeded_rng,
)
from cvbatch.geometry.resize import PADDING_GREY, make_placement
from cvbatch.geometry.tiling import tile_placements

CASES = {
    "stretch": (InputKey(12, 16, "stretch"), (30, 20)),
    "letterbox": (InputKey(12, 16, "letterbox"), (30, 10)),
    "crop": (InputKey(12, 16, "crop"), (30, 10)),
    "tiles": (InputKey(12, 16, "letterbox", Tiling(12, 12, 3, 3)), (30, 20)),
}


def make_input(case):
    """Return placements, pixels, and which of them are of the image."""
    key, size = CASES[case]
    placements = tile_placements(*size, key)
    pixels = np.full((len(placements), 12, 16, 3), PADDING_GREY, np.uint8)
    is_image = np.zeros(pixels.shape[:3], bool)
    rng = np.random.default_rng(2)
    for tile, is_tile, placement in zip(pixels, is_image, placements, strict=True):
        top, left, height, width = placement.target
        tile[top : top + height, left : left + width] = rng.integers(0, 256, (height, width, 3))
        is_tile[top : top + height, left : left + width] = True
    return placements, pixels, is_image


def test_one_step_replaces_nothing():
    placements, pixels, _ = make_input("stretch")
    order = pixel_order(np.ones((2, 2)), placements, seeded_rng(0, ""))
    assert list(replace_pixels(pixels, grey_like(pixels), order, 1)) == []


def test_random_numbers_depend_on_seed_and_name_only():
    first = seeded_rng(3, "a").random(4)
    seeded_rng(3, "b").random(9)
    np.testing.assert_array_equal(first, seeded_rng(3, "a").random(4))
    others = [seeded_rng(4, "a"), seeded_rng(3, "b"), seeded_rng(3, "3/a")]
    assert not any(np.array_equal(first, other.random(4)) for other in others)


def test_a_random_map_is_as_smooth_and_its_maximum_is_uniform():
    values = np.zeros((3, 4))
    values[1, 1], values[1, 2] = 1, 0.5
    counts = np.zeros(values.shape)
    for i in range(3600):
        random = mirror_and_shift(values, seeded_rng(0, f"{i}"))
        np.testing.assert_array_equal(np.sort(random, axis=None), np.sort(values, axis=None))
        neighbours = [np.roll(random, shift, axis=1) for shift in (-1, 1)]
        assert any(neighbour[random == 1] == 0.5 for neighbour in neighbours)
        counts += random == 1
    # 300 expected in each of 12 cells: chi-squared of 11 degrees, beyond 40 once in 30,000
    assert ((counts - 300) ** 2 / 300).sum() < 40


@pytest.mark.parametrize("case", CASES)
def test_the_order_has_each_pixel_of_the_image_once_strongest_first(case):
    placements, _, is_image = make_input(case)
    values = np.random.default_rng(0).random((3, 4))
    order = pixel_order(values, placements, seeded_rng(0, "x"))
    np.testing.assert_array_equal(np.sort(order), np.flatnonzero(is_image))
    if case != "tiles":
        strength = cv2.resize(values, (16, 12), interpolation=cv2.INTER_LINEAR).reshape(-1)
        assert (np.diff(strength[order]) <= 1e-12).all()


def test_pixels_of_equal_strength_are_ordered_in_random_patches():
    placement = make_placement(48, 48, InputKey(48, 48, "stretch"))
    orders = [pixel_order(np.zeros((4, 4)), [placement], seeded_rng(0, f"{i}")) for i in range(400)]
    first = np.array([order[0] for order in orders])
    cells = first // 48 // 12 * 4 + first % 48 // 12
    assert np.bincount(cells, minlength=16).min() > 5  # of 25 expected: from anywhere
    rank = np.empty(48 * 48)
    rank[orders[0]] = np.arange(48 * 48)
    rank_difference = np.abs(np.diff(rank.reshape(48, 48))).mean()
    assert rank_difference < 48 * 48 / 3 / 4  # a third of all, if pixels were independent


@pytest.mark.parametrize("case", CASES)
def test_steps_equal_a_loop_over_pixels(case):
    placements, pixels, is_image = make_input(case)
    blurred = blur(pixels, placements)
    np.testing.assert_array_equal(blurred[~is_image], pixels[~is_image])
    assert not np.array_equal(blurred[is_image], pixels[is_image])
    order = pixel_order(np.random.default_rng(1).random((5, 5)), placements, seeded_rng(0, ""))
    steps = 7
    for start, end in ((pixels, grey_like(pixels)), (blurred, pixels)):
        before = [image.copy() for image in (start, end)]
        variants = list(replace_pixels(start, end, order, steps))
        assert len(variants) == steps - 1
        for s, variant in enumerate(variants, 1):
            expected = start.copy().reshape(-1, 3)
            for position in order[: round(s * len(order) / steps + 1e-9)]:
                expected[position] = end.reshape(-1, 3)[position]
            np.testing.assert_array_equal(variant, expected.reshape(pixels.shape))
            np.testing.assert_array_equal(variant[~is_image], pixels[~is_image])
        np.testing.assert_array_equal(before, (start, end))


def test_the_area_is_a_sum_of_trapezoids():
    assert area_under_curve(np.array([1.0, 1.0])) == 1
    assert area_under_curve(np.array([0.0, 1.0, 0.0])) == 0.5
    curves = np.random.default_rng(0).random((2, 6))
    expected = [sum((c[i] + c[i + 1]) / 2 / 5 for i in range(5)) for c in curves]
    np.testing.assert_allclose(area_under_curve(curves), expected)
