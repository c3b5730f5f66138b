"""A box round a heatmap is the one that flooding its strong pixels gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.config.evaluate import HeatmapsConfig
from cvbatch.geometry.resampling import resize_bilinear
from cvbatch.images import heatmaps
from cvbatch.images.heatmaps import BOX_THRESHOLD, boxes_from_heatmap


def flooded(values, threshold):
    """Return the box of the largest connected part, by flooding; None where there is none."""
    peak = values.max(initial=0)
    left = {(y, x) for y, x in np.argwhere(values >= threshold * peak).tolist()} if peak > 0 else ()
    parts = []
    left = set(left)
    while left:
        part, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            part.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            front += near
        ys, xs = zip(*part, strict=True)
        parts.append((-len(part), min(ys), min(xs), max(ys) + 1, max(xs) + 1))
    if not parts:
        return None
    _, top, lft, bottom, right = min(parts)
    return [lft, top, right, bottom]


def test_a_map_of_nothing_gives_no_box():
    for values in (np.zeros((3, 4)), -np.ones((3, 4))):
        boxes = boxes_from_heatmap(values, 30, 40)
        assert (boxes.shape, boxes.dtype) == ((0, 4), np.float32)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 10_000),
    st.sampled_from([0.15, 0.5, 1.0]),
)
def test_the_box_is_that_of_the_largest_part(size, seed, threshold):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, size) * (rng.random(size) < 0.5) / 3  # many parts of one size
    expected = flooded(values, threshold)
    found = boxes_from_heatmap(values, *size, threshold)
    assert found.tolist() == ([] if expected is None else [expected])


@pytest.mark.parametrize("size", [(20, 50), (50, 20), (7, 7), (1, 9)])
def test_the_map_is_stretched_over_the_image_first(size):
    values = np.random.default_rng(1).random((3, 5)) ** 4
    expected = flooded(resize_bilinear(values, *size), 0.3)
    assert boxes_from_heatmap(values, *size, 0.3).tolist() == [expected]


def test_one_pixel_is_a_box():
    values = np.zeros((4, 5))
    values[2, 3] = 1e-20
    assert boxes_from_heatmap(values, 4, 5).tolist() == [[3, 2, 4, 3]]


def test_of_an_image_that_is_too_large_the_box_is_as_exact_as_the_map(monkeypatch):
    monkeypatch.setattr(heatmaps, "MAX_SIDE", 10)
    values = np.zeros((10, 10))
    values[2:5, 3:9] = 1
    assert boxes_from_heatmap(values, 40, 20, 0.9).tolist() == [[6, 8, 18, 20]]


def test_the_evaluation_takes_the_same_threshold():
    assert HeatmapsConfig().box_threshold == BOX_THRESHOLD
