"""Accuracy, top-k, confusion matrix, IoU, multi-label precision and calibration: mergeable sums.

`cvbatch.metrics.average_precision` has the metrics of detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from cvbatch.geometry.boxes import iou
from cvbatch.metrics.base import (
    Metric,
    class_ratios,
    nan_mean,
    nan_to_none,
    ratio,
    require_class_ids,
    require_finite,
    rows_of_class,
    summed,
)
from cvbatch.metrics.score_curves import ScoreCurve

_FIXED_POINT = 2**32  # units of summed fractions: sums of integers do not depend on their order
_NEVER = np.iinfo(np.int64).max  # a rank larger than any k
_ROWS = 64  # boxes whose IoUs are computed at once
NOT_PREDICTED = -np.finfo(np.float64).max  # score of a class that the result does not list


@dataclass(frozen=True)
class TopK(Metric):
    """Top-k accuracy: how often the true class is among the k best scores."""

    ks: tuple[int, ...]
    hits: np.ndarray = field(metadata=summed(np.int64))  # (K,)
    num_images: int = field(metadata=summed(None))

    @classmethod
    def empty(cls, ks: Sequence[int] = (1, 5)) -> Self:
        """Return the metric of no images."""
        return cls(tuple(ks), np.zeros(len(ks), np.int64), 0)

    def add(
        self,
        class_id: np.ndarray,  # (N,) true classes
        scores: np.ndarray,  # (N, C)
    ) -> Self:
        """Return the metric with these images added; ranks are those of `rank_of_true_class`."""
        return self.add_ranks(rank_of_true_class(class_id, scores))

    def add_ranks(self, rank: np.ndarray) -> Self:  # (N,)
        """Return the metric with images added of which only the rank of the true class is known.

        Args:
            rank: number of classes with a higher score than the true class; at least the largest k
                where the true class is not among the predicted ones.
        """
        hits = (rank[:, None] < np.array(self.ks, np.int64)).sum(axis=0)
        return self.merge(replace(self, hits=hits, num_images=len(rank)))

    @property
    def accuracy(self) -> np.ndarray:  # (K,) float64
        """Accuracy for every k; NaN if there are no images."""
        return ratio(self.hits, np.full(len(self.ks), self.num_images))

    def as_dict(self) -> dict[str, float | None]:
        """Return `top_<k>` for every k; None if there are no images."""
        return nan_to_none({f"top_{k}": a for k, a in zip(self.ks, self.accuracy, strict=True)})


def rank_of_true_class(
    class_id: np.ndarray,  # (N,) true classes
    scores: np.ndarray,  # (N, C)
) -> np.ndarray:  # (N,) int64
    """Return the number of classes with a strictly higher score than the true class.

    So equal scores share the best rank, as in Keras' `SparseTopKCategoricalAccuracy`. The rank is
    larger than any k for a true class outside 0..C−1 or scores that are not all finite.
    """
    is_known = (class_id >= 0) & (class_id < scores.shape[1])
    true_score = scores[np.arange(len(scores)), np.where(is_known, class_id, 0)]
    rank = (scores > true_score[:, None]).sum(axis=1)
    return np.where(is_known & np.isfinite(scores).all(axis=1), rank, _NEVER)


@dataclass(frozen=True)
class Confusion(Metric):
    """Confusion matrix, over images or over pixels.

    A class occurs if it is a true or a predicted class. Means are over the classes that occur, as
    in Keras' MeanIoU and scikit-learn's averages; there, a ratio with a denominator of 0 (such as
    the precision of a class that is never predicted) is 0. For single classes it is NaN.
    """

    num_classes: int
    ignored: int | None
    counts: np.ndarray = field(metadata=summed(np.int64))  # (C, C + 1) true, predicted or none

    @classmethod
    def empty(cls, num_classes: int, ignored: int | None = None) -> Self:
        """Return an empty matrix; labels with the class `ignored` are not counted."""
        return cls(num_classes, ignored, np.zeros((num_classes, num_classes + 1), np.int64))

    def add(
        self,
        truth: np.ndarray,  # (...)
        predicted: np.ndarray,  # (...)
    ) -> Self:
        """Return the matrix with these class ids added.

        Args:
            truth: true class ids, (N,) of images, (H, W) or (N, H, W) of pixels.
            predicted: class ids of the same shape. An id outside 0..C−1, such as `VOID_CLASS`, is
                no class and counts as a false negative of the true class.

        Raises:
            ValueError: the shapes differ, or a true class is neither in 0..C−1 nor ignored.
        """
        if truth.shape != predicted.shape:
            raise ValueError(
                f"the labels have the shape {truth.shape} and the predictions {predicted.shape}: "
                "the shapes must be equal; resize the label maps to one size"
            )
        true_id, predicted_id = (ids.reshape(-1).astype(np.intp) for ids in (truth, predicted))
        if self.ignored is not None:
            is_counted = true_id != self.ignored
            true_id, predicted_id = true_id[is_counted], predicted_id[is_counted]
        require_class_ids(true_id, self.num_classes)
        width = self.num_classes + 1
        is_class = (predicted_id >= 0) & (predicted_id < self.num_classes)
        pairs = true_id * width + np.where(is_class, predicted_id, self.num_classes)
        counts = np.bincount(pairs, minlength=self.num_classes * width)
        return self.add_counts(counts.reshape(self.num_classes, width))

    def add_counts(self, counts: np.ndarray) -> Self:  # (C, C + 1)
        """Return the matrix with the counts of another matrix added."""
        return self.merge(replace(self, counts=counts))

    @property
    def hits(self) -> np.ndarray:  # (C,) int64
        """True positives of each class."""
        return np.diagonal(self.counts)

    @property
    def support(self) -> np.ndarray:  # (C,) int64
        """How often each class is the true class."""
        support: np.ndarray = self.counts.sum(axis=1)
        return support

    @property
    def predicted(self) -> np.ndarray:  # (C,) int64
        """How often each class is predicted."""
        predicted: np.ndarray = self.counts[:, :-1].sum(axis=0)
        return predicted

    def per_class(self) -> dict[str, np.ndarray]:  # each (C,)
        """Return precision, recall, f1 and iou, NaN where undefined, and the support."""
        ratios = class_ratios(self.hits, self.support, self.predicted)
        return {**ratios, "support": self.support}

    @property
    def accuracy(self) -> float:
        """Fraction of correct predictions, over pixels the pixel accuracy; NaN if it is empty."""
        return float(ratio(self.hits.sum(), self.support.sum()))

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the classes that occur; NaN if none does."""
        return nan_mean(self.per_class()["iou"])

    def as_dict(self) -> dict[str, float | None]:
        """Return accuracy, mean_iou, and macro and weighted precision, recall and f1.

        Macro: mean over the classes that occur; weighted: by support. None if it is empty.
        """
        result = {"accuracy": self.accuracy, "mean_iou": self.mean_iou}
        values, occurs = self.per_class(), self.support + self.predicted > 0
        share = ratio(self.support, np.full(self.num_classes, self.support.sum()))
        for name in ("precision", "recall", "f1"):
            defined = np.nan_to_num(values[name])
            result[f"macro_{name}"] = nan_mean(defined[occurs])
            result[f"weighted_{name}"] = float((share * defined).sum())
        return nan_to_none(result)


