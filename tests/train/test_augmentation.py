"""Boxes and masks move with the pixels: where an object went is read off the picture itself."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from cvbatch.core.errors import ConfigError
from cvbatch.core.types import VOID_CLASS, TrainingExample
from cvbatch.geometry.resize import PADDING_GREY
from cvbatch.train.augmentation import (
    Augmentation,
    motion,
    recoloured,
    resized_examples,
    size_of_step,
    warped,
)

ALL = Augmentation("both", 0.1, 0.2, 0.1, 0.2, 0.2, seed=5)
MOVING = replace(ALL, brightness=0.0, contrast=0.0)
NO_BOXES = (np.zeros((0, 4), np.float32), np.zeros(0, np.int32))


def scene(height=64, width=112, boxes=((60, 20, 92, 44),), channels=3):
    """Objects of red 255, each of its own green, before black; class k + 1 in the mask."""
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
    """Say of each pixel whether the object has more than half of it, before black or grey."""
    return example.pixels[..., 0].astype(int) - example.pixels[..., 2] > 127


def test_nothing_to_vary_is_nothing():
    assert ALL.apply([], step=3) == []
    assert resized_examples([], (8, 8)) == []


def test_an_augmentation_of_zeros_changes_nothing():
    examples = [scene(), scene(boxes=())]
    for given, found in zip(examples, Augmentation().apply(examples, 7), strict=True):
        for name, value in vars(given).items():
            np.testing.assert_array_equal(getattr(found, name), value)


def test_no_motion_moves_nothing():
    given = scene(boxes=((0, 0, 30, 20), (100, 50, 112, 64)))
    moved = warped(given, motion(64, 112))
    for name in ("pixels", "mask", "boxes_xyxy", "box_class"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(given, name))


MOTIONS = {
    "mirrored": {"mirror": (-1, 1)},
    "upturned": {"mirror": (1, -1)},
    "turned a little": {"turn": 0.03},
    "turned back": {"turn": -0.1},
    "turned a quarter": {"turn": 0.25},
    "turned much": {"turn": 0.41},
    "seen from afar": {"zoom": 1.2},
    "seen closely": {"zoom": 0.8},
    "shifted": {"shift": (20.3, -7.6)},
    "shifted over the border": {"shift": (40.0, 30.0)},
    "all of it": {"mirror": (-1, 1), "turn": 0.06, "zoom": 0.9, "shift": (-11.0, 6.0)},
}
BOXES = [(60, 20, 92, 44), (0, 0, 50, 30), (90, 2, 112, 64), (4, 40, 108, 62)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [(64, 112), (112, 112)])
@pytest.mark.parametrize("name", MOTIONS)
def test_the_box_is_the_objects_extent_after_every_motion(name, size, box):
    moved = warped(scene(*size, boxes=(box,)), motion(*size, **MOTIONS[name]), min_visible=0)
    found = extent(red(moved))
    if found is None:
        assert len(moved.boxes_xyxy) == 0 or np.ptp(moved.boxes_xyxy[0, ::2]) < 2
        return
    np.testing.assert_allclose(moved.boxes_xyxy, [found], atol=2)


@pytest.mark.parametrize("name", MOTIONS)
def test_the_mask_lies_on_the_pixels(name):
    moved = warped(scene(), motion(64, 112, **MOTIONS[name]))
    inside = red(moved)
    seen = moved.mask == 1
    assert set(np.unique(moved.mask)) <= {0, 1, VOID_CLASS}
    # Between two pixels the object's border is a matter of rounding.
    assert (inside & ~seen).sum() + (seen & ~inside).sum() <= 0.12 * max(1, seen.sum())


@pytest.mark.parametrize("name", ["shifted", "seen from afar", "turned a quarter"])
def test_what_comes_into_view_is_grey_and_void(name):
    moved = warped(scene(boxes=()), motion(64, 112, **MOTIONS[name]))
    is_void = moved.mask == VOID_CLASS
    assert 0.05 < is_void.mean() < 0.9
    grey = (moved.pixels == PADDING_GREY).all(axis=-1)
    assert (grey & ~is_void).sum() == 0
    assert (is_void & ~grey).sum() < 0.03 * is_void.size  # a border of one pixel is mixed


def test_a_random_augmentation_moves_all_alike():
    for step in range(30):
        (moved,) = MOVING.apply([scene()], step)
        np.testing.assert_allclose(moved.boxes_xyxy, [extent(red(moved))], atol=1.5)
        np.testing.assert_allclose(moved.boxes_xyxy, [extent(moved.mask == 1)], atol=1.5)
        assert moved.class_ids.tolist() == [3]
        assert moved.image_id == "a"


def test_mirroring_and_shifting_by_whole_pixels_is_exact():
    given = scene()
    mirrored = warped(given, motion(64, 112, mirror=(-1, 1)))
    np.testing.assert_array_equal(mirrored.pixels, given.pixels[:, ::-1])
    np.testing.assert_array_equal(mirrored.mask, given.mask[:, ::-1])
    np.testing.assert_array_equal(mirrored.boxes_xyxy, [[20, 20, 52, 44]])
    shifted = warped(given, motion(64, 112, shift=(3, -5)))
    np.testing.assert_array_equal(shifted.pixels[:-5, 3:], given.pixels[5:, :-3])
    np.testing.assert_array_equal(shifted.boxes_xyxy, [[63, 15, 95, 39]])


@pytest.mark.parametrize(
    ("shift", "min_visible", "kept"),
    [(23, 0.25, True), (25, 0.25, False), (25, 0.2, True), (31, 0.0, True), (32, 0.0, False)],
)
def test_a_box_stays_while_enough_of_it_is_in_view(shift, min_visible, kept):
    given = scene(boxes=((80, 10, 112, 30),))
    moved = warped(given, motion(64, 112, shift=(shift, 0)), min_visible)
    assert len(moved.boxes_xyxy) == len(moved.box_class) == int(kept)


def test_the_visible_part_is_of_the_turned_rectangle():
    """By brute force: the share of the object's points that are still in view."""
    box = (70, 4, 110, 40)
    rows, columns = np.mgrid[4:40:0.25, 70:110:0.25]
    points = np.stack([columns.ravel() + 0.125, rows.ravel() + 0.125, np.ones(rows.size)])
    shares = []
    for turn, dx in product((0.02, 0.07, -0.11), (8, 15, 30)):
        matrix = motion(64, 112, turn=turn, shift=(dx, 0))
        x, y = matrix @ points
        share = ((x >= 0) & (x < 112) & (y >= 0) & (y < 64)).mean()
        for limit, kept in ((share - 0.01, 1), (share + 0.01, 0)):
            assert len(warped(scene(boxes=(box,)), matrix, limit).boxes_xyxy) == kept
        shares.append(share)
    assert 0.02 < min(shares) < 0.3 < 0.7 < max(shares) < 0.98


