"""Scores are those of slow loops and of Keras, whatever way the images were split."""

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
MAPS = RNG.integers(0, NUM_CLASSES, (2, NUM_IMAGES, 3, 5), dtype=np.uint8)
CORNERS = RNG.integers(0, 9, (2, NUM_IMAGES, 4)).astype(np.float32) + np.array([0, 0, 6, 6])
PER_IMAGE = 5  # boxes found, and boxes there
FOUND = RNG.integers(0, 6, (NUM_IMAGES, PER_IMAGE, 4)) + np.array([0, 0, 9, 9])
THERE = RNG.integers(0, 6, (NUM_IMAGES, PER_IMAGE, 4)) + np.array([0, 0, 9, 9])
BOX_CLASS = RNG.integers(0, 2, (2, NUM_IMAGES, PER_IMAGE))
BOX_SCORE = RNG.integers(0, 3, (NUM_IMAGES, PER_IMAGE)) / 2
IS_CROWD = RNG.random((NUM_IMAGES, PER_IMAGE)) < 0.2


def add_boxes(score, rows):
    index = np.repeat(np.arange(len(rows)), PER_IMAGE)
    found = Boxes(
        FOUND[rows].reshape(-1, 4),
        BOX_SCORE[rows].reshape(-1),
        BOX_CLASS[0, rows].reshape(-1),
        index,
    )
    crowd = IS_CROWD[rows].reshape(-1)
    truth = GroundTruthBoxes(
        THERE[rows].reshape(-1, 4), BOX_CLASS[1, rows].reshape(-1), index, crowd
    )
    return score.add([f"image {row:02}" for row in rows], found, truth)


# An empty score, one with other settings, and how the images of some rows are added.
KINDS = {
    "top_k": (TopK.empty((1, 3)), TopK.empty((1, 5)), lambda s, r: s.add(TRUTH[r], SCORES[r])),
    "confusion": (
        Confusion.empty(NUM_CLASSES, ignored=2),
        Confusion.empty(NUM_CLASSES),
        lambda s, r: s.add(MAPS[0, r], MAPS[1, r]),
    ),
    "multi_label": (
        MultiLabelPrecision.empty(NUM_CLASSES),
        MultiLabelPrecision.empty(3),
        lambda s, r: s.add(MAPS[0, r, 0, :NUM_CLASSES] > 1, SCORES[r]),
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


def assert_same(one, other):
    assert json.dumps(one.to_state()) == json.dumps(other.to_state())
    assert one.as_dict() == other.as_dict()


@EVERY_KIND
def test_nothing_has_no_figures_and_changes_nothing(kind):
    empty, _, add = KINDS[kind]
    assert set(empty.as_dict().values()) == {None}
    assert_same(empty.merge(), empty)
    assert_same(add(empty, np.arange(0)), empty)
    some = add(empty, np.arange(NUM_IMAGES))
    assert None not in some.as_dict().values() or kind == "average_precision"
    assert_same(some.merge(empty), some)
    assert_same(empty.merge(some), some)


@EVERY_KIND
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_how_the_images_are_split_and_in_which_order_they_come_is_all_one(kind, data):
    empty, _, add = KINDS[kind]
    rows = np.array(data.draw(st.permutations(range(NUM_IMAGES))))
    cuts = data.draw(st.lists(st.integers(0, NUM_IMAGES), max_size=5))
    parts = [add(empty, own) for own in np.split(rows, sorted(cuts))]
    whole = add(empty, np.arange(NUM_IMAGES))
    assert_same(empty.merge(*parts), whole)
    while len(parts) > 1:  # in pairs, whichever they are
        at = data.draw(st.integers(0, len(parts) - 2))
        parts[at : at + 2] = [parts[at].merge(parts[at + 1])]
    assert_same(parts[0], whole)
    one_by_one = empty
    for row in rows:
        one_by_one = add(one_by_one, np.array([row]))
    assert_same(one_by_one, whole)


@EVERY_KIND
@pytest.mark.parametrize("count", [0, NUM_IMAGES])
def test_json_carries_a_score(kind, count):
    empty, _, add = KINDS[kind]
    score = add(empty, np.arange(count))
    told = type(score).from_state(json.loads(json.dumps(score.to_state(), allow_nan=False)))
    assert_same(told, score)
    assert_same(told.merge(empty), score)
    json.dumps(score.as_dict(), allow_nan=False)
    for name, value in vars(score).items():
        if isinstance(value, np.ndarray):
            assert vars(told)[name].dtype.kind == value.dtype.kind
            assert vars(told)[name].shape == value.shape


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind][1] is not None])
def test_scores_of_other_settings_do_not_merge(kind):
    with pytest.raises(ValueError, match=r"is .* and .*: only metrics with equal settings"):
        KINDS[kind][0].merge(KINDS[kind][1])


