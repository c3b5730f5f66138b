"""Grad-CAM reference values, colormap and overlay of heatmaps."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.images import heatmaps as h
from tests.support import reference_arrays


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5)])
def test_without_positive_evidence_the_heatmap_is_zero(shape: tuple[int, int, int]) -> None:
    zeros, ones = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    for features, gradients in ((zeros, ones), (ones, zeros), (ones, -ones)):
        np.testing.assert_array_equal(
            reference_arrays.grad_cam(features, gradients), np.zeros(shape[:2])
        )


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_grad_cam_equals_the_formula_of_the_paper(
    shape: tuple[int, int, int], seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=shape) * scale).astype(np.float32)
    gradients = (rng.normal(size=shape) * scale).astype(np.float32)
    height, width, channels = shape
    paper = np.zeros((height, width))
    for k in range(channels):
        alpha = sum(float(gradients[i, j, k]) for i in range(height) for j in range(width))
        paper += alpha / (height * width) * features[..., k].astype(np.float64)
    paper = np.maximum(paper, 0)
    paper = paper / paper.max() if paper.max() > 0 else paper
    heatmap = reference_arrays.grad_cam(features, gradients)
    assert (heatmap.shape, heatmap.dtype) == ((height, width), np.float32)
    np.testing.assert_allclose(heatmap, paper, atol=1e-5)
    assert heatmap.max() in (0, 1)


def test_the_order_of_the_channels_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    features, gradients = rng.normal(size=(2, 7, 7, 32)).astype(np.float32)
    order = rng.permutation(32)
    np.testing.assert_allclose(
        reference_arrays.grad_cam(features, gradients),
        reference_arrays.grad_cam(features[..., order], gradients[..., order]),
        atol=1e-6,
    )


def test_the_colormap_runs_from_blue_over_green_to_red() -> None:
    cold, middle, hot = h.apply_colormap(np.array([[0, 0.5, 1]], np.float32))[0].astype(int)
    assert cold.argmax() == 2 and middle.argmax() == 1 and hot.argmax() == 0
    np.testing.assert_array_equal(
        h.apply_colormap(np.array([[-3, 7]])), h.apply_colormap(np.array([[0, 1]]))
    )


def test_an_overlay_blends_the_resized_heatmap_with_opacity_0_4() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    heatmap = np.random.default_rng(1).random((4, 6)).astype(np.float32)
    before = image.copy()
    blended = h.overlay(image, heatmap)
    resized = cv2.resize(heatmap, (60, 40), interpolation=cv2.INTER_LINEAR)
    expected = 0.6 * image + 0.4 * h.apply_colormap(resized).astype(np.float64)
    assert np.abs(blended - expected).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(h.overlay(image, heatmap, opacity=0), image)