@dataclass(frozen=True)
class MultiLabelPrecision(Metric):
    """Exact average precision of every class of multi-label images.

    The state is the number of images for each class and score, sorted by both: equal scores are one
    row, so the order of the images does not change it.
    """

    num_classes: int
    class_id: np.ndarray = field(metadata=summed(np.int32))  # (M,) ascending
    score: np.ndarray = field(metadata=summed(np.float64))  # (M,) descending in a class
    num_positive: np.ndarray = field(metadata=summed(np.int64))  # (M,)
    num_images: np.ndarray = field(metadata=summed(np.int64))  # (M,)

    @classmethod
    def empty(cls, num_classes: int) -> Self:
        """Return the metric of no images."""
        none = np.zeros(0, np.int64)
        return cls(num_classes, none.astype(np.int32), none.astype(np.float64), none, none)

    def add(
        self,
        is_positive: np.ndarray,  # (N, C) bool
        scores: np.ndarray,  # (N, C)
    ) -> Self:
        """Return the metric with these images added.

        Raises:
            ValueError: a score is not finite.
        """
        require_finite(scores, "score")
        class_id = np.tile(np.arange(self.num_classes, dtype=np.int32), len(scores))
        batch = replace(
            self,
            class_id=class_id,
            score=scores.reshape(-1).astype(np.float64) + 0.0,  # −0 becomes 0: they are equal
            num_positive=is_positive.reshape(-1).astype(np.int64),
            num_images=np.ones(scores.size, np.int64),
        )
        return self.merge(batch)

    def merge(self, *others: Self) -> Self:
        """Return the metric over the images of all these metrics.

        Raises:
            ValueError: the numbers of classes differ.
        """
        self.require_same_settings(others)
        names = ("class_id", "score", "num_positive", "num_images")
        parts = (self, *others)
        rows = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
        order = np.lexsort((-rows[1], rows[0]))
        class_id, score, num_positive, num_images = (row[order] for row in rows)
        is_first = np.ones(len(order), bool)
        is_first[1:] = (class_id[1:] != class_id[:-1]) | (score[1:] != score[:-1])
        first = np.flatnonzero(is_first)
        if len(first):
            num_positive = np.add.reduceat(num_positive, first)
            num_images = np.add.reduceat(num_images, first)
        return type(self)(self.num_classes, class_id[first], score[first], num_positive, num_images)

    @property
    def average_precision(self) -> np.ndarray:  # (C,) float64
        """Area under the precision-recall curve of each class; NaN without positives.

        Σ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores, highest first, without interpolation, as in
        `sklearn.metrics.average_precision_score`.
        """
        result = np.full(self.num_classes, np.nan)
        for k in range(self.num_classes):
            rows = rows_of_class(self.class_id, k)
            positives = self.num_positive[rows]
            if positives.any():
                precision = np.cumsum(positives) / np.cumsum(self.num_images[rows])
                result[k] = (positives * precision).sum() / positives.sum()
        return result

    def curve(self, k: int) -> tuple[np.ndarray, np.ndarray]:  # (n,), (n,) float64
        """Return recall and precision of class `k` at each of its scores, highest first."""
        rows = rows_of_class(self.class_id, k)
        hits = np.cumsum(self.num_positive[rows])
        recall = ratio(hits, np.full(len(hits), hits[-1] if len(hits) else 0))
        return recall, hits / np.cumsum(self.num_images[rows])

    def score_curve(self, k: int) -> ScoreCurve:
        """Return the counts of class `k` at each of its scores except `NOT_PREDICTED`."""
        rows = rows_of_class(self.class_id, k)
        score, positive, images = self.score[rows], self.num_positive[rows], self.num_images[rows]
        used = score > NOT_PREDICTED
        return ScoreCurve.of(score[used], positive[used], images[used], int(positive.sum()))

    def as_dict(self) -> dict[str, float | None]:
        """Return mean_average_precision over the classes with positives; None if there are none."""
        return nan_to_none({"mean_average_precision": nan_mean(self.average_precision)})


