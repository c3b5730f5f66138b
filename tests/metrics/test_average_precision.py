"""Average precision equals pycocotools, and VOC average precision equals its definition."""

from __future__ import annotations

import contextlib
import io
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cvbatch.core.types import Boxes
from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.box_matching import GroundTruthBoxes
from tests.support.average_precision import average_precision_of_image

COCO_METRICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)
Row = tuple[float, ...]


def keys(count: int) -> list[str]:
    return [f"{i:04}.jpg" for i in range(count)]


def detections_of(rows: list[Row]) -> Boxes:  # image, class, score, x, y, right, bottom
    table = np.array(rows, np.float64).reshape(-1, 7)
    return Boxes(table[:, 3:], table[:, 2], table[:, 1].astype(int), table[:, 0].astype(int))


def ground_truth_of(
    rows: list[Row],
) -> GroundTruthBoxes:  # image, class, is_crowd, area, x, y, right, bottom
    table = np.array(rows, np.float64).reshape(-1, 8)
    image_index, class_id = table[:, :2].astype(int).T
    return GroundTruthBoxes(table[:, 4:], class_id, image_index, table[:, 2] > 0, table[:, 3])


def evaluate_with_pycocotools(
    detections: Boxes, ground_truth: GroundTruthBoxes, num_images: int, num_classes: int
) -> COCOeval:
    """Return the evaluation by pycocotools."""

    def annotations(boxes: Boxes | GroundTruthBoxes) -> list[dict[str, Any]]:
        rows = zip(boxes.image_index, boxes.class_id, boxes.xyxy.tolist(), strict=True)
        return [
            {"id": n + 1, "image_id": int(i), "category_id": int(k), "iscrowd": 0}
            | {"bbox": [x, y, right - x, bottom - y], "area": (right - x) * (bottom - y)}
            for n, (i, k, (x, y, right, bottom)) in enumerate(rows)
        ]

    true_rows, detected_rows = annotations(ground_truth), annotations(detections)
    for row, crowd, area in zip(true_rows, ground_truth.is_crowd, ground_truth.area, strict=True):
        row |= {"iscrowd": int(crowd), "area": float(area)}
    for row, score in zip(detected_rows, detections.score, strict=True):
        row["score"] = float(score)
    with contextlib.redirect_stdout(io.StringIO()):
        datasets = []
        for rows in (true_rows, detected_rows):
            dataset = COCO()
            dataset.dataset = {
                "images": [{"id": i} for i in range(num_images)],
                "categories": [{"id": k} for k in range(num_classes)],
                "annotations": rows,
            }
            dataset.createIndex()
            datasets.append(dataset)
        evaluation = COCOeval(*datasets, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def exact_iou(a: list[int], b: list[int]) -> Fraction:
    def area(left: int, top: int, right: int, bottom: int) -> int:
        return max(right - left, 0) * max(bottom - top, 0)

    shared = area(*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:]))
    union = area(*a) + area(*b) - shared
    return Fraction(shared, union) if union else Fraction(0)


def slow_voc(detections: Boxes, ground_truth: GroundTruthBoxes, class_id: int) -> float | None:
    """Return 11-point interpolated average precision by loops; None without ground truth."""
    true_ids = [n for n in range(len(ground_truth.xyxy)) if ground_truth.class_id[n] == class_id]
    num_objects = sum(not ground_truth.is_crowd[n] for n in true_ids)
    if not num_objects:
        return None
    detected_ids = [m for m in range(len(detections.xyxy)) if detections.class_id[m] == class_id]
    detected_ids.sort(key=lambda m: (-detections.score[m], detections.image_index[m], m))
    matched, num_correct, num_wrong = set(), 0, 0
    points = []
    for m in detected_ids:
        best, best_iou = None, Fraction(0)
        for n in true_ids:
            if ground_truth.image_index[n] == detections.image_index[m]:
                overlap = exact_iou(
                    detections.xyxy[m].astype(int).tolist(), ground_truth.xyxy[n].astype(int)
                )
                if overlap > best_iou:
                    best, best_iou = n, overlap
        if best_iou >= Fraction(1, 2) and ground_truth.is_crowd[best]:
            continue
        is_correct = best_iou >= Fraction(1, 2) and best not in matched
        matched.add(best if is_correct else None)
        num_correct, num_wrong = num_correct + is_correct, num_wrong + (not is_correct)
        precision = Fraction(num_correct, num_correct + num_wrong)
        points.append((Fraction(num_correct, num_objects), precision))
    interpolated = [
        max([p for r, p in points if r >= Fraction(i, 10)], default=0) for i in range(11)
    ]
    return float(sum(interpolated, Fraction(0)) / 11)


