"""Placements, resized images and masks, and boxes mapped to the input and back."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvbatch.core.types import VOID_CLASS, InputKey, ResizeMode
from cvbatch.geometry import resize as r
from tests.support.detector_outputs import LETTERBOX_BOX, letterbox_sizes

FIXTURES = Path(__file__).parents[1] / "fixtures"
SIDE = st.integers(1, 5000)
MODES = ("stretch", "letterbox", "crop")
KEY = st.builds(
    lambda *values: InputKey(*values),
    st.integers(1, 640),
    st.integers(1, 640),
    st.sampled_from(MODES),
)
CENTRE_KEY = st.builds(
    lambda height, width, mode, fraction: InputKey(height, width, mode, None, fraction),
    st.integers(1, 640),
    st.integers(1, 640),
    st.sampled_from(["stretch", "crop"]),
    st.floats(0.05, 1),
)
ANY_KEY = KEY | CENTRE_KEY
FACTORS = (1, 2, 4, 8)


def to_input(xyxy: np.ndarray, placement: r.Placement) -> np.ndarray:  # (M, 4) float64
    (top, left, height, width), inner = placement.source, placement.target
    ratio = np.array([inner.width / width, inner.height / height] * 2)
    return (xyxy - np.array([left, top] * 2)) * ratio + np.array([inner.left, inner.top] * 2)


def gradient(height: int, width: int) -> np.ndarray:  # (h, w, 3) uint8
    """Return an image whose red encodes the row and whose green encodes the column."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    red, green = (rows + 0.5) / height * 255, (columns + 0.5) / width * 255
    return np.stack([red, green, np.zeros_like(red)], axis=-1).round().astype(np.uint8)


@settings(max_examples=200, deadline=None)
@given(SIDE, SIDE, KEY)
def test_a_placement_is_centred_and_keeps_the_aspect_ratio(
    height: int, width: int, key: InputKey
) -> None:
    placement = r.make_placement(height, width, key)
    for (top, left, h, w), (outer_h, outer_w) in (
        (placement.source, (height, width)),
        (placement.target, (key.height, key.width)),
    ):
        assert h >= 1 and w >= 1
        for start, size, outer in ((top, h, outer_h), (left, w, outer_w)):
            assert start >= 0
            assert abs(start - (outer - size - start)) <= 1  # centred
    source, target = placement.source, placement.target
    if key.resize != "crop":
        assert source == (0, 0, height, width)
    if key.resize != "letterbox":
        assert target == (0, 0, key.height, key.width)
    if key.resize == "letterbox":
        scale = min(key.height / height, key.width / width)
        assert abs(target.height - max(1, height * scale)) <= 0.5 + 1e-9
        assert abs(target.width - max(1, width * scale)) <= 0.5 + 1e-9
    if key.resize == "crop":
        assert source.height == height or source.width == width
        scale = min(height / key.height, width / key.width)
        assert abs(source.height - key.height * scale) <= 1
        assert abs(source.width - key.width * scale) <= 1


@settings(max_examples=200, deadline=None)
@given(SIDE, SIDE, ANY_KEY, st.integers(0, 2**32 - 1))
def test_boxes_map_back_to_the_original(height: int, width: int, key: InputKey, seed: int) -> None:
    placement = r.make_placement(height, width, key)
    corners = np.random.default_rng(seed).random((20, 2, 2)) * (width, height)
    boxes = np.sort(corners, axis=1).reshape(-1, 4)
    in_input = to_input(boxes, placement)
    back = r.boxes_to_original(in_input, placement)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, boxes, atol=1e-3)
    # From float32 outputs of a network, their rounding error is scaled up.
    ratio = max(placement.source.height, placement.source.width)
    error = np.abs(r.boxes_to_original(in_input.astype(np.float32), placement) - boxes).max()
    assert error <= 1e-3 + 2**-23 * ratio * max(1.0, np.abs(in_input).max())


def test_no_boxes_map_back_to_no_boxes() -> None:
    placement = r.make_placement(7, 9, InputKey(5, 5, "letterbox"))
    assert r.boxes_to_original(np.zeros((0, 4), np.float32), placement).shape == (0, 4)


@settings(max_examples=100, deadline=None)
@given(SIDE, SIDE, KEY)
def test_the_corners_of_target_and_source_correspond(
    height: int, width: int, key: InputKey
) -> None:
    placement = r.make_placement(height, width, key)
    top, left, h, w = placement.target
    corners = np.array([[left, top, left + w, top + h]], np.float32)
    top, left, h, w = placement.source
    np.testing.assert_array_equal(
        r.boxes_to_original(corners, placement), [[left, top, left + w, top + h]]
    )
    beyond = np.array([[-1e6, -1e6, 1e6, 1e6]], np.float32)
    np.testing.assert_array_equal(r.boxes_to_original(beyond, placement), [[0, 0, width, height]])
    assert (r.boxes_to_original(beyond, placement, clip=False)[0] * (-1, -1, 1, 1) > width).any()


