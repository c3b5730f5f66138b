"""Boxes and masks follow the pixels: an object's position is read from the image itself."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from cvbatch.core.errors import ConfigError
from cvbatch.core.types import VOID_CLASS, TrainingExample
from cvbatch.geometry.resize import PADDING_GREY
from cvbatch.train.augmentation import (
    Augmentation,
    adjust_colours,
    resized_examples,
    size_of_step,
    transform_matrix,
    warp,
)

ALL = Augmentation("both", 0.1, 0.2, 0.1, 0.2, 0.2, seed=5)
MOVING = replace(ALL, brightness=0.0, contrast=0.0)
NO_BOXES = (np.zeros((0, 4), np.float32), np.zeros(0, np.int32))


def scene(height=64, width=112, boxes=((60, 20, 92, 44),), channels=3):
    """Return objects of red 255 and different green on black; object k has mask class k + 1."""
    pixels = np.zeros((height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    for k, (left, top, right, bottom) in enumerate(boxes):
        pixels[top:bottom, left:right] = 255, 120 * k, 0
        mask[top:bottom, left:right] = k + 1
    return TrainingExample(
        pixels[..., :channels],
        np.array([3], np.int32),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.arange(len(boxes), dtype=np.int32),
        mask,
        "a",
    )


def extent(is_object):
    rows, columns = np.nonzero(is_object)
    if not len(rows):
        return None
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def red(example):
    """Return whether the object covers more than half of each pixel, on black or grey."""
    return example.pixels[..., 0].astype(int) - example.pixels[..., 2] > 127


def test_no_examples():
    assert ALL.apply([], step=3) == []
    assert resized_examples([], (8, 8)) == []


def test_the_default_augmentation_changes_nothing():
    examples = [scene(), scene(boxes=())]
    for before, after in zip(examples, Augmentation().apply(examples, 7), strict=True):
        for name, value in vars(before).items():
            np.testing.assert_array_equal(getattr(after, name), value)


def test_the_identity_changes_nothing():
    original = scene(boxes=((0, 0, 30, 20), (100, 50, 112, 64)))
    moved = warp(original, transform_matrix(64, 112))
    for name in ("pixels", "mask", "boxes_xyxy", "box_class"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(original, name))


TRANSFORMS = {
    "mirrored": {"mirror": (-1, 1)},
    "mirrored vertically": {"mirror": (1, -1)},
    "rotated a little": {"turn": 0.03},
    "rotated clockwise": {"turn": -0.1},
    "rotated by a quarter": {"turn": 0.25},
    "rotated far": {"turn": 0.41},
    "zoomed out": {"zoom": 1.2},
    "zoomed in": {"zoom": 0.8},
    "shifted": {"shift": (20.3, -7.6)},
    "shifted over the border": {"shift": (40.0, 30.0)},
    "all together": {"mirror": (-1, 1), "turn": 0.06, "zoom": 0.9, "shift": (-11.0, 6.0)},
}
BOXES = [(60, 20, 92, 44), (0, 0, 50, 30), (90, 2, 112, 64), (4, 40, 108, 62)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [(64, 112), (112, 112)])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_box_is_the_extent_of_the_object(name, size, box):
    moved = warp(
        scene(*size, boxes=(box,)), transform_matrix(*size, **TRANSFORMS[name]), min_visible=0
    )
    expected = extent(red(moved))
    if expected is None:
        assert len(moved.boxes_xyxy) == 0 or np.ptp(moved.boxes_xyxy[0, ::2]) < 2
        return
    np.testing.assert_allclose(moved.boxes_xyxy, [expected], atol=2)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_mask_follows_the_pixels(name):
    moved = warp(scene(), transform_matrix(64, 112, **TRANSFORMS[name]))
    is_object = red(moved)
    is_masked = moved.mask == 1
    assert set(np.unique(moved.mask)) <= {0, 1, VOID_CLASS}
    # Pixels on the border of the object depend on rounding.
    assert (is_object ^ is_masked).sum() <= 0.12 * max(1, is_masked.sum())


@pytest.mark.parametrize("name", ["shifted", "zoomed out", "rotated by a quarter"])
def test_new_border_pixels_are_grey_and_void(name):
    moved = warp(scene(boxes=()), transform_matrix(64, 112, **TRANSFORMS[name]))
    is_void = moved.mask == VOID_CLASS
    assert 0.05 < is_void.mean() < 0.9
    grey = (moved.pixels == PADDING_GREY).all(axis=-1)
    assert (grey & ~is_void).sum() == 0
    assert (is_void & ~grey).sum() < 0.03 * is_void.size  # a border of one pixel is mixed


def test_a_random_augmentation_moves_pixels_boxes_and_mask_together():
    for step in range(30):
        (moved,) = MOVING.apply([scene()], step)
        np.testing.assert_allclose(moved.boxes_xyxy, [extent(red(moved))], atol=1.5)
        np.testing.assert_allclose(moved.boxes_xyxy, [extent(moved.mask == 1)], atol=1.5)
        assert moved.class_ids.tolist() == [3]
        assert moved.image_id == "a"


def test_mirroring_and_integer_shifts_are_exact():
    original = scene()
    mirrored = warp(original, transform_matrix(64, 112, mirror=(-1, 1)))
    np.testing.assert_array_equal(mirrored.pixels, original.pixels[:, ::-1])
    np.testing.assert_array_equal(mirrored.mask, original.mask[:, ::-1])
    np.testing.assert_array_equal(mirrored.boxes_xyxy, [[20, 20, 52, 44]])
    shifted = warp(original, transform_matrix(64, 112, shift=(3, -5)))
    np.testing.assert_array_equal(shifted.pixels[:-5, 3:], original.pixels[5:, :-3])
    np.testing.assert_array_equal(shifted.boxes_xyxy, [[63, 15, 95, 39]])


@pytest.mark.parametrize(
    ("shift", "min_visible", "kept"),
    [(23, 0.25, True), (25, 0.25, False), (25, 0.2, True), (31, 0.0, True), (32, 0.0, False)],
)
def test_a_box_is_kept_if_enough_of_it_is_visible(shift, min_visible, kept):
    original = scene(boxes=((80, 10, 112, 30),))
    moved = warp(original, transform_matrix(64, 112, shift=(shift, 0)), min_visible)
    assert len(moved.boxes_xyxy) == len(moved.box_class) == int(kept)


def test_the_visible_fraction_is_of_the_rotated_rectangle():
    """The reference is the fraction of a dense grid of points that stays inside the image."""
    box = (70, 4, 110, 40)
    rows, columns = np.mgrid[4:40:0.25, 70:110:0.25]
    points = np.stack([columns.ravel() + 0.125, rows.ravel() + 0.125, np.ones(rows.size)])
    fractions = []
    for turn, dx in product((0.02, 0.07, -0.11), (8, 15, 30)):
        matrix = transform_matrix(64, 112, turn=turn, shift=(dx, 0))
        x, y = matrix @ points
        fraction = ((x >= 0) & (x < 112) & (y >= 0) & (y < 64)).mean()
        for limit, kept in ((fraction - 0.01, 1), (fraction + 0.01, 0)):
            assert len(warp(scene(boxes=(box,)), matrix, limit).boxes_xyxy) == kept
        fractions.append(fraction)
    assert 0.02 < min(fractions) < 0.3 < 0.7 < max(fractions) < 0.98


def test_the_part_of_a_box_outside_the_image_was_never_visible():
    original = scene(boxes=((0, 10, 24, 30),))
    original = replace(original, boxes_xyxy=np.array([[-72, 10, 24, 30]], np.float32))
    moved = warp(original, transform_matrix(64, 112, shift=(5, 0)), min_visible=0.9)
    np.testing.assert_allclose(moved.boxes_xyxy, [[5, 10, 29, 30]])


def test_transforms_are_composed_in_order():
    def matrix_of(**settings):
        return np.vstack([transform_matrix(64, 112, **settings), [0, 0, 1]])

    together = matrix_of(mirror=(-1, 1), turn=0.1, zoom=1.3, shift=(7, -3))
    steps = [{"mirror": (-1, 1)}, {"turn": 0.1}, {"zoom": 1.3}, {"shift": (7, -3)}]
    product = np.eye(3)
    for step in steps:
        product = matrix_of(**step) @ product
    np.testing.assert_allclose(together, product, atol=1e-9)


def test_dropping_a_box_drops_its_class():
    original = scene(boxes=((100, 5, 110, 20), (10, 10, 40, 40), (50, 30, 60, 60)))
    moved = warp(original, transform_matrix(64, 112, shift=(11, 0)))
    assert moved.box_class.tolist() == [1, 2]
    np.testing.assert_allclose(moved.boxes_xyxy, [[21, 10, 51, 40], [61, 30, 71, 60]])


def test_a_box_without_an_area_is_dropped():
    original = replace(scene(), boxes_xyxy=np.array([[10, 10, 10, 30]], np.float32))
    assert len(warp(original, transform_matrix(64, 112), min_visible=0).boxes_xyxy) == 0


def test_an_image_with_boxes_keeps_at_least_one():
    far = Augmentation(translation=1.0, seed=1)
    original = [scene(boxes=((100, 50, 112, 64),))] * 40
    assert all(len(moved.boxes_xyxy) == 1 for moved in far.apply(original, 0))
    assert {len(moved.boxes_xyxy) for moved in far.apply([scene(boxes=())] * 4, 0)} == {0}


def test_draws_depend_on_seed_step_and_row_only():
    examples = [scene()] * 4
    first = [e.pixels for e in ALL.apply(examples, 2)]
    np.testing.assert_array_equal(first, [e.pixels for e in ALL.apply(examples, 2)])
    halves = ALL.apply(examples[:1], 2) + ALL.apply(examples[1:], 2, first_row=1)
    np.testing.assert_array_equal(first, [e.pixels for e in halves])
    assert len({pixels.tobytes() for pixels in first}) == 4
    for other in (ALL.apply(examples, 3), replace(ALL, seed=6).apply(examples, 2)):
        assert not {e.pixels.tobytes() for e in other} & {pixels.tobytes() for pixels in first}


def test_draws_cover_their_ranges():
    augmentation = Augmentation("horizontal", translation=0.1, seed=0)
    moved = augmentation.apply([scene(boxes=((46, 22, 66, 42),))] * 200, 0)  # in the middle
    shift = np.array([(e.boxes_xyxy[0, :2] - (46, 22)) / (112, 64) for e in moved])
    assert np.abs(shift).max() <= 0.1 + 1e-6
    np.testing.assert_allclose([shift.min(0), shift.max(0)], [[-0.1] * 2, [0.1] * 2], atol=0.01)
    coins = Augmentation("horizontal").apply([scene()] * 200, 0)
    assert 60 < sum(e.boxes_xyxy[0, 0] == 20 for e in coins) < 140


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_colours_cover_their_ranges(name):
    """Brightness shifts 80 and 120 by up to 25; contrast makes their difference 20 to 60."""
    pixels = np.full((2, 2, 3), 80, np.uint8)
    pixels[0] = 120
    original = [TrainingExample(pixels, np.zeros(0, np.int32), *NO_BOXES)] * 300
    amount = {"brightness": 0.098, "contrast": 0.5}[name]
    pixels = np.stack([e.pixels for e in Augmentation(**{name: amount}).apply(original, 0)])
    dark, light = pixels[:, 1, 0, 0].astype(int), pixels[:, 0, 0, 0].astype(int)
    if name == "brightness":
        assert set(light - dark) == {40}
        assert (dark.min(), dark.max()) == (80 - 25, 80 + 25)
    else:
        assert set(light + dark) == {200}
        assert {20, 60} <= set(light - dark) <= set(range(20, 61))


def test_grey_images_keep_their_channel():
    grey = scene(channels=1)
    (augmented,) = ALL.apply([grey], 0)
    assert augmented.pixels.shape == (64, 112, 1)
    (small,) = resized_examples([grey], (32, 56))
    assert small.pixels.shape == (32, 56, 1)
    (unmasked,) = ALL.apply([replace(grey, mask=None)], 0)
    assert unmasked.mask is None


def test_colour_adjustment_follows_its_formula():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    bright = np.clip(pixels + 255 * 0.3, 0, 255)
    mean = bright.mean(axis=(0, 1))
    expected = np.clip((bright - mean) * 1.4 + mean, 0, 255)
    np.testing.assert_allclose(adjust_colours(pixels, 0.3, 1.4), expected, atol=0.5001)


@pytest.mark.parametrize(
    "settings", [{"zoom": 1.0}, {"rotation": -0.1}, {"contrast": 2.0}, {"min_visible": 1.1}]
)
def test_values_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} .* must be from 0 to"):
        Augmentation(**settings)


def test_resizing_resizes_boxes_and_mask():
    original = scene()
    for size in ((32, 56), (96, 168), (128, 64)):
        (resized,) = resized_examples([original], size)
        assert resized.pixels.shape == (*size, 3)
        np.testing.assert_allclose(resized.boxes_xyxy, [extent(red(resized))], atol=1)
        np.testing.assert_allclose(resized.boxes_xyxy, [extent(resized.mask == 1)], atol=1)
    assert resized_examples([original], (64, 112))[0] is original


def test_a_size_lasts_some_steps_and_every_size_occurs():
    sizes = [(32, 32), (64, 64), (96, 96)]
    drawn = [size_of_step(sizes, step, every=10, seed=4) for step in range(600)]
    for start in range(0, 600, 10):
        assert len(set(drawn[start : start + 10])) == 1
    assert set(drawn) == set(sizes)


@pytest.mark.keras
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["rotation", "zoom", "translation", "brightness", "contrast"])
def test_a_setting_equals_the_keras_layer(name):
    from keras import layers

    fill = {"fill_mode": "constant", "fill_value": PADDING_GREY}
    layer, settings = {
        "rotation": (layers.RandomRotation((0.06, 0.06), **fill), {"turn": 0.06}),
        "zoom": (layers.RandomZoom((0.15, 0.15), **fill), {"zoom": 1.15}),
        "translation": (
            layers.RandomTranslation((0.1, 0.1), (0.05, 0.05), **fill),
            {"shift": (0.05 * 112, 0.1 * 64)},
        ),
        "brightness": (layers.RandomBrightness((0.1, 0.1)), None),
        "contrast": (layers.RandomContrast((0.0, 0.0)), None),
    }[name]
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(40, 200, (8, 14, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    expected = np.asarray(layer(smooth[None].astype("float32"), training=True))[0]
    if settings is None:
        actual = adjust_colours(smooth, 0.1 if name == "brightness" else 0.0, 1.0)
    else:
        original = TrainingExample(smooth, np.zeros(0, np.int32), *NO_BOXES)
        actual = warp(original, transform_matrix(64, 112, **settings)).pixels
    difference = np.abs(actual.astype(float) - expected)
    assert np.median(difference) <= 1
    assert (difference > 8).mean() < 0.04  # OpenCV rounds positions to 1/32 of a pixel
