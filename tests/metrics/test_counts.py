"""Bootstrap replicates equal counting every image as often as its weight."""

from hashlib import blake2b
from math import exp, factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.core.types import Boxes
from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.box_matching import GroundTruthBoxes
from cvbatch.metrics.classification import Confusion
from cvbatch.metrics.counts import (
    ClassCounts,
    bootstrap_weights,
    count_by_class,
    percentile_interval,
)

CLASSES, REPLICATES = 4, 6


def names(count, first=0):
    return [f"image {i}" for i in range(first, first + count)]


def test_no_images_have_no_weights_and_no_counts():
    weights = bootstrap_weights([], 3, 0)
    assert weights.shape == (0, 4)
    none = np.zeros(0, int)
    assert not count_by_class(weights, none, none, CLASSES).any()
    counts = ClassCounts.empty(CLASSES, 3)
    assert np.isnan(counts.overall()["accuracy"]).all()
    assert percentile_interval(counts.per_class()["recall"][:, 0]) is None


def test_without_replicates_every_image_counts_once():
    assert bootstrap_weights(names(5), 0, 7).tolist() == [[1]] * 5


def test_weights_are_poisson_with_mean_1_and_independent_between_replicates():
    weights = bootstrap_weights(names(4000), 50, 3)[:, 1:]
    frequencies = np.bincount(weights.reshape(-1), minlength=5)[:5] / weights.size
    expected = np.exp(-1) / np.array([1, 1, 2, 6, 24])
    np.testing.assert_allclose(frequencies, expected, atol=0.005)
    correlations = np.corrcoef(weights.T) - np.eye(50)
    assert np.abs(correlations).max() < 0.08


def test_weights_equal_splitmix64_in_plain_python():
    mask, seed, name = 2**64 - 1, 12, "über/image 7.jpg"
    digest = blake2b(name.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    state, expected = int.from_bytes(digest, "little"), []
    for _ in range(40):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        uniform, count, total = ((z ^ (z >> 31)) >> 11) / 2**53, 0, exp(-1)
        while uniform >= total:
            count += 1
            total += exp(-1) / factorial(count)
        expected.append(count)
    assert bootstrap_weights([name], 40, seed).tolist() == [[1, *expected]]


def test_weights_depend_only_on_name_and_seed():
    weights = bootstrap_weights(names(10), 8, 1)
    np.testing.assert_array_equal(weights[6:], bootstrap_weights(names(4, first=6), 8, 1))
    np.testing.assert_array_equal(weights[:, :4], bootstrap_weights(names(10), 3, 1))
    assert (weights != bootstrap_weights(names(10), 8, 2)).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_a_replicate_equals_repeating_images_by_their_weight(seed, count):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, CLASSES, (2, count))
    weights = bootstrap_weights(names(count), REPLICATES, seed % 1000)
    index, is_correct = np.arange(count), labels == predicted
    counts = ClassCounts.empty(CLASSES, REPLICATES).add(
        count_by_class(weights, index[is_correct], labels[is_correct], CLASSES),
        count_by_class(weights, index, labels, CLASSES),
        count_by_class(weights, index, predicted, CLASSES),
    )
    per_class, overall = counts.per_class(), counts.overall()
    for r in range(1 + REPLICATES):
        repeats = weights[:, r]
        score = Confusion.empty(CLASSES).add(
            np.repeat(labels, repeats), np.repeat(predicted, repeats)
        )
        for name in ("precision", "recall", "f1", "iou"):
            np.testing.assert_array_equal(per_class[name][r], score.per_class()[name])
        for name, value in score.as_dict().items():
            if value is not None:
                assert overall[name][r] == pytest.approx(value)


def test_amounts_are_summed_per_class():
    weights = np.array([[1, 2], [1, 0]])
    counts = count_by_class(
        weights, np.array([0, 1, 0]), np.array([2, 2, 0]), 3, np.array([10, 100, 1000])
    )
    assert counts.tolist() == [[1000, 0, 110], [2000, 0, 20]]


def test_the_interval_is_the_middle_95_percent():
    assert percentile_interval(np.array([9.0, *np.linspace(0, 1, 1001)])) == pytest.approx(
        (0.025, 0.975)
    )


def boxes(rng, count):
    corner = rng.integers(0, 40, (count, 2))
    return np.concatenate([corner, corner + rng.integers(5, 60, (count, 2))], 1).astype(np.float32)


@pytest.mark.parametrize("seed", range(12))
def test_resampled_average_precision_equals_repeating_images(seed):
    rng = np.random.default_rng(seed)
    keys = [f"{i:03d}" for i in range(8)]
    # Scores are distinct within an image: equal scores of its copies would be interleaved.
    index = np.arange(64)
    detections = Boxes(boxes(rng, 64), index // 8 / 8, rng.integers(0, 2, 64), index % 8)
    ground_truth = GroundTruthBoxes(
        detections.xyxy[:25] + rng.integers(-3, 4, (25, 4)),
        detections.class_id[:25],
        detections.image_index[:25],
        rng.random(25) < 0.2,
    )
    score = AveragePrecision.empty(2).add(keys, detections, ground_truth)
    weight = rng.poisson(1.0, 8)
    repeated = AveragePrecision.empty(2)
    for i, key in enumerate(keys):
        is_detected, is_true = detections.image_index == i, ground_truth.image_index == i
        for copy in range(weight[i]):
            boxes_of_copy = Boxes(
                detections.xyxy[is_detected],
                detections.score[is_detected],
                detections.class_id[is_detected],
                np.zeros(is_detected.sum(), int),
            )
            truth_of_copy = GroundTruthBoxes(
                ground_truth.xyxy[is_true],
                ground_truth.class_id[is_true],
                np.zeros(is_true.sum(), int),
                ground_truth.is_crowd[is_true],
            )
            repeated = repeated.add([f"{key}-{copy}"], boxes_of_copy, truth_of_copy)
    resampled = score.resampled(weight, repeated.num_objects[:, 0])
    for name, values in resampled.items():
        np.testing.assert_allclose(values, repeated.per_class()[name], atol=1e-12, err_msg=name)