@dataclass(frozen=True)
class BoxIoU(Metric):
    """IoU of the predicted box with the true box of each image, for localization."""

    iou_sum: int = field(metadata=summed(None))  # in units of 2⁻³²
    num_hits: int = field(metadata=summed(None))  # IoU at least ½
    num_images: int = field(metadata=summed(None))

    @classmethod
    def empty(cls) -> Self:
        """Return the metric of no images."""
        return cls(0, 0, 0)

    def add(
        self,
        truth_xyxy: np.ndarray,  # (N, 4)
        predicted_xyxy: np.ndarray,  # (N, 4)
    ) -> Self:
        """Return the metric with these images added; IoU is that of `cvbatch.geometry.boxes`.

        Raises:
            ValueError: a corner is not finite.
        """
        require_finite(truth_xyxy, "corner of a true box")
        require_finite(predicted_xyxy, "corner of a box")
        sums = np.zeros(2, np.int64)
        for start in range(0, len(truth_xyxy), _ROWS):
            rows = slice(start, start + _ROWS)
            ious = np.diagonal(iou(truth_xyxy[rows], predicted_xyxy[rows]))
            sums += np.rint(ious * _FIXED_POINT).astype(np.int64).sum(), (ious >= 0.5).sum()
        return self.merge(type(self)(int(sums[0]), int(sums[1]), len(truth_xyxy)))

    def as_dict(self) -> dict[str, float | None]:
        """Return mean_iou and hits_50, the fraction with an IoU of at least ½; None if empty."""
        sums = np.array([self.iou_sum / _FIXED_POINT, self.num_hits])
        mean_iou, hits = ratio(sums, np.full(2, self.num_images))
        return nan_to_none({"mean_iou": mean_iou, "hits_50": hits})


