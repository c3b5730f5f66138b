"""Masks of boxes equal those of torchvision and ultralytics, at the size of the original."""

import numpy as np
import pytest

from cvbatch.config.models import DetectionConfig
from cvbatch.core.types import InputKey, ModelSpec, Tiling
from cvbatch.geometry.resize import boxes_to_input, make_placement
from cvbatch.geometry.tiling import tile_placements
from cvbatch.images.rle import decode_rle, parse_compressed_rle
from cvbatch.inference.instance_masks import encode_masks
from cvbatch.inference.postprocess_detection import merge_tiles, read_outputs
from tests.support import reference_masks as reference
from tests.support.reference_masks import expected_masks


def decoded(encoded, size):
    return np.array([decode_rle(parse_compressed_rle(text.decode()), size) for text in encoded])


def encode(kind, outputs, xyxy, placement):
    count = len(xyxy)
    rows, classes = np.arange(count), np.zeros(count, np.int32)
    size = placement.height, placement.width
    return decoded(encode_masks(kind, outputs, rows, classes, xyxy, placement), size)


def test_masks_of_boxes_equal_those_of_torchvision():
    masks, boxes = reference.box_masks()
    size = reference.BOX_MASKS[0]
    placement = make_placement(*size, InputKey(*size, "stretch"))
    pasted = encode("box", {"masks": masks - 0.5}, boxes, placement)
    expected = expected_masks("box", len(boxes), size)
    assert expected.any(axis=(1, 2)).sum() > 8
    np.testing.assert_array_equal(pasted, expected)


# ultralytics interpolates twice if the padding ends inside of a cell
@pytest.mark.parametrize(("name", "tolerance"), [("whole_cells", 0), ("parts_of_cells", 1e-3)])
def test_masks_of_prototypes_equal_those_of_ultralytics(name, tolerance):
    maps, weights, boxes = reference.prototypes(name)
    size, input_hw, _ = reference.LETTERBOXED[name]
    placement = make_placement(*size, InputKey(*input_hw, "letterbox"))
    in_input = boxes_to_input(boxes, placement)
    outputs = {"prototypes": maps.transpose(1, 2, 0), "coefficients": weights}
    found = encode("prototypes", outputs, in_input, placement)
    expected = expected_masks(name, len(boxes), size)
    assert expected.any(axis=(1, 2)).sum() > 5
    assert (found != expected).sum() <= expected.sum() * tolerance


def by_loop(values, placement, size):
    """Interpolate at the centre of every pixel, one at a time, and compare with 0."""
    region = np.zeros(size, bool)
    source, target = placement.source, placement.target
    inputs = np.array([placement.input_height, placement.input_width])
    cells = np.array(values.shape) / inputs
    starts, sides = np.array(source[:2]), np.array(source[2:])
    low = np.maximum(target[:2], 0) * cells + 0.5
    high = np.minimum(np.array(target[:2]) + target[2:], inputs) * cells - 0.5
    for pixel in np.ndindex(*source[2:]):
        at = (np.array(pixel) + 0.5) * np.array(target[2:]) / sides + target[:2]
        if (at < 0).any() or (at >= inputs).any():
            continue
        at = np.clip(at * cells, low, high) - 0.5
        y, x = np.floor(at).astype(int)
        fy, fx = at - (y, x)
        around = values[
            np.ix_(
                *(np.clip((n, n + 1), 0, m - 1) for n, m in zip((y, x), values.shape, strict=True))
            )
        ]
        value = np.array([1 - fy, fy]) @ around @ np.array([1 - fx, fx])
        region[tuple(starts + pixel)] = value > 0
    return region


@pytest.mark.parametrize(
    "mode", [("stretch",), ("letterbox",), ("crop",), ("crop", None, 0.8), ("stretch", None, 0.8)]
)
def test_masks_of_the_image_are_interpolated_at_the_centres_of_pixels(mode):
    rng = np.random.default_rng(3)
    masks = reference.smooth(rng, (6, 12, 16)) - 0.4
    masks[0] = -1  # an empty mask
    size = (27, 35)
    placement = make_placement(*size, InputKey(24, 32, *mode))
    found = encode("image", {"masks": masks}, np.zeros((6, 4), np.float32), placement)
    expected = np.array([by_loop(mask, placement, size) for mask in masks.astype(np.float64)])
    assert 0 < expected.mean() < 0.7
    np.testing.assert_array_equal(found, expected)