def assert_equals_references(
    detections: Boxes, ground_truth: GroundTruthBoxes, num_images: int, num_classes: int
) -> AveragePrecision:
    score = AveragePrecision.empty(num_classes).add(keys(num_images), detections, ground_truth)
    curves, evaluation = (
        score.curves,
        evaluate_with_pycocotools(detections, ground_truth, num_images, num_classes),
    )
    actual = np.nan_to_num(curves.precision, nan=-1)
    np.testing.assert_allclose(actual, evaluation.eval["precision"][..., -1], rtol=0, atol=1e-12)
    actual = np.nan_to_num(curves.recall, nan=-1)
    np.testing.assert_allclose(actual, evaluation.eval["recall"], rtol=0, atol=1e-12)
    values = score.as_dict()
    actual = np.array([-1 if values[name] is None else values[name] for name in COCO_METRICS])
    np.testing.assert_allclose(actual, evaluation.stats, rtol=0, atol=1e-12)

    assert not (score.is_true_positive & score.is_ignored).any()
    by_class = [slow_voc(detections, ground_truth, k) for k in range(num_classes)]
    expected = np.array([np.nan if value is None else value for value in by_class])
    np.testing.assert_allclose(score.per_class()["voc_ap"], expected, rtol=0, atol=1e-12)
    return score


