"""Non-maximum suppression equals its definition and OpenCV's; IoU, formats and clipping."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.geometry.boxes import clip_boxes, iou, non_max_suppression, to_xyxy
from tests.support.reference_arrays import suppress_reference

SETTINGS = {"score_threshold": 0.25, "iou_threshold": 0.6, "max_detections": 300}


def random_boxes(rng: np.random.Generator, num: int) -> np.ndarray:  # (N, 4) float32
    center = rng.random((num, 2)) * (640, 480)
    size = rng.random((num, 2)) * (200, 150) + 4
    return np.concatenate([center - size / 2, center + size / 2], axis=1).astype(np.float32)


def clustered_boxes(rng: np.random.Generator, num: int) -> np.ndarray:  # (N, 4) float32
    base = random_boxes(rng, 6)[rng.integers(0, 6, num)]
    return (base + rng.normal(0, 2, base.shape)).astype(np.float32)


def assert_equals_reference(boxes: np.ndarray, scores: np.ndarray, **changes: object) -> int:
    result = non_max_suppression(boxes, scores, **{**SETTINGS, **changes})
    expected = suppress_reference(boxes, scores, **{**SETTINGS, **changes})
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_array_equal(result[1], expected[1])
    assert (result[0].dtype, result[1].dtype) == (np.int64, np.int32)
    return len(result[0])


@pytest.mark.parametrize("is_agnostic", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (0, 0), (4, 0)])
def test_no_boxes_give_no_boxes(shape: tuple[int, int], is_agnostic: bool) -> None:
    boxes, scores = np.zeros((shape[0], 4), np.float32), np.zeros(shape, np.float32)
    assert assert_equals_reference(boxes, scores, class_agnostic=is_agnostic) == 0


def test_no_candidates_give_no_boxes() -> None:
    boxes = random_boxes(np.random.default_rng(0), 9)
    scores = np.full((9, 2), 0.5, np.float32)
    assert assert_equals_reference(boxes, scores, score_threshold=0.51) == 0
    assert assert_equals_reference(boxes, scores, max_detections=0) == 0
    assert assert_equals_reference(boxes, scores, classes_kept=[]) == 0


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num=st.integers(0, 30),
    num_classes=st.integers(1, 4),
    levels=st.sampled_from([1, 2, 5, 1000]),  # of scores: few levels give many ties
    grid=st.sampled_from([4, 12, 200]),  # few corners give equal, empty and swapped boxes
    score_threshold=st.sampled_from([0.0, 0.2, 0.25, 0.9]),
    iou_threshold=st.sampled_from([0.0, 0.5, 0.6, 1.0]),
    max_detections=st.sampled_from([1, 2, 7, 300]),
    class_agnostic=st.booleans(),
    classes_kept=st.sampled_from([None, [0], [2, 0]]),
)
def test_equals_the_definition(
    seed: int,
    num: int,
    num_classes: int,
    levels: int,
    grid: int,
    classes_kept: list[int] | None,
    **changes: float,
) -> None:
    rng = np.random.default_rng(seed)
    boxes = rng.integers(0, grid, (num, 4)).astype(np.float32)
    scores = (rng.integers(0, levels + 1, (num, num_classes)) / levels).astype(np.float32)
    class_ids = classes_kept and [c for c in classes_kept if c < num_classes]
    assert_equals_reference(boxes, scores, classes_kept=class_ids, **changes)


@pytest.mark.parametrize("make_boxes", [random_boxes, clustered_boxes])
@pytest.mark.parametrize("score_kind", ["random", "tied", "nearly tied", "adjacent floats"])
@pytest.mark.parametrize("changes", [{}, {"class_agnostic": True}, {"max_detections": 20}])
def test_equals_the_definition_with_several_bands_and_chunks(
    make_boxes: Callable[[np.random.Generator, int], np.ndarray],
    score_kind: str,
    changes: dict[str, object],
) -> None:
    rng = np.random.default_rng(3)
    boxes, scores = make_boxes(rng, 320), rng.random((320, 2), np.float32)
    if score_kind != "random":
        levels, step = {
            "tied": (1, 0.0),
            "nearly tied": (4, 0.2),
            "adjacent floats": (400, 2.0**-24),
        }[score_kind]
        scores = (0.5 + step * (scores * levels).astype(np.int32)).astype(np.float32)
    assert_equals_reference(boxes, scores, **changes)


def test_of_equal_boxes_one_per_class_is_kept() -> None:
    boxes = np.tile(np.array([[1, 2, 30, 40]], np.float32), (50, 1))
    scores = np.full((50, 3), 0.5, np.float32)
    row, class_id = non_max_suppression(boxes, scores, **SETTINGS)
    assert (row.tolist(), class_id.tolist()) == ([0, 0, 0], [0, 1, 2])
    row, class_id = non_max_suppression(boxes, scores, class_agnostic=True, **SETTINGS)
    assert (row.tolist(), class_id.tolist()) == ([0], [0])


def test_empty_boxes_suppress_no_box() -> None:
    boxes = np.array([[5, 5, 5, 5], [5, 5, 5, 5], [9, 9, 3, 3]], np.float32)
    scores = np.full((3, 2), 0.5, np.float32)
    assert assert_equals_reference(boxes, scores) == 6
    assert assert_equals_reference(boxes, scores, class_agnostic=True) == 3


def test_scores_and_ious_equal_to_the_threshold_are_kept() -> None:
    boxes = np.array([[0, 0, 4, 2], [0, 0, 2, 2]], np.float32)  # IoU ½
    scores = np.array([[0.3], [0.9]], np.float32)
    changes = {"score_threshold": 0.3, "max_detections": 9}
    assert non_max_suppression(boxes, scores, iou_threshold=0.5, **changes)[0].tolist() == [1, 0]
    assert non_max_suppression(boxes, scores, iou_threshold=0.49, **changes)[0].tolist() == [1]


def test_the_order_of_the_boxes_does_not_change_the_result() -> None:
    rng = np.random.default_rng(5)
    boxes, scores = clustered_boxes(rng, 500), rng.random((500, 3), np.float32)
    order = rng.permutation(500)
    row, class_id = non_max_suppression(boxes, scores, **SETTINGS)
    shuffled_row, shuffled_class_id = non_max_suppression(boxes[order], scores[order], **SETTINGS)
    np.testing.assert_array_equal(order[shuffled_row], row)
    np.testing.assert_array_equal(shuffled_class_id, class_id)


@pytest.mark.parametrize("is_agnostic", [False, True])
def test_equals_opencv_without_ties(is_agnostic: bool) -> None:
    rng = np.random.default_rng(6)
    boxes = rng.integers(0, 60, (600, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2] + 20
    scores = (rng.permutation(600 * 3).reshape(600, 3) / 1800).astype(np.float32)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    row, class_id = non_max_suppression(
        boxes, scores, class_agnostic=is_agnostic, **{**SETTINGS, "max_detections": 1800}
    )
    if is_agnostic:
        expected = cv2.dnn.NMSBoxes(xywh, scores.max(axis=1).tolist(), 0.25, 0.6)
        np.testing.assert_array_equal(row, expected)
    else:
        for c in range(3):
            expected = cv2.dnn.NMSBoxes(xywh, scores[:, c].tolist(), 0.25, 0.6)
            np.testing.assert_array_equal(row[class_id == c], expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_raise_with_their_position(value: float) -> None:
    boxes, scores = np.zeros((3, 4), np.float32), np.zeros((3, 2), np.float32)
    scores[2, 1] = value
    with pytest.raises(ValueError, match=f"box 2, class 1, is {value}.*must be finite"):
        non_max_suppression(boxes, scores, **SETTINGS)
    scores[2, 1], boxes[1, 3] = 0, value
    with pytest.raises(ValueError, match=f"corner 3 of box 1 is {value}.*must be finite"):
        non_max_suppression(boxes, scores, **SETTINGS)


def test_finite_scores_with_an_infinite_sum_are_no_error() -> None:
    boxes = np.array([[0, 0, 4, 2], [9, 9, 12, 12]], np.float32)
    scores = np.full((2, 1), np.finfo(np.float32).max)
    assert assert_equals_reference(boxes, scores) == 2


BOX = st.tuples(*[st.integers(-9, 9)] * 4)


@settings(max_examples=100, deadline=None)
@given(st.lists(BOX, max_size=5), st.lists(BOX, max_size=5))
def test_iou_is_the_exact_ratio_of_areas(
    a: list[tuple[int, ...]], c: list[tuple[int, ...]]
) -> None:
    def area(left: int, top: int, right: int, bottom: int) -> int:
        return max(right - left, 0) * max(bottom - top, 0)

    def exact(p: tuple[int, ...], q: tuple[int, ...]) -> float:
        corners = [max(p[0], q[0]), max(p[1], q[1]), min(p[2], q[2]), min(p[3], q[3])]
        shared = area(*corners)
        union = area(*p) + area(*q) - shared
        return float(Fraction(shared, union)) if union else 0.0

    ious = iou(np.array(a, np.float32).reshape(-1, 4), np.array(c, np.float32).reshape(-1, 4))
    np.testing.assert_array_equal(ious, np.array([[exact(p, q) for q in c] for p in a]).reshape(
        len(a), len(c)
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("box_format", "numbers"),
    [
        ("xyxy", (10, 20, 50, 40)),
        ("yxyx", (20, 10, 40, 50)),
        ("xywh", (10, 20, 40, 20)),
        ("center_xywh", (30, 30, 40, 20)),
        ("center_yxhw", (30, 30, 20, 40)),
        ("rel_xyxy", (0.1, 0.25, 0.5, 0.5)),
        ("rel_yxyx", (0.25, 0.1, 0.5, 0.5)),
        ("rel_xywh", (0.1, 0.25, 0.4, 0.25)),
        ("rel_center_xywh", (0.3, 0.375, 0.4, 0.25)),
    ],
)
def test_every_format_is_converted(box_format: str, numbers: tuple[float, ...]) -> None:
    for shape in ((0, 4), (4,), (3, 4), (2, 5, 4)):
        boxes = np.broadcast_to(np.array(numbers, np.float32), shape)
        xyxy = to_xyxy(boxes, box_format, height=80, width=100)
        assert (xyxy.shape, xyxy.dtype) == (shape, np.float32)
        np.testing.assert_allclose(
            xyxy, np.broadcast_to((10.0, 20.0, 50.0, 40.0), shape), atol=1e-5
        )


def test_an_unknown_format_raises() -> None:
    with pytest.raises(ValueError, match="'xxyy' is not known: use one of xyxy, yxyx"):
        to_xyxy(np.zeros((1, 4), np.float32), "xxyy", 1, 1)


def test_clipping_keeps_boxes_inside_and_empties_boxes_outside() -> None:
    boxes = np.array([[-5, -5, 5, 5], [1, 2, 3, 4], [90, 90, 99, 99]], np.float32)
    expected = [[0, 0, 5, 5], [1, 2, 3, 4], [20, 10, 20, 10]]
    np.testing.assert_array_equal(clip_boxes(boxes, height=10, width=20), expected)
    assert clip_boxes(boxes[:0], 10, 20).shape == (0, 4)
