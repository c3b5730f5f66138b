"""fit_anchors is as good as a slow k-means and does not depend on the order of the boxes."""

import numpy as np
import pytest

from cvbatch.geometry.anchors import fit_anchors, shape_iou
from cvbatch.geometry.boxes import iou
from tests.support.reference_arrays import mean_iou_of_anchors


def random_shapes(count, seed=0):
    return np.exp(np.random.default_rng(seed).normal(0, 0.7, (count, 2)))


def slow_k_means(boxes, k, rng):
    """Run plain k-means from k random boxes, box by box."""
    anchors = [boxes[i] for i in rng.choice(len(boxes), k, replace=False)]
    for _ in range(20):
        members = [[] for _ in range(k)]
        for box in boxes:
            overlaps = [np.minimum(box, a).prod() for a in anchors]
            unions = [box.prod() + a.prod() - o for a, o in zip(anchors, overlaps, strict=True)]
            best = int(np.argmax(np.array(overlaps) / np.array(unions)))
            members[best].append(box)
        anchors = [np.mean(m, axis=0) if m else a for m, a in zip(members, anchors, strict=True)]
    return np.array(anchors)


def test_one_box_is_its_own_anchor():
    np.testing.assert_array_equal(fit_anchors(np.array([[3, 4]]), 1), [[3, 4]])
    assert mean_iou_of_anchors(np.array([[3, 4]]), np.array([[3, 4]])) == 1


def test_shape_iou_is_the_iou_of_centred_boxes():
    a, b = random_shapes(6), random_shapes(4, seed=1)
    xyxy = [np.concatenate([-s[:, ::-1] / 2, s[:, ::-1] / 2], axis=1) for s in (a, b)]

    np.testing.assert_allclose(shape_iou(a, b), iou(*xyxy), rtol=1e-12)
    expected = np.mean([max(row) for row in iou(*xyxy)])
    assert mean_iou_of_anchors(a, b) == pytest.approx(expected, rel=1e-12)


def test_known_clusters_are_found():
    centres = np.array([[0.1, 0.1], [0.1, 0.4], [0.5, 0.2], [0.6, 0.7]])
    rng = np.random.default_rng(3)
    boxes = np.repeat(centres, 50, axis=0) * rng.uniform(0.95, 1.05, (200, 2))

    np.testing.assert_allclose(fit_anchors(boxes, 4), centres, rtol=0.03)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_restarts_of_a_slow_k_means_are_not_better(k):
    boxes = random_shapes(60, seed=k)
    rng = np.random.default_rng(7)
    slow_ious = [mean_iou_of_anchors(boxes, slow_k_means(boxes, k, rng)) for _ in range(8)]

    assert mean_iou_of_anchors(boxes, fit_anchors(boxes, k)) >= max(slow_ious) - 1e-9


def test_the_order_of_the_boxes_does_not_change_the_anchors():
    boxes = random_shapes(100)
    shuffled = np.random.default_rng(1).permutation(boxes)

    np.testing.assert_array_equal(fit_anchors(boxes, 5, 2), fit_anchors(shuffled, 5, 2))


def test_anchors_are_sorted_by_area_and_have_the_unit_of_the_boxes():
    boxes = random_shapes(100)
    anchors = fit_anchors(boxes, 6)

    assert anchors.shape == (6, 2)
    assert (np.diff(anchors.prod(axis=1)) >= 0).all()
    np.testing.assert_allclose(fit_anchors(boxes * 416, 6), anchors * 416, rtol=1e-9)


def test_with_k_distinct_boxes_the_anchors_are_the_boxes():
    boxes = random_shapes(7)
    expected = boxes[np.argsort(boxes.prod(axis=1))]

    np.testing.assert_allclose(fit_anchors(np.repeat(boxes, 3, axis=0), 7), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("boxes", "k", "message"),
    [
        (np.zeros((0, 2)), 1, r"shape \(0, 2\)"),
        (np.ones((3, 4)), 1, r"shape \(3, 4\).*\(N, 2\)"),
        (np.ones((5, 2)), 2, "k = 2 anchors of 1 distinct boxes"),
        (np.ones((5, 2)), 0, "k = 0"),
        ([[1, 1], [0, 2]], 1, r"box 1 .*\[0.0, 2.0\].*positive"),
        ([[1, np.nan]], 1, "positive and finite"),
    ],
)
def test_invalid_arguments_raise(boxes, k, message):
    with pytest.raises(ValueError, match=message):
        fit_anchors(np.array(boxes), k)