def test_what_was_outside_before_was_never_in_view():
    given = scene(boxes=((0, 10, 24, 30),))
    given = replace(given, boxes_xyxy=np.array([[-72, 10, 24, 30]], np.float32))
    moved = warped(given, motion(64, 112, shift=(5, 0)), min_visible=0.9)
    np.testing.assert_allclose(moved.boxes_xyxy, [[5, 10, 29, 30]])


def test_motions_follow_each_other():
    def whole(**settings):
        return np.vstack([motion(64, 112, **settings), [0, 0, 1]])

    together = whole(mirror=(-1, 1), turn=0.1, zoom=1.3, shift=(7, -3))
    steps = [{"mirror": (-1, 1)}, {"turn": 0.1}, {"zoom": 1.3}, {"shift": (7, -3)}]
    product = np.eye(3)
    for step in steps:
        product = whole(**step) @ product
    np.testing.assert_allclose(together, product, atol=1e-9)


def test_boxes_and_their_classes_stay_together():
    given = scene(boxes=((100, 5, 110, 20), (10, 10, 40, 40), (50, 30, 60, 60)))
    moved = warped(given, motion(64, 112, shift=(11, 0)))
    assert moved.box_class.tolist() == [1, 2]
    np.testing.assert_allclose(moved.boxes_xyxy, [[21, 10, 51, 40], [61, 30, 71, 60]])


def test_a_box_of_no_area_does_not_move_on():
    given = replace(scene(), boxes_xyxy=np.array([[10, 10, 10, 30]], np.float32))
    assert len(warped(given, motion(64, 112), min_visible=0).boxes_xyxy) == 0


def test_an_image_with_boxes_keeps_one():
    far = Augmentation(translation=1.0, seed=1)
    given = [scene(boxes=((100, 50, 112, 64),))] * 40
    assert all(len(moved.boxes_xyxy) == 1 for moved in far.apply(given, 0))
    assert {len(moved.boxes_xyxy) for moved in far.apply([scene(boxes=())] * 4, 0)} == {0}


def test_the_draws_follow_from_seed_step_and_row():
    examples = [scene()] * 4
    first = [one.pixels for one in ALL.apply(examples, 2)]
    np.testing.assert_array_equal(first, [one.pixels for one in ALL.apply(examples, 2)])
    halves = ALL.apply(examples[:1], 2) + ALL.apply(examples[1:], 2, first_row=1)
    np.testing.assert_array_equal(first, [one.pixels for one in halves])
    assert len({pixels.tobytes() for pixels in first}) == 4
    for other in (ALL.apply(examples, 3), replace(ALL, seed=6).apply(examples, 2)):
        assert not {one.pixels.tobytes() for one in other} & {pixels.tobytes() for pixels in first}