def test_a_rank_counts_the_classes_that_are_strictly_better():
    ranks = rank_of_true_class(TRUTH, SCORES)
    for rank, true, row in zip(ranks, TRUTH, SCORES, strict=True):
        assert rank == sum(value > row[true] for value in row)
    whole, places = TopK.empty((1, 2, 9)).add(TRUTH, SCORES), TopK.empty((1, 2, 9))
    assert_same(places.add_ranks(ranks), whole)
    assert whole.as_dict()["top_2"] == (ranks < 2).mean()
    assert whole.as_dict()["top_9"] == 1


@pytest.mark.keras
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_top_k_is_that_of_keras_with_ties_and_without_sense(k):
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(k)
    truth = rng.integers(0, 5, 300)
    scores = (rng.integers(0, 4, (300, 5)) / 3).astype(np.float32)
    truth[:20] = rng.choice([-1, 5, 99], 20)
    scores[rng.random(scores.shape) < 0.02] = np.nan
    scores[rng.random(scores.shape) < 0.02] = np.inf
    scores[rng.random(scores.shape) < 0.02] = -np.inf
    told = keras.metrics.sparse_top_k_categorical_accuracy(truth, scores, k=k)
    hits = int(np.asarray(told).sum())
    assert TopK.empty([k]).add(truth, scores).hits.tolist() == [hits]
    assert 0 < hits < 300


@st.composite
def label_maps(draw):
    num_classes = draw(st.integers(1, 4))
    ignored = draw(st.sampled_from([None, 0, VOID_CLASS]))
    known = list(range(num_classes))
    size = draw(st.integers(0, 25))
    truths = st.sampled_from([*known, VOID_CLASS] if ignored == VOID_CLASS else known)
    truth = draw(st.lists(truths, min_size=size, max_size=size))
    answers = st.sampled_from([*known, VOID_CLASS])
    said = draw(st.lists(answers, min_size=size, max_size=size))
    return num_classes, ignored, np.array(truth, np.uint8), np.array(said, np.uint8)


@settings(max_examples=150, deadline=None)
@given(label_maps())
def test_confusion_is_counting_one_by_one(case):
    num_classes, ignored, truth, said = case
    pairs = [(t, s) for t, s in zip(truth.tolist(), said.tolist(), strict=True) if t != ignored]
    score = Confusion.empty(num_classes, ignored).add(truth, said)

    occurring, figures = [], {"precision": [], "recall": [], "f1": []}
    for k in range(num_classes):
        hit = sum(t == s == k for t, s in pairs)
        there, answered = sum(t == k for t, _ in pairs), sum(s == k for _, s in pairs)
        expected = {
            "precision": hit / answered if answered else np.nan,
            "recall": hit / there if there else np.nan,
            "f1": 2 * hit / (there + answered) if there + answered else np.nan,
            "iou": hit / (there + answered - hit) if there + answered else np.nan,
            "support": there,
        }
        got = {name: values[k] for name, values in score.per_class().items()}
        np.testing.assert_equal(got, expected)
        if there + answered:
            occurring.append((there, expected["iou"]))
            for name, values in figures.items():
                values.append(np.nan_to_num(expected[name]))

    told = score.as_dict()
    if not pairs:
        assert set(told.values()) == {None}
        return
    assert told["accuracy"] == pytest.approx(sum(t == s for t, s in pairs) / len(pairs))
    assert told["mean_iou"] == pytest.approx(np.mean([value for _, value in occurring]))
    for name, values in figures.items():
        weights = [there for there, _ in occurring]
        assert told[f"macro_{name}"] == pytest.approx(np.mean(values))
        assert told[f"weighted_{name}"] == pytest.approx(np.average(values, weights=weights))


