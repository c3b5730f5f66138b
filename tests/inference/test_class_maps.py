"""Masks at the size of the original equal interpolated probabilities, then their arg-max."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.types import VOID_CLASS, InputKey
from cvbatch.geometry.resize import make_placement
from cvbatch.inference import class_maps
from cvbatch.inference.class_maps import ClassRule, classify
from tests.support.class_maps import interpolated

ARG_MAX = ClassRule(None, 0, 0)
KEYS = {
    "stretch": InputKey(24, 18, "stretch"),
    "letterbox": InputKey(24, 18, "letterbox"),
    "crop": InputKey(24, 18, "crop"),
    "crop of a fraction": InputKey(24, 18, "crop", None, 0.8, "bicubic"),
    "part of a stretch": InputKey(24, 18, "stretch", None, 0.8, "bilinear"),
}


def rule(classes=("a", "b", "c"), channels=3, **keys):
    model = {"task": "segmentation", "model": "a.keras", **keys}
    job = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": [model]})
    return ClassRule.of(job.models[0], classes, channels)


def probabilities(height, width, channels, contrast=1.0, seed=0):
    """Return smooth probabilities of every channel, which sum to 1."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 4 * contrast, (4, 3, channels)).astype(np.float32)
    scores = np.stack(
        [cv2.resize(coarse[..., c], (width, height)) for c in range(channels)], axis=2
    )
    scores += rng.normal(0, 0.5 * contrast, scores.shape).astype(np.float32)
    exponents = np.exp(scores)
    return exponents / exponents.sum(axis=2, keepdims=True)


def check(mask, scores, class_rule=ARG_MAX):
    """Compare with scores (h, w, C), except where two scores or the threshold are almost equal."""
    is_outside = np.isnan(scores).any(axis=2)
    assert (mask[is_outside] == VOID_CLASS).all()
    expected = class_rule.classes(scores.argmax(axis=2), scores.max(axis=2))
    limits = [] if class_rule.threshold is None else [np.full(mask.shape, class_rule.threshold)]
    ranked = np.sort(np.dstack([scores, *limits]), axis=2)
    gaps = ranked[..., -1] - ranked[..., -2] if ranked.shape[2] > 1 else np.ones(mask.shape)
    is_clear = (gaps > 1e-5) & ~is_outside
    assert is_clear.sum() > 0.95 * (~is_outside).sum()
    np.testing.assert_array_equal(mask[is_clear], expected[is_clear])


@pytest.mark.parametrize("size", [(70, 50), (24, 18), (9, 20), (1, 3)])
@pytest.mark.parametrize("name", KEYS)
def test_mask_equals_the_definition(name, size):
    placement = make_placement(*size, KEYS[name])
    for grid, channels in (((24, 18), 3), ((6, 5), 2), ((1, 1), 4)):
        maps = probabilities(*grid, channels)
        check(classify(maps, placement, ARG_MAX), interpolated(maps, placement))


@pytest.mark.parametrize("block", [3, 128])
@pytest.mark.parametrize("contrast", [0.01, 0.2, 1])
@pytest.mark.parametrize("channels", [2, 21, 100])
def test_no_channel_that_can_win_is_left_out(channels, contrast, block, monkeypatch):
    monkeypatch.setattr(class_maps, "_BLOCK", block)
    monkeypatch.setattr(class_maps, "_MAX_WHOLE_VALUES", 0)
    maps = probabilities(20, 16, channels, contrast)
    placement = make_placement(70, 90, InputKey(20, 16, "stretch"))
    scores = cv2.resize(maps, (90, 70), interpolation=cv2.INTER_LINEAR)
    mask = classify(maps, placement, ARG_MAX)
    best = np.take_along_axis(scores, mask[..., None].astype(int), axis=2)[..., 0]
    assert (scores.max(axis=2) - best).max() <= 1e-5


@pytest.mark.keras
@pytest.mark.parametrize("size", [(90, 130), (40, 40), (13, 50)])
def test_mask_equals_the_arg_max_of_tensorflows_resize(size):
    import tensorflow as tf

    maps = probabilities(20, 26, 5)
    scores = tf.image.resize(maps, size).numpy()  # bilinear, centres at half pixels
    check(classify(maps, make_placement(*size, InputKey(20, 26, "stretch")), ARG_MAX), scores)


@pytest.mark.parametrize(
    ("channels", "keys", "expected"),
    [
        (1, {}, ClassRule(pytest.approx(0.5, abs=1e-7), 0, 1)),
        (1, {"score_threshold": 0.3}, ClassRule(0.3, 0, 1)),
        (3, {}, ARG_MAX),
        (3, {"score_threshold": 0.6, "background": "c"}, ClassRule(0.6, 2, 0)),
        (3, {"background": "add"}, ClassRule(0.5, 0, 1)),
        (3, {"background": "add", "score_threshold": 0.7}, ClassRule(0.7, 0, 1)),
    ],
)
def test_rule_of_a_job(channels, keys, expected):
    found = rule(channels=channels, **keys)
    assert found == expected
    maps = np.random.default_rng(1).random((12, 10, channels), np.float32)
    for size in ((12, 10), (50, 45)):
        placement = make_placement(*size, InputKey(12, 10, "stretch"))
        check(classify(maps, placement, found), interpolated(maps, placement), found)


def test_one_half_is_the_first_of_two_classes_as_without_interpolation():
    maps = np.full((3, 3, 1), 0.5, np.float32)
    for size in ((3, 3), (20, 20)):
        placement = make_placement(*size, InputKey(3, 3, "stretch"))
        assert (classify(maps, placement, rule(channels=1)) == 0).all()


def test_padding_has_no_influence():
    """The picture of a letterbox has the same mask whatever the network makes of the bars."""
    placement = make_placement(30, 60, InputKey(16, 16, "letterbox"))
    inside = slice(placement.target.top, placement.target.top + placement.target.height)
    masks = []
    for bars in (0, 1):
        maps = np.zeros((16, 16, 2), np.float32)
        maps[..., bars] = 1
        maps[inside] = probabilities(16, 16, 2)[inside]
        masks.append(classify(maps, placement, ARG_MAX))
    np.testing.assert_array_equal(*masks)


def test_boundaries_of_a_large_picture_are_straight():
    """The diagonal of a coarse grid stays within half a pixel of a line, without stairs."""
    rows, columns = np.mgrid[:8, :8]
    positive = np.clip((columns - rows) / 4 + 0.5, 0, 1).astype(np.float32)
    maps = np.stack([1 - positive, positive], axis=2)
    mask = classify(maps, make_placement(800, 800, InputKey(8, 8, "stretch")), ARG_MAX)
    y, x = np.mgrid[100:700, 100:700]
    assert (((mask[100:700, 100:700] == 1) == (x > y)) | (x == y)).all()


def test_whole_planes_and_blocks_give_the_same_classes(monkeypatch):
    rng = np.random.default_rng(1)
    for channels in [*range(1, 9), 40, 150]:  # an array of more than 128 is no image for OpenCV
        height, width = rng.integers(5, 60, 2)
        maps = rng.random((height, width, channels)).astype(np.float32)
        key = InputKey(int(height) * 4, int(width) * 4, "stretch")
        placement = make_placement(*map(int, rng.integers(3, 300, 2)), key)
        results = []
        for limit in (1 << 30, 0):
            monkeypatch.setattr(class_maps, "_MAX_WHOLE_VALUES", limit)
            results.append(classify(maps, placement, rule(channels=channels)))
        np.testing.assert_array_equal(*results)
