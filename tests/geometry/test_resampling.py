"""Resampled heatmaps equal OpenCV and plain loops over pixels."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.core.types import InputKey, Tiling
from cvbatch.geometry import resampling
from cvbatch.geometry.resampling import (
    heatmap_to_input,
    heatmap_to_original,
    peak_in_original,
    resize_bilinear,
)
from cvbatch.geometry.resize import make_placement
from cvbatch.geometry.tiling import tile_placements

SIDES = st.integers(1, 9)
MODES = ("stretch", "letterbox", "crop")


def random_heatmap(shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def value_at(values, y, x):
    """Interpolate a heatmap at a position in cells, from the four cells around it."""
    height, width = values.shape
    y, x = (min(max(p, 0.5), n - 0.5) - 0.5 for p, n in ((y, height), (x, width)))
    top, left = int(y), int(x)
    down, right = min(top + 1, height - 1), min(left + 1, width - 1)
    above = values[top, left] * (1 - (x - left)) + values[top, right] * (x - left)
    below = values[down, left] * (1 - (x - left)) + values[down, right] * (x - left)
    return above * (1 - (y - top)) + below * (y - top)


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_resizing_equals_opencv(grid, size):
    values = random_heatmap(grid).astype(np.float64)
    expected = cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(resize_bilinear(values, *size), expected, atol=1e-6)


def test_resizing_to_the_same_size_changes_nothing():
    values = random_heatmap((7, 5))
    np.testing.assert_array_equal(resize_bilinear(values, 7, 5), values)


@pytest.mark.parametrize(
    ("mode", "fraction"), [*((mode, None) for mode in MODES), ("crop", 0.8), ("stretch", 0.8)]
)
@pytest.mark.parametrize("size", [(20, 20), (13, 40), (40, 13), (1, 30)])
def test_each_pixel_of_the_original_has_the_value_at_its_position(mode, fraction, size):
    values = random_heatmap((4, 6))
    placement = make_placement(*size, InputKey(16, 24, mode, None, fraction))
    resampled = heatmap_to_original(values, placement)
    source, target = placement.source, placement.target
    assert resampled.shape == size
    for y in range(size[0]):
        for x in range(size[1]):
            inside = (
                source.top <= y < source.top + source.height
                and source.left <= x < source.left + source.width
            )
            y_in = (y + 0.5 - source.top) / source.height * target.height + target.top
            x_in = (x + 0.5 - source.left) / source.width * target.width + target.left
            inside = inside and 0 <= y_in < 16 and 0 <= x_in < 24
            expected = value_at(values, y_in / 16 * 4, x_in / 24 * 6) if inside else 0
            assert resampled[y, x] == pytest.approx(expected, abs=1e-6)


def test_the_sides_over_a_large_original_are_limited(monkeypatch):
    monkeypatch.setattr(resampling, "MAX_SIDE", 20)
    values = random_heatmap((5, 5))
    resampled = heatmap_to_original(values, make_placement(60, 10, InputKey(16, 16, "stretch")))
    np.testing.assert_allclose(resampled, resize_bilinear(values, 20, 10))


@pytest.mark.parametrize("mode", MODES)
def test_over_an_untiled_input_the_heatmap_covers_the_padding_too(mode):
    values = random_heatmap((3, 4))
    resampled = heatmap_to_input(values, [make_placement(30, 11, InputKey(12, 8, mode))])
    np.testing.assert_allclose(resampled, resize_bilinear(values, 12, 8)[None])


def test_each_tile_has_its_part_of_the_heatmap_over_the_original():
    values = random_heatmap((6, 7))
    key = InputKey(16, 12, "stretch", Tiling(16, 12, 4, 3))
    placements = tile_placements(37, 41, key)
    assert len(placements) > 4
    over_original = resize_bilinear(values, 37, 41)
    for tile, placement in zip(heatmap_to_input(values, placements), placements, strict=True):
        top, left, height, width = placement.source
        np.testing.assert_allclose(tile, over_original[top : top + height, left : left + width])


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(SIDES, SIDES),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.sampled_from([*((mode,) for mode in MODES), ("crop", None, 0.7), ("stretch", None, 0.7)]),
    st.integers(0, 99),
)
def test_the_peak_equals_a_search_over_all_cells(grid, size, mode, seed):
    values = np.random.default_rng(seed).integers(0, 4, grid) / 4  # ties, and zeros
    placement = make_placement(*size, InputKey(24, 30, *mode))
    source, target = placement.source, placement.target
    best, expected = 0.0, None
    for row in range(grid[0]):
        for column in range(grid[1]):
            y = (row + 0.5) * 24 / grid[0] - target.top
            x = (column + 0.5) * 30 / grid[1] - target.left
            is_inside = 0 <= y < target.height and 0 <= x < target.width
            if is_inside and values[row, column] > best:
                best = values[row, column]
                expected = (
                    x * source.width / target.width + source.left,
                    y * source.height / target.height + source.top,
                )
    peak = peak_in_original(values, placement)
    assert peak == (None if expected is None else pytest.approx(expected))
    if peak is not None:
        assert 0 <= peak[0] < size[1] and 0 <= peak[1] < size[0]
