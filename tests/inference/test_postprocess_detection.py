"""Boxes of tiled images, compared with one reference suppression over the boxes of all tiles."""

import numpy as np
import pytest

from cvbatch.core.types import InputKey, ModelSpec, Tiling
from cvbatch.geometry.boxes import NmsSettings
from cvbatch.geometry.resize import make_placement
from cvbatch.geometry.tiling import tile_placements
from cvbatch.inference.postprocess_detection import merge_tiles, read_outputs
from tests.support.detectors import parse_detector
from tests.support.reference_arrays import suppress_reference

# A pixel of the input is 2 pixels of the image, or 5/4 if the image is 20 pixels high: all exact.
KEY = InputKey(16, 8, "stretch", Tiling(32, 16, 8, 4))
SETTINGS = NmsSettings(score_threshold=0.25, iou_threshold=0.5, max_detections=100)


def candidates(count, num_boxes=12, num_classes=3, seed=0):
    """Return boxes in eighths of pixels, which map exactly, and scores in tenths, often equal."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(-8, 8 * 8, (count, num_boxes, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 60, corners.shape)], axis=2) / 8
    scores = rng.integers(0, 11, (count, num_boxes, num_classes)) / 10
    return boxes.astype(np.float32), scores.astype(np.float32)


def model(key, settings):
    """Return the section and the spec of a model with these settings."""
    kept = settings.classes_kept
    config = parse_detector(
        score_threshold=settings.score_threshold,
        iou_threshold=settings.iou_threshold,
        max_detections=settings.max_detections,
        class_agnostic=settings.class_agnostic,
        keep_classes=None if kept is None else [str(k) for k in kept],
    )
    size = key.height, key.width, key.resize
    return config, ModelSpec("a", "detection", ("0", "1", "2"), *size, "")


def merge(boxes, scores, position, placements, key, settings=SETTINGS):
    tiles = (
        {"boxes": box[None], "scores": score[None]}
        for box, score in zip(boxes, scores, strict=True)
    )
    return merge_tiles(*model(key, settings), tiles, placements, position).boxes


def map_by_loop(boxes, placements, height, width):
    """Return the boxes of all tiles: scaled, moved by the tile's corner, clipped."""
    mapped = []
    for tile_boxes, placement in zip(boxes, placements, strict=True):
        top, left, tile_height, tile_width = placement.source
        for x0, y0, x1, y1 in tile_boxes.tolist():
            xs = [min(max(x * tile_width / 8 + left, 0), width) for x in (x0, x1)]
            ys = [min(max(y * tile_height / 16 + top, 0), height) for y in (y0, y1)]
            mapped.append([xs[0], ys[0], xs[1], ys[1]])
    return np.array(mapped, np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"score_threshold": 0.0},
        {"score_threshold": 0.3},  # float32(0.3) > 0.3: the threshold must be float32 too
        {"max_detections": 5},
        {"class_agnostic": True},
        {"classes_kept": [2, 0]},
        {"classes_kept": [1], "class_agnostic": True, "iou_threshold": 0.1},
        {"score_threshold": 1.0, "iou_threshold": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(33, 16), (50, 40), (20, 70)])
def test_merged_boxes_equal_the_reference(size, changes):
    placements = tile_placements(*size, KEY)
    boxes, scores = candidates(len(placements))
    settings = SETTINGS._replace(**changes)
    merged = merge(boxes, scores, 4, placements, KEY, settings)
    mapped = map_by_loop(boxes, placements, *size)
    flat = scores.reshape(-1, scores.shape[2])
    row, class_id = suppress_reference(mapped, flat, **settings._asdict())
    np.testing.assert_array_equal(merged.xyxy, mapped[row])
    np.testing.assert_array_equal(merged.class_id, class_id)
    np.testing.assert_array_equal(merged.score, flat[row, class_id])
    assert merged.image_index.tolist() == [4] * len(row)
    assert len(row) > 0


def listed_outputs(count, seed=1):
    """Return boxes of one class each, as a network does that suppresses them; −1 is padding."""
    boxes, scores = candidates(count, num_boxes=30, seed=seed)
    rng = np.random.default_rng(seed)
    class_ids = rng.integers(0, 3, (count, 30)).astype(np.int32)
    best = np.where(rng.random((count, 30)) < 0.2, -1, scores[..., 0]).astype(np.float32)
    return {"boxes": boxes, "scores": best, "class_ids": np.where(best < 0, -1, class_ids)}


