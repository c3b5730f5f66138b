"""Boxes from heatmaps, compared with a flood fill over the pixels above the threshold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.config.evaluate import HeatmapsConfig
from cvbatch.geometry.resampling import resize_bilinear
from cvbatch.images import heatmaps
from cvbatch.images.heatmaps import BOX_THRESHOLD, boxes_from_heatmap


def flood_fill_box(values, threshold):
    """Return the box of the largest connected component, or None if there is none."""
    peak = values.max(initial=0)
    positions = np.argwhere(values >= threshold * peak).tolist() if peak > 0 else []
    unvisited = {(y, x) for y, x in positions}
    components = []
    while unvisited:
        component, pending = set(), [unvisited.pop()]
        while pending:
            y, x = pending.pop()
            component.add((y, x))
            neighbours = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & unvisited
            unvisited -= neighbours
            pending += neighbours
        ys, xs = zip(*component, strict=True)
        components.append((-len(component), min(ys), min(xs), max(ys) + 1, max(xs) + 1))
    if not components:
        return None
    _, top, left, bottom, right = min(components)
    return [left, top, right, bottom]


def test_a_heatmap_without_positive_values_gives_no_box():
    for values in (np.zeros((3, 4)), -np.ones((3, 4))):
        boxes = boxes_from_heatmap(values, 30, 40)
        assert (boxes.shape, boxes.dtype) == ((0, 4), np.float32)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 10_000),
    st.sampled_from([0.15, 0.5, 1.0]),
)
def test_the_box_is_that_of_the_largest_component(size, seed, threshold):
    rng = np.random.default_rng(seed)
    values = (
        rng.integers(0, 4, size) * (rng.random(size) < 0.5) / 3
    )  # many components of equal size
    expected = flood_fill_box(values, threshold)
    boxes = boxes_from_heatmap(values, *size, threshold)
    assert boxes.tolist() == ([] if expected is None else [expected])


@pytest.mark.parametrize("size", [(20, 50), (50, 20), (7, 7), (1, 9)])
def test_the_heatmap_is_resized_to_the_image_first(size):
    values = np.random.default_rng(1).random((3, 5)) ** 4
    expected = flood_fill_box(resize_bilinear(values, *size), 0.3)
    assert boxes_from_heatmap(values, *size, 0.3).tolist() == [expected]


def test_a_single_pixel_gives_a_box():
    values = np.zeros((4, 5))
    values[2, 3] = 1e-20
    assert boxes_from_heatmap(values, 4, 5).tolist() == [[3, 2, 4, 3]]


def test_boxes_of_a_very_large_image_have_the_resolution_of_the_heatmap(monkeypatch):
    monkeypatch.setattr(heatmaps, "MAX_SIDE", 10)
    values = np.zeros((10, 10))
    values[2:5, 3:9] = 1
    assert boxes_from_heatmap(values, 40, 20, 0.9).tolist() == [[6, 8, 18, 20]]


def test_the_evaluation_has_the_same_default_threshold():
    assert HeatmapsConfig().box_threshold == BOX_THRESHOLD
