"""Labels and heatmaps of images and of tiled images, compared with plain loops."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest

from cvbatch.core.types import InputKey, Tiling, unflatten
from cvbatch.geometry.tiling import canvas_size, tile_placements
from cvbatch.inference.postprocess_classification import (
    merge_heatmaps,
    merge_scores,
    read_heatmaps,
    read_labels,
)


def tile_outputs(count, top_k=2, num_classes=5, grid=(4, 3), seed=0):
    """Return heatmaps, their classes and scores as the graph computes them, best class first."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, (count, num_classes)).astype(np.float32) / 16
    classes = np.argsort(-scores, axis=1, kind="stable")[:, :top_k].astype(np.int32)
    values = rng.random((count, top_k, *grid), np.float32)
    return values / values.max(axis=(2, 3), keepdims=True), classes, scores


def merged_by_loop(values, classes, scores, placements, class_id, canvas):
    """Return the merged heatmap of one class, computed cell by cell and tile by tile."""
    height, width = placements[0].height, placements[0].width
    grid = values.shape[2:]
    result = np.zeros(canvas, np.float32)
    for i in range(canvas[0]):
        for j in range(canvas[1]):
            y = Fraction(2 * i + 1, 2) * Fraction(height, canvas[0])
            x = Fraction(2 * j + 1, 2) * Fraction(width, canvas[1])
            for tile, placement in enumerate(placements):
                (top, left, h, w), inner = placement.source, placement.target
                if class_id in classes[tile] and 0 <= y - top < h and 0 <= x - left < w:
                    in_y = (y - top) * inner.height / h + inner.top
                    in_x = (x - left) * inner.width / w + inner.left
                    row = floor(in_y * grid[0] / placement.input_height)
                    column = floor(in_x * grid[1] / placement.input_width)
                    k = classes[tile].tolist().index(class_id)
                    result[i, j] = max(result[i, j], values[tile, k, row, column])
    return result / result.max() if result.max() > 0 else result


def test_no_images_give_no_labels_and_no_heatmaps():
    scores = np.zeros((0, 3), np.float32)
    assert len(read_labels(scores, np.zeros(0, np.int64), top_k=2).score) == 0
    classes = np.zeros((0, 2), np.int32)
    maps = read_heatmaps(np.zeros((0, 2, 4, 5)), classes, scores, np.zeros(0, np.int64))
    assert [len(column) for column in vars(maps).values()] == [0] * 6


def test_heatmaps_of_untiled_images_are_unchanged():
    values, classes, scores = tile_outputs(3)
    maps = read_heatmaps(values, classes, scores, np.array([1, 4, 5]))
    heatmaps = list(unflatten(maps.values, maps.height, maps.width))
    np.testing.assert_array_equal(heatmaps, values.reshape(6, 4, 3))
    assert maps.image_index.tolist() == [1, 1, 4, 4, 5, 5]


def test_merged_score_is_the_maximum_over_tiles():
    scores = np.array([[0.1, 0.5, 0.2], [0.3, 0.4, 0.2]], np.float32)
    np.testing.assert_array_equal(merge_scores(scores), np.float32([[0.3, 0.5, 0.2]]))


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize(
    ("size", "tiling"),
    [
        ((40, 31), Tiling(16, 16, 4, 4)),
        ((16, 70), Tiling(16, 24, 0, 18)),
        ((90, 7), Tiling(33, 16, 8, 8)),
    ],
)
def test_merged_heatmap_is_the_maximum_over_tiles(size, tiling, top_k, resize):
    placements = tile_placements(*size, InputKey(16, 12, resize, tiling))
    outputs = tile_outputs(len(placements), top_k)
    maps = merge_heatmaps(*outputs, placements, 3)
    best = outputs[2].max(axis=0)
    assert maps.class_id.tolist() == np.argsort(-best, kind="stable")[:top_k].tolist()
    np.testing.assert_array_equal(maps.score, best[maps.class_id])
    assert maps.image_index.tolist() == [3] * top_k
    canvas = canvas_size(placements[0], (4, 3))
    heatmaps = unflatten(maps.values, maps.height, maps.width)
    for class_id, heatmap in zip(maps.class_id, heatmaps, strict=True):
        assert heatmap.shape == canvas
        assert heatmap.max() == 1
        expected = merged_by_loop(*outputs, placements, class_id, canvas)
        np.testing.assert_array_equal(heatmap, expected)


@pytest.mark.parametrize("seed", range(50))
def test_each_top_class_of_an_image_is_a_top_class_of_a_tile(seed):
    """Scores have few values, so they are often equal within a tile and between tiles."""
    rng = np.random.default_rng(seed)
    count, num_classes = rng.integers(1, 6), rng.integers(1, 8)
    top_k = int(rng.integers(1, num_classes + 1))
    scores = rng.integers(0, 4, (count, num_classes)).astype(np.float32)
    classes = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    best = np.argsort(-scores.max(axis=0), kind="stable")[:top_k]
    assert np.isin(best, classes).all()


def test_merged_heatmap_without_positive_values_is_zero():
    placements = tile_placements(16, 30, InputKey(8, 8, "stretch", Tiling(16, 16, 4, 4)))
    values, classes, scores = tile_outputs(len(placements))
    assert (merge_heatmaps(values * 0, classes, scores, placements, 0).values == 0).all()