def test_draws_fill_their_ranges():
    augmentation = Augmentation("horizontal", translation=0.1, seed=0)
    moved = augmentation.apply([scene(boxes=((46, 22, 66, 42),))] * 200, 0)  # in the middle
    shift = np.array([(one.boxes_xyxy[0, :2] - (46, 22)) / (112, 64) for one in moved])
    assert np.abs(shift).max() <= 0.1 + 1e-6
    np.testing.assert_allclose([shift.min(0), shift.max(0)], [[-0.1] * 2, [0.1] * 2], atol=0.01)
    coins = Augmentation("horizontal").apply([scene()] * 200, 0)
    assert 60 < sum(one.boxes_xyxy[0, 0] == 20 for one in coins) < 140


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_colours_vary_within_their_ranges(name):
    """80 and 120: brightness moves both by up to 25, contrast spreads them to 20 to 60 apart."""
    pixels = np.full((2, 2, 3), 80, np.uint8)
    pixels[0] = 120
    given = [TrainingExample(pixels, np.zeros(0, np.int32), *NO_BOXES)] * 300
    amount = {"brightness": 0.098, "contrast": 0.5}[name]
    found = np.stack([one.pixels for one in Augmentation(**{name: amount}).apply(given, 0)])
    dark, light = found[:, 1, 0, 0].astype(int), found[:, 0, 0, 0].astype(int)
    if name == "brightness":
        assert set(light - dark) == {40}
        assert (dark.min(), dark.max()) == (80 - 25, 80 + 25)
    else:
        assert set(light + dark) == {200}
        assert {20, 60} <= set(light - dark) <= set(range(20, 61))


def test_grey_images_keep_their_channel():
    grey = scene(channels=1)
    (varied,) = ALL.apply([grey], 0)
    assert varied.pixels.shape == (64, 112, 1)
    (small,) = resized_examples([grey], (32, 56))
    assert small.pixels.shape == (32, 56, 1)
    (alone,) = ALL.apply([replace(grey, mask=None)], 0)
    assert alone.mask is None


def test_recolouring_is_written_out():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    bright = np.clip(pixels + 255 * 0.3, 0, 255)
    mean = bright.mean(axis=(0, 1))
    expected = np.clip((bright - mean) * 1.4 + mean, 0, 255)
    np.testing.assert_allclose(recoloured(pixels, 0.3, 1.4), expected, atol=0.5001)


@pytest.mark.parametrize(
    "wrong", [{"zoom": 1.0}, {"rotation": -0.1}, {"contrast": 2.0}, {"min_visible": 1.1}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} .* must be from 0 to"):
        Augmentation(**wrong)


def test_resizing_takes_boxes_and_mask_along():
    given = scene()
    for size in ((32, 56), (96, 168), (128, 64)):
        (found,) = resized_examples([given], size)
        assert found.pixels.shape == (*size, 3)
        np.testing.assert_allclose(found.boxes_xyxy, [extent(red(found))], atol=1)
        np.testing.assert_allclose(found.boxes_xyxy, [extent(found.mask == 1)], atol=1)
    assert resized_examples([given], (64, 112))[0] is given


def test_the_size_holds_for_some_steps_and_every_size_comes():
    sizes = [(32, 32), (64, 64), (96, 96)]
    drawn = [size_of_step(sizes, step, every=10, seed=4) for step in range(600)]
    for start in range(0, 600, 10):
        assert len(set(drawn[start : start + 10])) == 1
    assert set(drawn) == set(sizes)


@pytest.mark.keras
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["rotation", "zoom", "translation", "brightness", "contrast"])
def test_a_setting_means_what_keras_layer_means_by_it(name):
    from keras import layers

    fill = {"fill_mode": "constant", "fill_value": PADDING_GREY}
    layer, ours = {
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
    keras_says = np.asarray(layer(smooth[None].astype("float32"), training=True))[0]
    if ours is None:
        found = recoloured(smooth, 0.1 if name == "brightness" else 0.0, 1.0)
    else:
        given = TrainingExample(smooth, np.zeros(0, np.int32), *NO_BOXES)
        found = warped(given, motion(64, 112, **ours)).pixels
    difference = np.abs(found.astype(float) - keras_says)
    assert np.median(difference) <= 1
    assert (difference > 8).mean() < 0.04  # OpenCV reckons positions to 1/32 of a pixel