@pytest.mark.parametrize("resize", MODES)
def test_an_input_of_the_size_of_the_original_changes_nothing(resize: ResizeMode) -> None:
    placement = r.make_placement(33, 57, InputKey(33, 57, resize))
    image = np.random.default_rng(0).integers(0, 256, (33, 57, 3), dtype=np.uint8)
    boxes = np.array([[1.25, 2.5, 40.75, 30]], np.float32)
    np.testing.assert_array_equal(r.resize_image(image, placement), image)
    np.testing.assert_array_equal(r.boxes_to_original(boxes, placement), boxes)
    np.testing.assert_array_equal(r.mask_to_original(image[..., 0], placement), image[..., 0])


@pytest.mark.parametrize("resize", MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 40000), (40000, 1), (3, 2), (2, 4000)])
def test_extreme_shapes_fill_the_input(size: tuple[int, int], resize: ResizeMode) -> None:
    placement = r.make_placement(*size, InputKey(24, 36, resize))
    image = r.resize_image(np.full((*size, 3), 200, np.uint8), placement)
    assert (image.shape, image.dtype) == ((24, 36, 3), np.uint8)
    is_padding = np.ones((24, 36), bool)
    top, left, height, width = placement.target
    is_padding[top : top + height, left : left + width] = False
    assert (image[~is_padding] == 200).all()
    assert (image[is_padding] == r.PADDING_GREY).all()
    assert r.mask_to_original(image[..., 0], placement).shape == size


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 700), st.integers(40, 700), st.sampled_from(MODES), st.booleans())
def test_pixels_are_at_the_position_of_the_placement(
    height: int, width: int, resize: ResizeMode, is_reduced: bool
) -> None:
    key = InputKey(32, 48, resize)
    placement = r.make_placement(height, width, key)
    factor = r.jpeg_reduction(height, width, [key]) if is_reduced else 1
    reduced_wh = -(-width // factor), -(-height // factor)
    reduced = cv2.resize(gradient(height, width), reduced_wh, interpolation=cv2.INTER_AREA)
    top, left, h, w = placement.target
    inner = r.resize_image(reduced, placement)[top : top + h, left : left + w, :2]
    center = np.array([[left + w / 2, top + h / 2] * 2])
    x, y = r.boxes_to_original(center, placement)[0, :2]
    measured = inner.mean(axis=(0, 1)) / 255 * (height, width)
    grey_level = np.array([height, width]) / 255
    input_pixel = np.array([placement.source.height / h, placement.source.width / w])
    tolerance = grey_level + input_pixel * (0.1 if factor == 1 else 0.6)
    assert (np.abs(measured - (y, x)) <= tolerance).all()


@settings(max_examples=200, deadline=None)
@given(SIDE, SIDE, st.lists(KEY, min_size=1, max_size=3))
def test_the_jpeg_reduction_is_the_largest_that_suffices(
    height: int, width: int, keys: list[InputKey]
) -> None:
    def suffices(factor: int) -> bool:
        sizes = [r.required_size(height, width, key) for key in keys]
        reduced = -(-height // factor), -(-width // factor)
        return all(reduced[0] >= h and reduced[1] >= w for h, w in sizes)

    reduction = r.jpeg_reduction(height, width, keys)
    assert reduction in FACTORS
    assert reduction == 1 or suffices(reduction)
    assert not any(suffices(factor) for factor in FACTORS if factor > reduction)


def test_required_size_and_jpeg_reduction_of_known_cases() -> None:
    assert r.required_size(3000, 4000, InputKey(224, 224, "stretch")) == (224, 224)
    assert r.required_size(3000, 4000, InputKey(224, 224, "letterbox")) == (168, 224)
    assert r.required_size(3000, 4000, InputKey(224, 224, "crop")) == (224, 299)
    assert r.jpeg_reduction(3000, 4000, [InputKey(224, 224, "stretch")]) == 8
    assert r.jpeg_reduction(3000, 4000, [InputKey(512, 512, "crop")]) == 4
    assert r.jpeg_reduction(480, 640, [InputKey(224, 224, "stretch")]) == 2
    assert (
        r.jpeg_reduction(480, 640, [InputKey(224, 224, "stretch"), InputKey(300, 1, "crop")]) == 1
    )


@settings(max_examples=100, deadline=None)
@given(*[st.integers(1, 300)] * 4, st.integers(0, 99))
def test_a_stretched_mask_equals_nearest_neighbour_of_pillow(
    height: int, width: int, mask_height: int, mask_width: int, seed: int
) -> None:
    mask = np.random.default_rng(seed).integers(0, 256, (mask_height, mask_width), dtype=np.uint8)
    placement = r.make_placement(height, width, InputKey(mask_height, mask_width, "stretch"))
    mapped = r.mask_to_original(mask, placement)
    expected = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    # Where a centre is exactly between two pixels, Pillow takes either, depending on rounding.
    rows = (2 * np.arange(height) + 1) * mask_height % (2 * height) != 0
    columns = (2 * np.arange(width) + 1) * mask_width % (2 * width) != 0
    np.testing.assert_array_equal(mapped[np.ix_(rows, columns)], expected[np.ix_(rows, columns)])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), ANY_KEY, st.sampled_from([1, 4]), st.integers(0, 99))
