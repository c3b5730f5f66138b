"""Metrics equal plain loops and Keras, however the images are split."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.core.types import VOID_CLASS, Boxes
from cvbatch.geometry.boxes import iou
from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.box_matching import GroundTruthBoxes
from cvbatch.metrics.classification import (
    BoxIoU,
    Calibration,
    Confusion,
    MultiLabelPrecision,
    TopK,
    rank_of_true_class,
)

RNG = np.random.default_rng(0)
NUM_IMAGES, NUM_CLASSES = 12, 4
TRUTH = RNG.integers(0, NUM_CLASSES, NUM_IMAGES)
SCORES = RNG.integers(0, 4, (NUM_IMAGES, NUM_CLASSES)) / np.float32(3)  # many are equal
MASKS = RNG.integers(0, NUM_CLASSES, (2, NUM_IMAGES, 3, 5), dtype=np.uint8)
CORNERS = RNG.integers(0, 9, (2, NUM_IMAGES, 4)).astype(np.float32) + np.array([0, 0, 6, 6])
PER_IMAGE = 5  # detected boxes, and ground truth boxes
DETECTED = RNG.integers(0, 6, (NUM_IMAGES, PER_IMAGE, 4)) + np.array([0, 0, 9, 9])
TRUE_BOXES = RNG.integers(0, 6, (NUM_IMAGES, PER_IMAGE, 4)) + np.array([0, 0, 9, 9])
BOX_CLASS = RNG.integers(0, 2, (2, NUM_IMAGES, PER_IMAGE))
BOX_SCORE = RNG.integers(0, 3, (NUM_IMAGES, PER_IMAGE)) / 2
IS_CROWD = RNG.random((NUM_IMAGES, PER_IMAGE)) < 0.2


def add_boxes(score, rows):
    index = np.repeat(np.arange(len(rows)), PER_IMAGE)
    detections = Boxes(
        DETECTED[rows].reshape(-1, 4),
        BOX_SCORE[rows].reshape(-1),
        BOX_CLASS[0, rows].reshape(-1),
        index,
    )
    crowd = IS_CROWD[rows].reshape(-1)
    ground_truth = GroundTruthBoxes(
        TRUE_BOXES[rows].reshape(-1, 4), BOX_CLASS[1, rows].reshape(-1), index, crowd
    )
    return score.add([f"image {row:02}" for row in rows], detections, ground_truth)


# Empty metric, one with other settings, and a function that adds the images of some rows.
KINDS = {
    "top_k": (TopK.empty((1, 3)), TopK.empty((1, 5)), lambda s, r: s.add(TRUTH[r], SCORES[r])),
    "confusion": (
        Confusion.empty(NUM_CLASSES, ignored=2),
        Confusion.empty(NUM_CLASSES),
        lambda s, r: s.add(MASKS[0, r], MASKS[1, r]),
    ),
    "multi_label": (
        MultiLabelPrecision.empty(NUM_CLASSES),
        MultiLabelPrecision.empty(3),
        lambda s, r: s.add(MASKS[0, r, 0, :NUM_CLASSES] > 1, SCORES[r]),
    ),
    "box_iou": (BoxIoU.empty(), None, lambda s, r: s.add(CORNERS[0, r], CORNERS[1, r])),
    "calibration": (
        Calibration.empty(),
        Calibration.empty(10),
        lambda s, r: s.add(TRUTH[r], SCORES[r]),
    ),
    "average_precision": (AveragePrecision.empty(2), AveragePrecision.empty(3), add_boxes),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def assert_same(actual, expected):
    assert json.dumps(actual.to_state()) == json.dumps(expected.to_state())
    assert actual.as_dict() == expected.as_dict()


@EVERY_KIND
def test_no_images_have_no_metrics_and_change_nothing(kind):
    empty, _, add = KINDS[kind]
    assert set(empty.as_dict().values()) == {None}
    assert_same(empty.merge(), empty)
    assert_same(add(empty, np.arange(0)), empty)
    metric = add(empty, np.arange(NUM_IMAGES))
    assert None not in metric.as_dict().values() or kind == "average_precision"
    assert_same(metric.merge(empty), metric)
    assert_same(empty.merge(metric), metric)


@EVERY_KIND
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_splits_and_order_of_images_do_not_matter(kind, data):
    empty, _, add = KINDS[kind]
    rows = np.array(data.draw(st.permutations(range(NUM_IMAGES))))
    cuts = data.draw(st.lists(st.integers(0, NUM_IMAGES), max_size=5))
    parts = [add(empty, part) for part in np.split(rows, sorted(cuts))]
    expected = add(empty, np.arange(NUM_IMAGES))
    assert_same(empty.merge(*parts), expected)
    while len(parts) > 1:  # merge random neighbours
        i = data.draw(st.integers(0, len(parts) - 2))
        parts[i : i + 2] = [parts[i].merge(parts[i + 1])]
    assert_same(parts[0], expected)
    one_by_one = empty
    for row in rows:
        one_by_one = add(one_by_one, np.array([row]))
    assert_same(one_by_one, expected)


@EVERY_KIND
@pytest.mark.parametrize("count", [0, NUM_IMAGES])
def test_json_round_trip(kind, count):
    empty, _, add = KINDS[kind]
    score = add(empty, np.arange(count))
    restored = type(score).from_state(json.loads(json.dumps(score.to_state(), allow_nan=False)))
    assert_same(restored, score)
    assert_same(restored.merge(empty), score)
    json.dumps(score.as_dict(), allow_nan=False)
    for name, value in vars(score).items():
        if isinstance(value, np.ndarray):
            assert vars(restored)[name].dtype.kind == value.dtype.kind
            assert vars(restored)[name].shape == value.shape


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind][1] is not None])
def test_metrics_with_other_settings_do_not_merge(kind):
    with pytest.raises(ValueError, match=r"is .* and .*: only metrics with equal settings"):
        KINDS[kind][0].merge(KINDS[kind][1])


def test_the_rank_is_the_number_of_classes_with_a_higher_score():
    ranks = rank_of_true_class(TRUTH, SCORES)
    for rank, label, row in zip(ranks, TRUTH, SCORES, strict=True):
        assert rank == sum(value > row[label] for value in row)
    metric = TopK.empty((1, 2, 9)).add(TRUTH, SCORES)
    assert_same(TopK.empty((1, 2, 9)).add_ranks(ranks), metric)
    assert metric.as_dict()["top_2"] == (ranks < 2).mean()
    assert metric.as_dict()["top_9"] == 1


@pytest.mark.keras
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_top_k_equals_keras_with_ties_and_invalid_values(k):
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(k)
    truth = rng.integers(0, 5, 300)
    scores = (rng.integers(0, 4, (300, 5)) / 3).astype(np.float32)
    truth[:20] = rng.choice([-1, 5, 99], 20)
    scores[rng.random(scores.shape) < 0.02] = np.nan
    scores[rng.random(scores.shape) < 0.02] = np.inf
    scores[rng.random(scores.shape) < 0.02] = -np.inf
    expected = keras.metrics.sparse_top_k_categorical_accuracy(truth, scores, k=k)
    hits = int(np.asarray(expected).sum())
    assert TopK.empty([k]).add(truth, scores).hits.tolist() == [hits]
    assert 0 < hits < 300


@st.composite
def label_maps(draw):
    num_classes = draw(st.integers(1, 4))
    ignored = draw(st.sampled_from([None, 0, VOID_CLASS]))
    classes = list(range(num_classes))
    size = draw(st.integers(0, 25))
    truths = st.sampled_from([*classes, VOID_CLASS] if ignored == VOID_CLASS else classes)
    truth = draw(st.lists(truths, min_size=size, max_size=size))
    outputs = st.sampled_from([*classes, VOID_CLASS])
    predicted = draw(st.lists(outputs, min_size=size, max_size=size))
    return num_classes, ignored, np.array(truth, np.uint8), np.array(predicted, np.uint8)


@settings(max_examples=150, deadline=None)
@given(label_maps())
def test_confusion_metrics_equal_counting_in_loops(case):
    num_classes, ignored, truth, predicted = case
    both = zip(truth.tolist(), predicted.tolist(), strict=True)
    pairs = [(t, p) for t, p in both if t != ignored]
    score = Confusion.empty(num_classes, ignored).add(truth, predicted)

    occurring, per_class = [], {"precision": [], "recall": [], "f1": []}
    for k in range(num_classes):
        num_correct = sum(t == p == k for t, p in pairs)
        num_true = sum(t == k for t, _ in pairs)
        num_predicted = sum(p == k for _, p in pairs)
        num_either = num_true + num_predicted
        expected = {
            "precision": num_correct / num_predicted if num_predicted else np.nan,
            "recall": num_correct / num_true if num_true else np.nan,
            "f1": 2 * num_correct / num_either if num_either else np.nan,
            "iou": num_correct / (num_either - num_correct) if num_either else np.nan,
            "support": num_true,
        }
        actual = {name: values[k] for name, values in score.per_class().items()}
        np.testing.assert_equal(actual, expected)
        if num_either:
            occurring.append((num_true, expected["iou"]))
            for name, values in per_class.items():
                values.append(np.nan_to_num(expected[name]))

    overall = score.as_dict()
    if not pairs:
        assert set(overall.values()) == {None}
        return
    assert overall["accuracy"] == pytest.approx(sum(t == p for t, p in pairs) / len(pairs))
    assert overall["mean_iou"] == pytest.approx(np.mean([value for _, value in occurring]))
    for name, values in per_class.items():
        weights = [num_true for num_true, _ in occurring]
        assert overall[f"macro_{name}"] == pytest.approx(np.mean(values))
        assert overall[f"weighted_{name}"] == pytest.approx(np.average(values, weights=weights))


def test_a_prediction_that_is_not_a_class_is_wrong():
    score = Confusion.empty(2).add(np.array([0, 0, 1]), np.array([0, VOID_CLASS, -1]))
    assert score.counts.tolist() == [[1, 0, 1], [0, 0, 1]]
    assert score.as_dict()["accuracy"] == pytest.approx(1 / 3)
    np.testing.assert_array_equal(score.per_class()["iou"], [0.5, 0])


@pytest.mark.keras
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("ignored", [None, VOID_CLASS, 1])
def test_mean_iou_equals_keras(ignored):
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(3)
    truth = rng.choice([0, 1, 2, 4], (3, 20, 30))  # 3 is only predicted, 5 does not occur
    if ignored == VOID_CLASS:
        truth[rng.random(truth.shape) < 0.2] = VOID_CLASS
    predicted = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, 5, truth.shape))
    predicted = np.where(predicted == VOID_CLASS, 3, predicted)
    metric = keras.metrics.MeanIoU(6, ignore_class=ignored)
    metric.update_state(truth, predicted)
    score = Confusion.empty(6, ignored).add(truth, predicted)
    assert score.mean_iou == pytest.approx(float(metric.result()), abs=1e-6)
    assert score.as_dict()["mean_iou"] == score.mean_iou


def slow_average_precision(is_positive, scores):
    """Return Σ (increase of recall) × precision over all thresholds, counted anew at each."""
    total, area, previous = sum(is_positive), Fraction(0), Fraction(0)
    for threshold in sorted(set(scores), reverse=True):
        selected = [p for p, s in zip(is_positive, scores, strict=True) if s >= threshold]
        recall = Fraction(sum(selected), total)
        area += (recall - previous) * Fraction(sum(selected), len(selected))
        previous = recall
    return float(area)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.sampled_from([1, 3, 10**6]))
def test_multi_label_precision_is_the_area_under_the_curve(seed, count, levels):
    rng = np.random.default_rng(seed)
    is_positive = rng.random((count, 3)) < [0.5, 0.1, 0]
    scores = (rng.integers(-levels, levels + 1, (count, 3)) / levels).astype(np.float32)
    scores[scores == 0] *= -1  # −0 is 0
    score = MultiLabelPrecision.empty(3).add(is_positive, scores)
    expected = [
        slow_average_precision(p.tolist(), s.tolist()) if p.any() else np.nan
        for p, s in zip(is_positive.T, scores.T, strict=True)
    ]
    np.testing.assert_allclose(score.average_precision, expected, rtol=1e-12)
    mean = score.as_dict()["mean_average_precision"]
    if is_positive.any():
        assert mean == pytest.approx(np.nanmean(expected))
    else:
        assert mean is None
    assert len(score.score) <= 3 * (2 * levels + 1)


def test_equal_scores_are_stored_as_one_row():
    scores = np.array([[0.5], [-0.0], [0.5], [0.0]])
    score = MultiLabelPrecision.empty(1).add(np.array([[True], [True], [False], [False]]), scores)
    assert score.score.tolist() == [0.5, 0]
    assert (score.num_positive.tolist(), score.num_images.tolist()) == ([1, 1], [2, 2])
    assert not np.signbit(score.score).any()
    assert score.average_precision.tolist() == [0.5]


@pytest.mark.parametrize("count", [1, 64, 65, 200])
def test_box_iou_equals_the_iou_of_each_pair(count):
    rng = np.random.default_rng(count)
    truth, predicted = (rng.random((2, count, 4)) * 20 + [0, 0, 20, 20]).astype(np.float32)
    predicted[: count // 3] = truth[: count // 3]
    predicted[-1] = [5, 5, 5, 5]
    pairs = [iou(t[None], p[None])[0, 0] for t, p in zip(truth, predicted, strict=True)]
    metrics = BoxIoU.empty().add(truth, predicted).as_dict()
    assert metrics["mean_iou"] == pytest.approx(np.mean(pairs), abs=1e-9)
    assert metrics["hits_50"] == np.mean(np.array(pairs) >= 0.5)


def test_iou_of_one_half_counts_as_a_hit():
    metrics = BoxIoU.empty().add(np.array([[0, 0, 4, 4]]), np.array([[0, 0, 4, 2]])).as_dict()
    assert metrics == {"mean_iou": 0.5, "hits_50": 1.0}


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_calibration_equals_counting_per_bin(num_bins):
    rng = np.random.default_rng(num_bins)
    edges = np.linspace(0, 1, num_bins + 1)
    best = np.concatenate([rng.random(200), edges])  # a score on an edge is in the bin below it
    scores = np.stack([best, best * 0.9], axis=1)
    truth = (rng.random(len(best)) > best).astype(int)
    score = Calibration.empty(num_bins).add(truth, scores)
    error = 0.0
    for b in range(num_bins):
        inside = (best > edges[b]) & (best <= edges[b + 1]) | ((best == 0) & (b == 0))
        assert score.counts[b] == inside.sum()
        accuracy = (truth[inside] == 0).mean()
        assert score.per_bin()["accuracy"][b] == pytest.approx(accuracy)
        assert score.per_bin()["score"][b] == pytest.approx(best[inside].mean(), abs=1e-9)
        error += inside.mean() * abs(accuracy - best[inside].mean())
    assert score.as_dict()["expected_calibration_error"] == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (
            lambda: Confusion.empty(3).add(np.zeros((2, 2), int), np.zeros((2, 3), int)),
            r"\(2, 2\) and the predictions \(2, 3\).*resize",
        ),
        (
            lambda: Confusion.empty(3).add(np.array([0, VOID_CLASS]), np.array([0, 0])),
            "class id 255 is not one of 3 classes.*0 to 2.*remove that label",
        ),
        (lambda: Confusion.empty(3).add(np.array([-1]), np.array([0])), "class id -1"),
        (
            lambda: MultiLabelPrecision.empty(2).add(
                np.ones((1, 2), bool), np.array([[0, np.nan]])
            ),
            "the score in row 0 is nan: it must be finite",
        ),
        (
            lambda: BoxIoU.empty().add(np.zeros((2, 4)), np.array([[0.0] * 4, [0, 0, np.inf, 0]])),
            "the corner of a box in row 1 is inf",
        ),
        (lambda: Calibration.empty().add(np.array([0]), np.array([[2.5, 0]])), r"is 2.5.*0\.\.1"),
        (lambda: Calibration.empty().add(np.array([0]), np.array([[np.nan]])), "is nan"),
    ],
)
def test_invalid_values_are_refused(add, message):
    with pytest.raises(ValueError, match=message):
        add()