LARGE, A, B = (0, 0, 200, 100), (10, 10, 50, 50), (12, 10, 52, 50)  # A and B: IoU 19 / 21
HALF = (10, 10, 50, 30)  # of A
# images, classes, detections (image, class, score, box), ground truth (image, class, crowd, area,
# box)
CASES: dict[str, tuple[int, int, list[Row], list[Row]]] = {
    "no images": (0, 1, [], []),
    "no boxes": (2, 2, [], []),
    "no ground truth": (1, 1, [(0, 0, 0.9, *A)], []),
    "no detections": (1, 1, [], [(0, 0, 0, 1600, *A)]),
    "one correct detection": (1, 1, [(0, 0, 0.9, *A)], [(0, 0, 0, 1600, *A)]),
    "another class": (1, 2, [(0, 0, 0.9, *A)], [(0, 1, 0, 1600, *A)]),
    "another image": (2, 1, [(1, 0, 0.9, *A)], [(0, 0, 0, 1600, *A)]),
    "a class only in the ground truth": (
        1,
        2,
        [(0, 0, 1, *A)],
        [(0, k, 0, 99, *A) for k in (0, 1)],
    ),
    "a class only in the detections": (1, 2, [(0, k, 1, *A) for k in (0, 1)], [(0, 0, 0, 99, *A)]),
    "IoU 0.5": (1, 1, [(0, 0, 0.9, *HALF)], [(0, 0, 0, 1600, *A)]),
    "detected twice": (1, 1, [(0, 0, s, *A) for s in (0.9, 0.8)], [(0, 0, 0, 1600, *A)]),
    "equal ground truth boxes": (
        1,
        1,
        [(0, 0, s, *A) for s in (0.9, 0.8)],
        [(0, 0, 0, 9e3, *A)] * 2,
    ),
    "equal scores": (1, 1, [(0, 0, 0.5, *box) for box in (B, A)], [(0, 0, 0, 1600, *A)]),
    "equal scores across images": (
        3,
        1,
        [(0, 0, 0.5, *LARGE), (1, 0, 0.5, *A), (2, 0, 0.5, *LARGE), (2, 0, 0.5, *B)],
        [(i, 0, 0, 1600, *A) for i in range(3)],
    ),
    **{
        f"between two, then near the {side}": (
            1,
            1,
            [(0, 0, 0.9, 10, 0, 50, 40), (0, 0, 0.8, x, 0, x + 40, 40)],
            [(0, 0, 0, 1600, 0, 0, 40, 40), (0, 0, 0, 1600, 20, 0, 60, 40)],
        )
        for side, x in (("first", -10), ("second", 30))
    },
    "the larger IoU is matched": (
        1,
        1,
        [(0, 0, 0.9, *A), (0, 0, 0.8, *A)],
        [(0, 0, 0, 1600, *A), (0, 0, 0, 1600, *B)],
    ),
    "only a crowd": (1, 1, [(0, 0, 0.9, *A)], [(0, 0, 1, 2e4, *LARGE)]),
    "a crowd matches many, one is outside": (
        1,
        1,
        [(0, 0, s, *A) for s in (0.9, 0.8, 0.7)] + [(0, 0, 0.95, 300, 300, 340, 340)],
        [(0, 0, 1, 2e4, *LARGE), (0, 0, 0, 1600, 400, 400, 440, 440)],
    ),
    "an object is matched before a crowd": (
        1,
        1,
        [(0, 0, 0.9, *A), (0, 0, 0.8, *A)],
        [(0, 0, 1, 2e4, *LARGE), (0, 0, 0, 1600, *HALF)],
    ),
    "difficult": (
        1,
        1,
        [(0, 0, 0.9, *A), (0, 0, 0.8, *A), (0, 0, 0.7, *LARGE)],
        [(0, 0, 1, 1600, *A), (0, 0, 0, 1600, *B), (0, 0, 0, 2e4, *LARGE)],
    ),
    "areas at the limits": (
        8,
        1,
        [(i, 0, 0.9, *A) for i in range(8)],
        [(i, 0, 0, a, *A) for i, a in enumerate((0, 1024, 1024.1, 9216, 9215.9, 1e10, 2e10, -1))],
    ),
    "detections' areas at the limits": (
        4,
        1,
        [(i, 0, 0.9, 0, 0, s, s) for i, s in enumerate((32, 33, 96, 97))],
        [(i, 0, 0, 5000, 500, 500, 570, 570) for i in range(4)],
    ),
    "an object out of the area range and its detection are ignored": (
        1,
        1,
        [(0, 0, 0.9, *A), (0, 0, 0.8, *A)],
        [(0, 0, 0, 500, *A), (0, 0, 0, 5000, *B), (0, 0, 0, 500, *A)],
    ),
    "no area": (
        1,
        1,
        [(0, 0, 0.9, 10, 10, 10, 50), (0, 0, 0.8, 10, 10, 10, 10), (0, 0, 0.7, *A)],
        [(0, 0, 0, 0, 10, 10, 10, 50), (0, 0, 1, 0, 10, 10, 10, 10), (0, 0, 0, 1600, *A)],
    ),
    "no area inside a crowd": (1, 1, [(0, 0, 0.9, 20, 20, 20, 30)], [(0, 0, 1, 2e4, *LARGE)]),
    "more than 100 per image, the correct one last": (
        2,
        2,
        [(0, 0, 1 - n / 1000, 300 + n, 0, 340 + n, 40) for n in range(130)]
        + [(0, 0, 0.5, *A), (0, 1, 0.4, *A), (1, 0, 0.01, *A)],
        [(i, k, 0, 1600, *A) for i in range(2) for k in range(2)],
    ),
    "recalls that are inexact in float": (
        1,
        1,
        [(0, 0, 1 - n / 10, 50 * n, 0, 50 * n + 40, 40) for n in (0, 2, 1, 5, 7, 3, 12)],
        [(0, 0, 0, 1600, 50 * n, 0, 50 * n + 40, 40) for n in range(10)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_pycocotools_and_the_definition(case: str) -> None:
    num_images, num_classes, detections, ground_truth = CASES[case]
    assert_equals_references(
        detections_of(detections), ground_truth_of(ground_truth), num_images, num_classes
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_images=st.integers(1, 5),
    num_classes=st.integers(1, 3),
    per_image=st.sampled_from([1, 4, 20]),
    grid=st.sampled_from([4, 12, 60]),  # few corners: equal boxes, boxes of no area
    scale=st.sampled_from([1, 8, 32]),
    levels=st.sampled_from([1, 4, 1000]),  # of score: few levels, many ties
)
def test_equals_pycocotools_and_the_definition_on_random_boxes(
    seed: int, num_images: int, num_classes: int, per_image: int, grid: int, scale: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    num_truths, num_found = rng.integers(0, num_images * per_image * np.array([1, 2]) + 1)

    def boxes(count: int) -> np.ndarray:
        corner = rng.integers(0, grid, (count, 2))
        return np.hstack([corner, corner + rng.integers(0, grid // 2 + 2, (count, 2))]) * scale

    true_boxes, detected_boxes = boxes(num_truths), boxes(num_found)
    if num_truths:
        is_near = rng.random(num_found) < 0.6
        near = true_boxes[rng.integers(0, num_truths, is_near.sum())]
        detected_boxes[is_near] = near + rng.integers(-1, 2, (is_near.sum(), 4))
        detected_boxes[:, 2:] = np.maximum(detected_boxes[:, 2:], detected_boxes[:, :2])
    areas = rng.choice([0, 1024, 1024.1, 9216, 9215.9, 2e10], num_truths)
    box_area = (true_boxes[:, 2:] - true_boxes[:, :2]).prod(axis=1)
    ground_truth = GroundTruthBoxes(
        true_boxes.astype(np.float32),
        rng.integers(0, num_classes, num_truths),
        rng.integers(0, num_images, num_truths),
        rng.random(num_truths) < 0.2,
        np.where(rng.random(num_truths) < 0.5, box_area, areas),
    )
    detections = Boxes(
        detected_boxes.astype(np.float32),
        (rng.integers(0, levels + 1, num_found) / levels).astype(np.float32),
        rng.integers(0, num_classes, num_found).astype(np.int32),
        rng.integers(0, num_images, num_found),
    )
    assert_equals_references(detections, ground_truth, num_images, num_classes)


def test_noisy_boxes_have_metrics_between_0_and_1() -> None:
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 400, (150, 2))
    true_boxes = np.hstack([corner, corner + rng.uniform(10, 120, (150, 2))]).astype(int)
    detected_boxes = np.repeat(true_boxes, 3, axis=0) + rng.integers(-6, 7, (450, 4))
    index, class_id = rng.integers(0, 10, 150), rng.integers(0, 3, 150)
    area = (true_boxes[:, 2:] - true_boxes[:, :2]).prod(axis=1)
    ground_truth = GroundTruthBoxes(true_boxes, class_id, index, np.zeros(150, bool), area)
    detections = Boxes(detected_boxes, rng.random(450), np.repeat(class_id, 3), np.repeat(index, 3))
    score = assert_equals_references(detections, ground_truth, 10, 3)
    assert all(0.05 < score.as_dict()[name] < 0.95 for name in COCO_METRICS)
    assert score.per_class()["num_objects"].tolist() == np.bincount(class_id).tolist()
    assert score.as_dict()["ap50"] == pytest.approx(score.per_class()["ap50"].mean())


def test_the_default_area_is_the_boxs_and_no_box_is_a_crowd() -> None:
    box = np.array([[0, 0, 40, 40]], np.float32)
    score_of_image = average_precision_of_image(
        "a", box, np.ones(1), np.zeros(1, int), box, np.zeros(1, int), num_classes=1
    )
    assert score_of_image.num_objects.tolist() == [[1, 0, 1, 0, 1]]
    assert score_of_image.as_dict()["ap_medium"] == score_of_image.as_dict()["voc_ap"] == 1
    assert score_of_image.as_dict()["ap_small"] is None
    crowd = average_precision_of_image(
        *("a", box, np.ones(1), np.zeros(1, int), box, np.zeros(1, int)),
        num_classes=1,
        is_crowd=np.ones(1, bool),
        area=np.array([100.0]),
    )
    assert crowd.num_objects.tolist() == [[0] * 5]
    assert set(crowd.as_dict().values()) == {None}


def test_adding_single_images_equals_adding_a_batch() -> None:
    num_images, num_classes, detections, ground_truth = CASES[
        "more than 100 per image, the correct one last"
    ]
    boxes, true_boxes = detections_of(detections), ground_truth_of(ground_truth)
    batch = AveragePrecision.empty(num_classes).add(keys(num_images), boxes, true_boxes)
    parts = []
    for i, key in enumerate(keys(num_images)):
        m, n = boxes.image_index == i, true_boxes.image_index == i
        parts.append(
            average_precision_of_image(
                *(key, boxes.xyxy[m], boxes.score[m], boxes.class_id[m]),
                *(true_boxes.xyxy[n], true_boxes.class_id[n]),
                num_classes=num_classes,
                is_crowd=true_boxes.is_crowd[n],
                area=true_boxes.area[n],
            )
        )
    assert parts[1].merge(parts[0]).to_state() == batch.to_state()


def test_a_box_with_swapped_corners_is_wrong_and_has_no_area() -> None:
    box = np.array([[0, 0, 40, 40]])
    swapped = np.array([[30, 0, 10, 40], [30, 30, 10, 10], [0, 0, 40, 40]])
    score, class_id = np.array([0.9, 0.8, 0.7]), np.zeros(3, int)
    score_of_image = average_precision_of_image(
        "a", swapped, score, class_id, box, class_id[:1], num_classes=1
    )
    assert score_of_image.as_dict()["ap"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xyxy": np.array([[0, 0, np.nan, 1]])}, "corner of a detection in row 0 is nan"),
        ({"score": np.array([np.inf])}, "score of a detection in row 0 is inf"),
        ({"truth_xyxy": np.array([[0, 0, np.inf, 1]])}, "corner of a true box in row 0 is inf"),
        ({"class_id": np.array([2])}, "class id 2 is not one of 2 classes"),
        ({"truth_class_id": np.array([-1])}, "class id -1 is not one of 2 classes"),
    ],
)
def test_invalid_boxes_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    box, zero = np.array([[0.0, 0, 1, 1]]), np.zeros(1, int)
    valid = {"xyxy": box, "score": np.ones(1), "class_id": zero}
    valid |= {"truth_xyxy": box, "truth_class_id": zero}
    with pytest.raises(ValueError, match=message):
        average_precision_of_image("a", **(valid | change), num_classes=2)


def test_an_image_can_be_added_only_once() -> None:
    box, zero = np.array([[0.0, 0, 1, 1]]), np.zeros(1, int)
    score = average_precision_of_image("a.jpg", box, np.ones(1), zero, box, zero, num_classes=1)
    with pytest.raises(ValueError, match=r"'a\.jpg' occurs twice.*counted once"):
        score.merge(score)
    no_boxes = detections_of([]), ground_truth_of([])
    with pytest.raises(ValueError, match="'b' occurs twice"):
        score.add(["b", "c", "b"], *no_boxes)