def detector(masks, **fields):
    config = DetectionConfig(
        task="detection", model="a.keras", masks=masks, iou_threshold=0.3, **fields
    )
    return config, ModelSpec("a", "detection", ("a", "b"), 32, 32, "stretch", "")


def random_outputs(kind, count, num_boxes=9, seed=4):
    """Return outputs of `count` inputs of 32 x 32 pixels."""
    rng = np.random.default_rng(seed)
    first = rng.uniform(0, 20, (count, num_boxes, 2))
    sizes = rng.uniform(4, 12, (count, num_boxes, 2))
    outputs = {
        "boxes": np.concatenate([first, first + sizes], 2).astype(np.float32),
        "scores": rng.random((count, num_boxes, 2)).astype(np.float32),
    }
    if kind == "prototypes":
        outputs["coefficients"] = rng.normal(size=(count, num_boxes, 3)).astype(np.float32)
        outputs["prototypes"] = rng.normal(size=(count, 8, 8, 3)).astype(np.float32)
    else:
        by_class = (2,) if kind == "box" else ()
        outputs["masks"] = reference.smooth(rng, (count, num_boxes, *by_class, 8, 8))
    return outputs


@pytest.mark.parametrize("kind", ["box", "image", "prototypes"])
def test_every_box_has_the_mask_of_its_row_and_class(kind):
    outputs = random_outputs(kind, 2)
    placements = [make_placement(40, 50, InputKey(32, 32, "stretch"))] * 2
    predictions = read_outputs(*detector(kind), outputs, np.array([0, 3]), placements)
    boxes, masks = predictions.boxes, predictions.box_masks
    assert len(boxes.score) > 6
    np.testing.assert_array_equal(masks.image_index, boxes.image_index)
    assert set(masks.height.tolist()) == {40}
    strings = np.split(masks.counts, np.cumsum(masks.length)[:-1])
    for m, string in enumerate(strings):
        image = {name: array[[0, 3].index(boxes.image_index[m])] for name, array in outputs.items()}
        row, k = np.argwhere(image["scores"] == boxes.score[m])[0]
        assert k == boxes.class_id[m]
        own = encode_masks(
            kind, image, np.array([row]), np.array([k]), image["boxes"][[row]], placements[0]
        )
        assert own == [string.tobytes()]


@pytest.mark.parametrize("kind", ["box", "image", "prototypes"])
def test_masks_of_tiles_are_those_of_the_boxes_that_remain(kind):
    key = InputKey(32, 32, "stretch", Tiling(32, 32, 8, 8))
    placements = tile_placements(32, 80, key)
    outputs = random_outputs(kind, len(placements))
    tiles = ({name: array[[t]] for name, array in outputs.items()} for t in range(len(placements)))
    predictions = merge_tiles(*detector(kind), tiles, placements, 5)
    boxes, masks = predictions.boxes, predictions.box_masks
    assert len(boxes.score) > len(placements)
    assert masks.image_index.tolist() == [5] * len(boxes.score)
    strings = np.split(masks.counts, np.cumsum(masks.length)[:-1])
    for m, string in enumerate(strings):
        t, row, k = np.argwhere(outputs["scores"] == boxes.score[m])[0]
        left = placements[t].source.left
        tile = {name: array[t] for name, array in outputs.items()}
        whole = make_placement(32, 32, InputKey(32, 32, "stretch"))
        (own,) = encode_masks(
            kind, tile, np.array([row]), np.array([k]), tile["boxes"][[row]], whole
        )
        (found,) = decoded([string.tobytes()], (32, 80))
        if kind != "box":  # a mask of a box may leave its tile
            assert not found[:, :left].any()
            assert not found[:, left + 32 :].any()
        np.testing.assert_array_equal(found[:, left : left + 32], decoded([own], (32, 32))[0])