def test_a_pixel_of_a_mask_has_the_class_at_its_centre(
    height: int, width: int, key: InputKey, stride: int, seed: int
) -> None:
    shape = -(-key.height // stride), -(-key.width // stride)
    mask = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    placement = r.make_placement(height, width, key)
    mapped = r.mask_to_original(mask, placement)
    top, left, h, w = placement.source
    in_source = np.zeros((height, width), bool)
    in_source[top : top + h, left : left + w] = True
    assert (mapped[~in_source] == VOID_CLASS).all()
    y, x = (np.argwhere(in_source) + 0.5).T
    in_x, in_y = to_input(np.stack([x, y, x, y], axis=1), placement)[:, :2].T
    in_mask = np.stack([in_y * shape[0] / key.height, in_x * shape[1] / key.width])
    is_clear = (np.abs(in_mask - in_mask.round()) > 1e-9).all(axis=0)
    row, column = np.floor(in_mask).astype(int)
    is_cut = (row < 0) | (column < 0) | (row >= shape[0]) | (column >= shape[1])
    classes = np.where(is_cut, VOID_CLASS, mask[row.clip(0, shape[0] - 1), column % shape[1]])
    np.testing.assert_array_equal(mapped[in_source][is_clear], classes[is_clear])


@settings(max_examples=100, deadline=None)
@given(SIDE, SIDE, CENTRE_KEY)
def test_a_fraction_is_centred_and_fills_the_input(height: int, width: int, key: InputKey) -> None:
    placement = r.make_placement(height, width, key)
    (top, left, h, w), inner = placement.source, placement.target
    assert abs(2 * top + h - height) <= 1 and abs(2 * left + w - width) <= 1
    for start, size, side in ((inner.top, inner.height, key.height),
                              (inner.left, inner.width, key.width)):  # fmt: skip
        assert start <= 0 and start + size >= side
        assert abs(2 * start + size - side) <= 2
    whole = np.array([[0, 0, width, height]], np.float32)
    in_input = r.boxes_to_input(whole, placement)[0]
    np.testing.assert_array_equal(in_input, [0, 0, key.width, key.height])
    used = r.boxes_to_original(in_input[None], placement)[0]
    x_side, y_side = (used[2] - used[0]) / width, (used[3] - used[1]) / height
    if key.resize == "stretch":
        assert abs(x_side - key.fraction) <= 2 / width and abs(y_side - key.fraction) <= 2 / height
    elif 1 / 32 <= height / width <= 32:
        side = max(x_side * width / key.width, y_side * height / key.height)
        covering = min(height / key.height, width / key.width) * key.fraction
        assert abs(side / covering - 1) <= 2 / min(key.height, key.width) + 1e-5


def test_known_crops_of_a_fraction() -> None:
    """Those of torchvision's Resize(256) and CenterCrop(224), and of tf.image.central_crop."""
    crop = InputKey(224, 224, "crop", None, 0.875)
    placement = r.make_placement(375, 500, crop)
    assert placement.source == (0, 0, 375, 500)
    assert placement.target == (-16, -58, 256, 341)
    assert r.make_placement(500, 375, crop).target == (-58, -16, 341, 256)
    stretch = InputKey(224, 224, "stretch", None, 0.875)
    assert r.make_placement(375, 500, stretch).source == (23, 31, 329, 438)


@pytest.mark.parametrize("size", [(1, 40000), (40000, 1)])
def test_a_very_long_original_is_cut_before_it_is_resized(size: tuple[int, int]) -> None:
    key = InputKey(24, 24, "crop", None, 0.875, "bicubic")
    placement = r.make_placement(*size, key)
    assert max(placement.target[2:]) <= 32 * 27
    image = r.resize_image(np.full((*size, 3), 200, np.uint8), placement, "bicubic")
    assert image.shape == (24, 24, 3) and (image == 200).all()


def test_exact_interpolations_are_decoded_at_full_size() -> None:
    key = InputKey(224, 224, "crop", None, 0.875)
    assert r.required_size(3000, 4000, key) == (256, 341)
    assert r.jpeg_reduction(3000, 4000, [key]) == 8
    assert r.jpeg_reduction(3000, 4000, [key._replace(interpolation="bilinear")]) == 1


def test_letterboxed_boxes_map_back_as_ultralytics_does() -> None:
    """Expected: ultralytics' scale_boxes, by tests/fixtures/detectors/make_references.py."""
    expected = json.loads((FIXTURES / "detectors" / "letterbox.json").read_text(encoding="utf-8"))
    for size, corners in zip(letterbox_sizes(), expected, strict=True):
        placement = r.make_placement(*size, InputKey(640, 640, "letterbox"))
        box = r.boxes_to_original(np.array([LETTERBOX_BOX], np.float32), placement)[0]
        np.testing.assert_allclose(box, corners, rtol=1e-6, atol=1e-3, err_msg=str(size))