@dataclass(frozen=True)
class Calibration(Metric):
    """Calibration: whether predictions with a score of 0.8 are correct in 80 % of the cases.

    Bin b has the images whose best score is above b / B and at most (b + 1) / B.
    """

    num_bins: int
    counts: np.ndarray = field(metadata=summed(np.int64))  # (B,)
    hits: np.ndarray = field(metadata=summed(np.int64))  # (B,)
    score_sum: np.ndarray = field(metadata=summed(np.int64))  # (B,) in units of 2⁻³²

    @classmethod
    def empty(cls, num_bins: int = 15) -> Self:
        """Return the metric of no images."""
        none = np.zeros(num_bins, np.int64)
        return cls(num_bins, none, none, none)

    def add(
        self,
        class_id: np.ndarray,  # (N,) true classes
        scores: np.ndarray,  # (N, C) in 0..1
    ) -> Self:
        """Return the metric with these images added; of equal scores the first is predicted.

        Raises:
            ValueError: a best score is not in 0..1.
        """
        return self.add_predictions(scores.argmax(axis=1) == class_id, scores.max(axis=1))

    def add_predictions(
        self,
        is_hit: np.ndarray,  # (N,) bool
        score: np.ndarray,  # (N,) of the predicted class, in 0..1
    ) -> Self:
        """Return the metric with images added of which only the predicted class is known.

        Raises:
            ValueError: a score is not in 0..1.
        """
        best = score.astype(np.float64)
        is_invalid = ~((best >= 0) & (best <= 1))
        if is_invalid.any():
            row = int(is_invalid.argmax())
            raise ValueError(
                f"the best score of row {row} is {best[row]}: scores must be in 0..1; end the "
                "network with a softmax or sigmoid"
            )
        edges = np.linspace(0, 1, self.num_bins + 1)
        bin_index = np.searchsorted(edges[1:-1], best, side="left")
        score_sum = np.zeros(self.num_bins, np.int64)
        np.add.at(score_sum, bin_index, np.rint(best * _FIXED_POINT).astype(np.int64))
        counts = np.bincount(bin_index, minlength=self.num_bins)
        hits = np.bincount(bin_index[is_hit], minlength=self.num_bins)
        return self.merge(type(self)(self.num_bins, counts, hits, score_sum))

    def per_bin(self) -> dict[str, np.ndarray]:  # each (B,)
        """Return accuracy, mean score (both NaN in an empty bin) and counts, for a plot."""
        return {
            "accuracy": ratio(self.hits, self.counts),
            "score": ratio(self.score_sum / _FIXED_POINT, self.counts),
            "counts": self.counts,
        }

    def as_dict(self) -> dict[str, float | None]:
        """Return expected_calibration_error; None if there are no images.

        The mean of |accuracy − score| over the bins, weighted by their images.

        Source: Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3.
        """
        gap = np.abs(self.hits - self.score_sum / _FIXED_POINT).sum()
        return nan_to_none({"expected_calibration_error": float(ratio(gap, self.counts.sum()))})