def test_an_answer_that_is_no_class_is_a_miss():
    score = Confusion.empty(2).add(np.array([0, 0, 1]), np.array([0, VOID_CLASS, -1]))
    assert score.counts.tolist() == [[1, 0, 1], [0, 0, 1]]
    assert score.as_dict()["accuracy"] == pytest.approx(1 / 3)
    np.testing.assert_array_equal(score.per_class()["iou"], [0.5, 0])


@pytest.mark.keras
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("ignored", [None, VOID_CLASS, 1])
def test_mean_iou_is_that_of_keras(ignored):
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(3)
    truth = rng.choice([0, 1, 2, 4], (3, 20, 30))  # 3 is answered only, 5 occurs nowhere
    if ignored == VOID_CLASS:
        truth[rng.random(truth.shape) < 0.2] = VOID_CLASS
    said = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, 5, truth.shape))
    said = np.where(said == VOID_CLASS, 3, said)
    metric = keras.metrics.MeanIoU(6, ignore_class=ignored)
    metric.update_state(truth, said)
    score = Confusion.empty(6, ignored).add(truth, said)
    assert score.mean_iou == pytest.approx(float(metric.result()), abs=1e-6)
    assert score.as_dict()["mean_iou"] == score.mean_iou


def slow_average_precision(is_positive, scores):
    """Go down all thresholds, count anew at each: Σ (gain of recall) × precision."""
    total, area, before = sum(is_positive), Fraction(0), Fraction(0)
    for threshold in sorted(set(scores), reverse=True):
        taken = [p for p, s in zip(is_positive, scores, strict=True) if s >= threshold]
        recall = Fraction(sum(taken), total)
        area += (recall - before) * Fraction(sum(taken), len(taken))
        before = recall
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
    told = score.as_dict()["mean_average_precision"]
    if is_positive.any():
        assert told == pytest.approx(np.nanmean(expected))
    else:
        assert told is None
    assert len(score.score) <= 3 * (2 * levels + 1)


def test_equal_scores_are_kept_as_one_row():
    scores = np.array([[0.5], [-0.0], [0.5], [0.0]])
    score = MultiLabelPrecision.empty(1).add(np.array([[True], [True], [False], [False]]), scores)
    assert score.score.tolist() == [0.5, 0]
    assert (score.num_positive.tolist(), score.num_images.tolist()) == ([1, 1], [2, 2])
    assert not np.signbit(score.score).any()
    assert score.average_precision.tolist() == [0.5]


@pytest.mark.parametrize("count", [1, 64, 65, 200])
def test_the_iou_of_localized_boxes_is_that_of_each_pair(count):
    rng = np.random.default_rng(count)
    truth, said = (rng.random((2, count, 4)) * 20 + [0, 0, 20, 20]).astype(np.float32)
    said[: count // 3] = truth[: count // 3]
    said[-1] = [5, 5, 5, 5]
    pairs = [iou(t[None], s[None])[0, 0] for t, s in zip(truth, said, strict=True)]
    told = BoxIoU.empty().add(truth, said).as_dict()
    assert told["mean_iou"] == pytest.approx(np.mean(pairs), abs=1e-9)
    assert told["hits_50"] == np.mean(np.array(pairs) >= 0.5)


def test_half_an_overlap_is_a_hit():
    told = BoxIoU.empty().add(np.array([[0, 0, 4, 4]]), np.array([[0, 0, 4, 2]])).as_dict()
    assert told == {"mean_iou": 0.5, "hits_50": 1.0}


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_calibration_is_counting_bin_by_bin(num_bins):
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
    told = score.as_dict()["expected_calibration_error"]
    assert told == pytest.approx(error, abs=1e-9)


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
def test_what_has_no_sense_is_refused(add, message):
    with pytest.raises(ValueError, match=message):
        add()