DETECTION = {"score_threshold": 0.3, "iou_threshold": 0.1, "max_detections": 9}


@pytest.mark.parametrize("fields", [{}, {"keep_classes": ["c", "a"]}, {"score_threshold": 0.0}])
def test_boxes_with_class_ids_are_selected_and_not_suppressed(fields):
    key = KEY._replace(tiling=None)
    spec = ModelSpec("n", "detection", ("a", "b", "c"), key.height, key.width, "stretch", "0" * 64)
    settings = parse_detector(**{**DETECTION, **fields})
    outputs = listed_outputs(3)
    placements = [make_placement(32, 16, key)] * 3
    found = read_outputs(settings, spec, outputs, np.arange(3), placements).boxes
    names = settings.keep_classes or spec.classes
    for image in range(3):
        rows = [
            (-score, position)
            for position, score in enumerate(outputs["scores"][image])
            if score >= np.float32(settings.score_threshold)
            and spec.classes[outputs["class_ids"][image, position]] in names
        ]
        positions = [position for _, position in sorted(rows)[:9]]
        kept = found.image_index == image
        expected = map_by_loop(outputs["boxes"][image][None, positions], placements[:1], 32, 16)
        np.testing.assert_array_equal(found.xyxy[kept], expected)
        np.testing.assert_array_equal(found.score[kept], outputs["scores"][image, positions])
        np.testing.assert_array_equal(found.class_id[kept], outputs["class_ids"][image, positions])


def test_boxes_with_class_ids_of_tiles_are_merged_like_scores_of_all_classes():
    placements = tile_placements(50, 40, KEY)
    outputs = listed_outputs(len(placements))
    dense = np.where(
        outputs["class_ids"][..., None] == np.arange(3), outputs["scores"][..., None], 0
    )
    config = parse_detector(**DETECTION, tiles={})
    spec = ModelSpec(
        "n", "detection", ("a", "b", "c"), KEY.height, KEY.width, "stretch", "0" * 64, "", *KEY[3]
    )
    tiles = ({k: v[i : i + 1] for k, v in outputs.items()} for i in range(len(placements)))
    found = merge_tiles(config, spec, tiles, placements, 0).boxes
    settings = NmsSettings(0.3, 0.1, 9)
    scores = dense.astype(np.float32)
    expected = merge(outputs["boxes"], scores, 0, placements, KEY, settings)
    for column in ("xyxy", "score", "class_id"):
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))


def test_no_candidates_give_no_boxes():
    placements = tile_placements(50, 40, KEY)
    boxes, scores = candidates(len(placements))
    merged = merge(boxes, scores * 0, 0, placements, KEY)
    assert (merged.xyxy.shape, merged.score.shape, merged.class_id.shape) == ((0, 4), (0,), (0,))
    assert len(merge(boxes[:, :0], scores[:, :0], 0, placements, KEY).score) == 0


def test_object_in_two_tiles_gives_one_box():
    key = InputKey(10, 10, "stretch", Tiling(10, 10, 5, 5))
    placements = tile_placements(10, 15, key)
    assert [placement.source.left for placement in placements] == [0, 5]
    boxes = np.array([[[6, 2, 9, 8]], [[1, 2, 4, 8]]], np.float32)  # the same box of the original
    scores = np.array([[[0.6]], [[0.9]]], np.float32)
    merged = merge(boxes, scores, 0, placements, key)
    np.testing.assert_array_equal(merged.xyxy, [[6, 2, 9, 8]])
    np.testing.assert_array_equal(merged.score, np.float32([0.9]))


def test_merging_one_tile_equals_reading_an_image():
    key = KEY._replace(tiling=None)
    placements = tile_placements(32, 16, key)
    boxes, scores = candidates(1)
    boxes = boxes.clip(0, [8, 16, 8, 16])
    outputs = {"boxes": boxes, "scores": scores}
    read = read_outputs(*model(key, SETTINGS), outputs, np.array([0]), placements).boxes
    merged = merge(boxes, scores, 0, placements, key)
    for name, column in vars(read).items():
        np.testing.assert_array_equal(getattr(merged, name), column)
