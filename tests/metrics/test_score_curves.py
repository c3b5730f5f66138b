"""Counts at every minimum score equal those counted one threshold at a time."""

from __future__ import annotations

import numpy as np
import pytest

from cvbatch.core.types import Boxes
from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.base import ratio
from cvbatch.metrics.box_matching import (
    IOU_THRESHOLDS,
    GroundTruthBoxes,
    match_across_classes,
    match_boxes,
)
from cvbatch.metrics.classification import NOT_PREDICTED, MultiLabelPrecision
from cvbatch.metrics.score_curves import ScoreCurve
from tests.support.average_precision import average_precision_of_image

SEEDS = range(6)


def random_curve(seed):
    """Return predictions with many equal scores, whether they are right, and their curve."""
    rng = np.random.default_rng(seed)
    score = np.sort(rng.integers(0, 8, 40) / 8)[::-1]
    is_hit = rng.random(40) < score
    support = int(is_hit.sum()) + 3
    return score, is_hit, ScoreCurve.of(score, is_hit, np.ones(40, int), support)


@pytest.mark.parametrize("seed", SEEDS)
def test_counts_at_any_threshold_are_those_of_the_predictions_above_it(seed):
    score, is_hit, curve = random_curve(seed)
    assert curve.score.tolist() == sorted(set(score.tolist()), reverse=True)
    thresholds = np.append(np.random.default_rng(seed).uniform(-0.2, 1.2, 50), np.unique(score))
    at = curve.at(thresholds)
    for threshold, hits, predicted in zip(thresholds, at.hits, at.predicted, strict=True):
        above = score >= threshold
        assert (hits, predicted) == ((is_hit & above).sum(), above.sum())
    again = curve.at(curve.score)
    assert all(np.array_equal(a, b) for a, b in zip(again, curve, strict=True))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_score_has_the_largest_f1(seed):
    score, is_hit, curve = random_curve(seed)

    def f1(threshold):
        hits, predicted = (is_hit & (score >= threshold)).sum(), (score >= threshold).sum()
        precision, recall = hits / predicted, hits / curve.support
        return 2 * precision * recall / (precision + recall) if hits else 0.0

    best = max(sorted(set(score.tolist()), reverse=True), key=f1)
    assert curve.best() == (best, pytest.approx(f1(best)))


