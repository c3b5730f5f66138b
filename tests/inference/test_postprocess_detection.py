"""Boxes of many tiles are those of one suppression over all of them, as they lie in the image."""

import numpy as np
import pytest

from cvbatch.core.types import InputKey, Tiling
from cvbatch.geometry.boxes import NmsSettings
from cvbatch.geometry.tiling import tile_placements
from cvbatch.inference.postprocess_detection import merge_boxes, read_boxes
from tests.support.reference_arrays import suppress_reference

# A pixel of the input is two of the image, or 5/4 where the image is 20 pixels high: all exact.
KEY = InputKey(16, 8, "stretch", Tiling(32, 16, 8, 4))
RULE = NmsSettings(score_threshold=0.25, iou_threshold=0.5, max_detections=100)


def candidates(count, num_boxes=12, num_classes=3, seed=0):
    """Return boxes on eighths of pixels and scores in tenths: mapped exactly, and often tied."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(-8, 8 * 8, (count, num_boxes, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 60, corners.shape)], axis=2) / 8
    scores = rng.integers(0, 11, (count, num_boxes, num_classes)) / 10
    return boxes.astype(np.float32), scores.astype(np.float32)


def hand_mapped(boxes, placements, height, width):
    """Return all tiles' boxes, scaled, moved by the tile's corner and clipped, one by one."""
    mapped = []
    for of_tile, placement in zip(boxes, placements, strict=True):
        top, left, tile_height, tile_width = placement.source
        for x0, y0, x1, y1 in of_tile.tolist():
            xs = [min(max(x * tile_width / 8 + left, 0), width) for x in (x0, x1)]
            ys = [min(max(y * tile_height / 16 + top, 0), height) for y in (y0, y1)]
            mapped.append([xs[0], ys[0], xs[1], ys[1]])
    return np.array(mapped, np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"score_threshold": 0.0},
        {"score_threshold": 0.3},  # 3 / 10 in float32 lies above it: compared as suppression does
        {"max_detections": 5},
        {"class_agnostic": True},
        {"classes_kept": [2, 0]},
        {"classes_kept": [1], "class_agnostic": True, "iou_threshold": 0.1},
        {"score_threshold": 1.0, "iou_threshold": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(33, 16), (50, 40), (20, 70)])
def test_merged_boxes_are_the_references(size, changes):
    placements = tile_placements(*size, KEY)
    boxes, scores = candidates(len(placements))
    rule = RULE._replace(**changes)
    found = merge_boxes(zip(boxes, scores, strict=True), 4, placements, KEY, "xyxy", rule)
    mapped = hand_mapped(boxes, placements, *size)
    flat = scores.reshape(-1, scores.shape[2])
    row, class_id = suppress_reference(mapped, flat, **rule._asdict())
    np.testing.assert_array_equal(found.xyxy, mapped[row])
    np.testing.assert_array_equal(found.class_id, class_id)
    np.testing.assert_array_equal(found.score, flat[row, class_id])
    assert found.image_index.tolist() == [4] * len(row)
    assert len(row) > 0


def test_no_boxes_are_none():
    placements = tile_placements(50, 40, KEY)
    boxes, scores = candidates(len(placements))
    found = merge_boxes(zip(boxes, scores * 0, strict=True), 0, placements, KEY, "xyxy", RULE)
    assert (found.xyxy.shape, found.score.shape, found.class_id.shape) == ((0, 4), (0,), (0,))
    none = zip(boxes[:, :0], scores[:, :0], strict=True)
    assert len(merge_boxes(none, 0, placements, KEY, "xyxy", RULE).score) == 0


def test_an_object_seen_by_two_tiles_is_one():
    key = InputKey(10, 10, "stretch", Tiling(10, 10, 5, 5))
    placements = tile_placements(10, 15, key)
    assert [one.source.left for one in placements] == [0, 5]
    boxes = np.array([[[6, 2, 9, 8]], [[1, 2, 4, 8]]], np.float32)  # the same place, twice
    scores = np.array([[[0.6]], [[0.9]]], np.float32)
    found = merge_boxes(zip(boxes, scores, strict=True), 0, placements, key, "xyxy", RULE)
    np.testing.assert_array_equal(found.xyxy, [[6, 2, 9, 8]])
    np.testing.assert_array_equal(found.score, np.float32([0.9]))


def test_one_tile_merged_is_the_plain_reading_where_nothing_is_clipped():
    key = KEY._replace(tiling=None)
    placements = tile_placements(32, 16, key)
    boxes, scores = candidates(1)
    boxes = boxes.clip(0, [8, 16, 8, 16])
    plain = read_boxes(boxes, scores, np.array([0]), placements, key, "xyxy", RULE)
    merged = merge_boxes(zip(boxes, scores, strict=True), 0, placements, key, "xyxy", RULE)
    for name, column in vars(plain).items():
        np.testing.assert_array_equal(getattr(merged, name), column)