def test_without_predictions_or_objects_nothing_is_best():
    none = np.zeros(0, int)
    assert ScoreCurve.of(none.astype(float), none, none, 3).best() is None
    curve = ScoreCurve.of(np.array([0.5]), np.array([0]), np.array([1]), 0)
    assert curve.best() is None and np.isnan(curve.ratios()["recall"]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_curves_of_labels_count_listed_classes_only(seed):
    rng = np.random.default_rng(seed)
    is_positive = rng.random((30, 3)) < 0.4
    scores = np.where(rng.random((30, 3)) < 0.7, rng.integers(0, 6, (30, 3)) / 6, NOT_PREDICTED)
    metric = MultiLabelPrecision.empty(3).add(is_positive[:10], scores[:10])
    metric = metric.merge(MultiLabelPrecision.empty(3).add(is_positive[10:], scores[10:]))
    for k in range(3):
        curve = metric.score_curve(k)
        listed = scores[:, k] > NOT_PREDICTED
        assert curve.support == is_positive[:, k].sum()
        assert curve.predicted[-1] == listed.sum()
        assert curve.hits[-1] == (is_positive[:, k] & listed).sum()
        at = curve.at(np.array([0.5]))
        above = scores[:, k] >= 0.5
        assert (at.hits[0], at.predicted[0]) == ((is_positive[:, k] & above).sum(), above.sum())


def random_scene(seed, num_classes=3):
    """Return boxes near true boxes, some of another class, and crowds."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (12, 2))
    truth = np.concatenate([corner, corner + rng.uniform(10, 30, (12, 2))], axis=1)
    true_class = rng.integers(0, num_classes, 12)
    is_crowd = rng.random(12) < 0.2
    source = rng.integers(0, 12, 30)
    xyxy = truth[source] + rng.normal(0, 1.5, (30, 4))
    class_id = np.where(rng.random(30) < 0.7, true_class[source], rng.integers(0, num_classes, 30))
    score = rng.integers(1, 10, 30) / 10  # with ties
    image_index = np.zeros(30, np.int64)
    boxes = Boxes(xyxy, score, class_id, image_index)
    return boxes, GroundTruthBoxes(truth, true_class, np.zeros(12, np.int64), is_crowd)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("iou_threshold", [0.5, 0.75])
def test_curves_of_boxes_count_the_matches_of_coco(seed, iou_threshold):
    boxes, truth = random_scene(seed)
    metric = average_precision_of_image(
        "a", boxes.xyxy, boxes.score, boxes.class_id, truth.xyxy, truth.class_id,
        num_classes=3, is_crowd=truth.is_crowd,
    )  # fmt: skip
    matches = match_boxes(boxes, truth)
    criterion = int(np.argmin(abs(IOU_THRESHOLDS - iou_threshold))) * 4
    is_hit = matches.is_true_positive[:, criterion]
    is_counted = ~matches.is_ignored[:, criterion]
    score, class_id = boxes.score[matches.row], boxes.class_id[matches.row]
    for k in range(3):
        at = metric.score_curve(k, iou_threshold).at(np.array([0.0, 0.45]))
        for i, threshold in enumerate((0.0, 0.45)):
            used = is_counted & (class_id == k) & (score >= threshold)
            assert (at.hits[i], at.predicted[i]) == ((used & is_hit).sum(), used.sum())
        assert at.support == ((truth.class_id == k) & ~truth.is_crowd).sum()
    assert AveragePrecision.empty(2).score_curve(1, 0.5).best() is None


def overlap(a, b):
    """Return the intersection and the IoU of two boxes."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height, width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("iou_threshold", [0.5, 0.7])
def test_matches_across_classes_equal_loops(seed, iou_threshold):
    boxes, truth = random_scene(seed)
    matched, is_ignored = match_across_classes(boxes, truth, iou_threshold)
    object_of, ignored, free = {}, set(), set(np.flatnonzero(~truth.is_crowd).tolist())
    for d in sorted(range(30), key=lambda d: -boxes.score[d]):
        same = [t for t in free if truth.class_id[t] == boxes.class_id[d]]
        best = max(same, key=lambda t: overlap(boxes.xyxy[d], truth.xyxy[t])[1], default=None)
        if best is not None and overlap(boxes.xyxy[d], truth.xyxy[best])[1] >= iou_threshold:
            object_of[d] = best
            free.remove(best)
            continue
        area = np.prod(boxes.xyxy[d, 2:] - boxes.xyxy[d, :2])
        crowds = [
            t for t in np.flatnonzero(truth.is_crowd) if truth.class_id[t] == boxes.class_id[d]
        ]
        if any(overlap(boxes.xyxy[d], truth.xyxy[t])[0] / area >= iou_threshold for t in crowds):
            ignored.add(d)
    pairs = [
        (overlap(boxes.xyxy[d], truth.xyxy[t])[1], d, t)
        for d in set(range(30)) - set(object_of) - ignored
        for t in free
    ]
    for iou, d, t in sorted(pairs, reverse=True):
        if iou >= iou_threshold and d not in object_of and t in free:
            object_of[d] = t
            free.remove(t)
    assert matched.tolist() == [object_of.get(d, -1) for d in range(30)]
    assert np.flatnonzero(is_ignored).tolist() == sorted(ignored)


@pytest.mark.parametrize("seed", SEEDS)
def test_matches_of_equal_classes_are_the_true_positives_of_coco(seed):
    boxes, truth = random_scene(seed)
    matched, is_ignored = match_across_classes(boxes, truth, 0.5)
    is_hit = (matched >= 0) & (truth.class_id[matched] == boxes.class_id)
    matches = match_boxes(boxes, truth)
    assert is_hit[matches.row].tolist() == matches.is_true_positive[:, 0].tolist()
    is_free = matched[matches.row] < 0
    assert is_ignored[matches.row].tolist() == (matches.is_ignored[:, 0] & is_free).tolist()
    taken = matched[matched >= 0]
    assert len(set(taken)) == len(taken) and not truth.is_crowd[taken].any()


def test_ratios_are_those_of_the_counts():
    _, _, curve = random_curve(0)
    ratios = curve.ratios()
    np.testing.assert_array_equal(ratios["precision"], curve.hits / curve.predicted)
    np.testing.assert_array_equal(ratios["recall"], ratio(curve.hits, np.full(8, curve.support)))
