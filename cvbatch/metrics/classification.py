"""Classifications, label maps and single boxes are scored here, by sums that merge.

Detections are scored in `average_precision.py`, by the same law, which `mergeable.py` states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from cvbatch.geometry.boxes import iou
from cvbatch.metrics.base import (
    Metric,
    nan_mean,
    nan_to_none,
    ratio,
    require_class_ids,
    require_finite,
    summed,
)

_FIXED_POINT = 2**32  # fractions are summed in these units: integer sums know no order
_NEVER = np.iinfo(np.int64).max  # a rank that no k reaches
_ROWS = 64  # pairs of boxes whose IoUs are computed at once


@dataclass(frozen=True)
class TopK(Metric):
    """How often the true class is among the k best."""

    ks: tuple[int, ...]
    hits: np.ndarray = field(metadata=summed(np.int64))  # (K,)
    num_images: int = field(metadata=summed(None))

    @classmethod
    def empty(cls, ks: Sequence[int] = (1, 5)) -> Self:
        """Return the score of no image."""
        return cls(tuple(ks), np.zeros(len(ks), np.int64), 0)

    def add(
        self,
        class_id: np.ndarray,  # (N,) the truth
        scores: np.ndarray,  # (N, C)
    ) -> Self:
        """Return the score with these images in it; what is a hit, `rank_of_truth` says."""
        return self.add_ranks(rank_of_true_class(class_id, scores))

    def add_ranks(self, rank: np.ndarray) -> Self:  # (N,)
        """Return the score with images in it whose truth so many classes beat.

        For answers that name only their best classes: the place in the list, from 0, and for a
        class that is not there anything from the largest k up.
        """
        hits = (rank[:, None] < np.array(self.ks, np.int64)).sum(axis=0)
        return self.merge(replace(self, hits=hits, num_images=len(rank)))

    @property
    def accuracy(self) -> np.ndarray:  # (K,) float64
        """Return the fraction of hits for every k; NaN where there is no image."""
        return ratio(self.hits, np.full(len(self.ks), self.num_images))

    def as_dict(self) -> dict[str, float | None]:
        """Return `top_<k>` for every k; None where there is no image."""
        return nan_to_none({f"top_{k}": a for k, a in zip(self.ks, self.accuracy, strict=True)})


def rank_of_true_class(
    class_id: np.ndarray,  # (N,) the truth
    scores: np.ndarray,  # (N, C)
) -> np.ndarray:  # (N,) int64
    """Return how many classes score strictly higher than the true one.

    So of equal scores all count as the best of them, as in Keras' sparse_top_k. Beyond any k
    are a truth outside 0..C−1 and an image of whose scores one is not finite.
    """
    is_known = (class_id >= 0) & (class_id < scores.shape[1])
    own = scores[np.arange(len(scores)), np.where(is_known, class_id, 0)]
    rank = (scores > own[:, None]).sum(axis=1)
    return np.where(is_known & np.isfinite(scores).all(axis=1), rank, _NEVER)


@dataclass(frozen=True)
class Confusion(Metric):
    """How often each class was taken for which, over images or over pixels.

    A class *occurs* if it is in the truth or in an answer. Means are over the classes that
    occur, so are Keras' MeanIoU and scikit-learn's averages; there, a ratio with nothing below
    the line (the precision of a class never answered) is 0. For single classes it is NaN.
    """

    num_classes: int
    ignored: int | None
    counts: np.ndarray = field(metadata=summed(np.int64))  # (C, C + 1) last: no class said

    @classmethod
    def empty(cls, num_classes: int, ignored: int | None = None) -> Self:
        """Return the score of nothing; a truth of `ignored` is left out of every count."""
        return cls(num_classes, ignored, np.zeros((num_classes, num_classes + 1), np.int64))

    def add(
        self,
        truth: np.ndarray,  # (...) class ids: (N,) of images, (H, W) or (N, H, W) of pixels
        said: np.ndarray,  # (...) the same shape
    ) -> Self:
        """Return the score with these in it.

        An answer outside 0..C−1, such as `VOID_CLASS`, is no class: the true class misses it.

        Raises:
            ValueError: the shapes differ, or a truth is neither in 0..C−1 nor ignored.
        """
        if truth.shape != said.shape:
            raise ValueError(
                f"the truth has the shape {truth.shape} and the answers {said.shape}: each class "
                "id needs one answer; resize the label maps to one size"
            )
        true_id, said_id = truth.reshape(-1).astype(np.intp), said.reshape(-1).astype(np.intp)
        if self.ignored is not None:
            is_kept = true_id != self.ignored
            true_id, said_id = true_id[is_kept], said_id[is_kept]
        require_class_ids(true_id, self.num_classes)
        width = self.num_classes + 1
        is_class = (said_id >= 0) & (said_id < self.num_classes)
        pairs = true_id * width + np.where(is_class, said_id, self.num_classes)
        counts = np.bincount(pairs, minlength=self.num_classes * width)
        return self.add_counts(counts.reshape(self.num_classes, width))

    def add_counts(self, counts: np.ndarray) -> Self:  # (C, C + 1)
        """Return the score with counts in it that were taken elsewhere."""
        return self.merge(replace(self, counts=counts))

    @property
    def hits(self) -> np.ndarray:  # (C,) int64
        """Return how often each class was answered rightly."""
        return np.diagonal(self.counts)

    @property
    def support(self) -> np.ndarray:  # (C,) int64
        """Return how often each class is the truth."""
        support: np.ndarray = self.counts.sum(axis=1)
        return support

    @property
    def predicted(self) -> np.ndarray:  # (C,) int64
        """Return how often each class is the answer."""
        answered: np.ndarray = self.counts[:, :-1].sum(axis=0)
        return answered

    def per_class(self) -> dict[str, np.ndarray]:  # each (C,)
        """Return precision, recall, f1 and iou, NaN where undefined, and the support."""
        hits, support, answered = self.hits, self.support, self.predicted
        return {
            "precision": ratio(hits, answered),
            "recall": ratio(hits, support),
            "f1": ratio(2 * hits, support + answered),
            "iou": ratio(hits, support + answered - hits),
            "support": support,
        }

    @property
    def accuracy(self) -> float:
        """Return the fraction of right answers: pixel accuracy over pixels; NaN of nothing."""
        return float(ratio(self.hits.sum(), self.support.sum()))

    @property
    def mean_iou(self) -> float:
        """Return the mean IoU of the classes that occur; NaN if none does."""
        return nan_mean(self.per_class()["iou"])

    def as_dict(self) -> dict[str, float | None]:
        """Return accuracy, mean_iou, and macro and weighted precision, recall and f1.

        Macro: the mean over the classes that occur; weighted: by support. None of nothing.
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
    """Average precision of every class where an image may have several, exact.

    The state is how often each score was given to each class, ordered by class and score: equal
    scores are one row, so the order of the images is nowhere in it.
    """

    num_classes: int
    class_id: np.ndarray = field(metadata=summed(np.int32))  # (M,) ascending
    score: np.ndarray = field(metadata=summed(np.float64))  # (M,) descending in a class
    num_positive: np.ndarray = field(metadata=summed(np.int64))  # (M,)
    num_images: np.ndarray = field(metadata=summed(np.int64))  # (M,)

    @classmethod
    def empty(cls, num_classes: int) -> Self:
        """Return the score of no image."""
        none = np.zeros(0, np.int64)
        return cls(num_classes, none.astype(np.int32), none.astype(np.float64), none, none)

    def add(
        self,
        is_positive: np.ndarray,  # (N, C) bool
        scores: np.ndarray,  # (N, C)
    ) -> Self:
        """Return the score with these images in it.

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
        """Return the score of all images; rows of one class and score become one.

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
        """Return the area under each class's precision–recall curve; NaN without positives.

        Σ (Rₙ − Rₙ₋₁) Pₙ over the different scores, highest first, as in scikit-learn: a step
        has the precision at its own score, nothing is interpolated.
        """
        result = np.full(self.num_classes, np.nan)
        ends = np.searchsorted(self.class_id, np.arange(self.num_classes + 1))
        for k in range(self.num_classes):
            rows = slice(ends[k], ends[k + 1])
            gained = self.num_positive[rows]
            if gained.any():
                precision = np.cumsum(gained) / np.cumsum(self.num_images[rows])
                result[k] = (gained * precision).sum() / gained.sum()
        return result

    def curve(self, k: int) -> tuple[np.ndarray, np.ndarray]:  # (n,), (n,) float64
        """Return recall and precision of a class at each of its scores, highest first."""
        rows = slice(*np.searchsorted(self.class_id, [k, k + 1]).tolist())
        gained = np.cumsum(self.num_positive[rows])
        recall = ratio(gained, np.full(len(gained), gained[-1] if len(gained) else 0))
        return recall, gained / np.cumsum(self.num_images[rows])

    def as_dict(self) -> dict[str, float | None]:
        """Return mean_average_precision, over the classes with positives; None if none has."""
        return nan_to_none({"mean_average_precision": nan_mean(self.average_precision)})


@dataclass(frozen=True)
class BoxIoU(Metric):
    """How well one box an image, a localizer's, lies on the true one."""

    iou_sum: int = field(metadata=summed(None))  # in units of 2⁻³²
    num_hits: int = field(metadata=summed(None))  # IoU at least ½
    num_images: int = field(metadata=summed(None))

    @classmethod
    def empty(cls) -> Self:
        """Return the score of no image."""
        return cls(0, 0, 0)

    def add(
        self,
        truth_xyxy: np.ndarray,  # (N, 4)
        said_xyxy: np.ndarray,  # (N, 4)
    ) -> Self:
        """Return the score with these images in it; IoU is that of `cvbatch.geometry.boxes`.

        Raises:
            ValueError: a corner is not finite.
        """
        require_finite(truth_xyxy, "corner of a true box")
        require_finite(said_xyxy, "corner of a box")
        sums = np.zeros(2, np.int64)
        for start in range(0, len(truth_xyxy), _ROWS):
            rows = slice(start, start + _ROWS)
            own = np.diagonal(iou(truth_xyxy[rows], said_xyxy[rows]))
            sums += np.rint(own * _FIXED_POINT).astype(np.int64).sum(), (own >= 0.5).sum()
        return self.merge(type(self)(int(sums[0]), int(sums[1]), len(truth_xyxy)))

    def as_dict(self) -> dict[str, float | None]:
        """Return mean_iou and hits_50, the fraction with an IoU of ½ or more; None of nothing."""
        sums = np.array([self.iou_sum / _FIXED_POINT, self.num_hits])
        mean_iou, hits = ratio(sums, np.full(2, self.num_images))
        return nan_to_none({"mean_iou": mean_iou, "hits_50": hits})


@dataclass(frozen=True)
class Calibration(Metric):
    """Whether an answer given with a score of 0.8 is right four times in five.

    Bin b has the images whose best score is above b / B and at most (b + 1) / B.
    """

    num_bins: int
    counts: np.ndarray = field(metadata=summed(np.int64))  # (B,)
    hits: np.ndarray = field(metadata=summed(np.int64))  # (B,)
    score_sum: np.ndarray = field(metadata=summed(np.int64))  # (B,) in units of 2⁻³²

    @classmethod
    def empty(cls, num_bins: int = 15) -> Self:
        """Return the score of no image."""
        none = np.zeros(num_bins, np.int64)
        return cls(num_bins, none, none, none)

    def add(
        self,
        class_id: np.ndarray,  # (N,) the truth
        scores: np.ndarray,  # (N, C) in 0..1
    ) -> Self:
        """Return the score with these images in it; of equal scores the first is the answer.

        Raises:
            ValueError: a best score is not in 0..1.
        """
        return self.add_predictions(scores.argmax(axis=1) == class_id, scores.max(axis=1))

    def add_predictions(
        self,
        is_hit: np.ndarray,  # (N,) bool
        score: np.ndarray,  # (N,) of the answer, in 0..1
    ) -> Self:
        """Return the score with images in it of which only the best answer is known.

        Raises:
            ValueError: a score is not in 0..1.
        """
        best = score.astype(np.float64)
        is_wrong = ~((best >= 0) & (best <= 1))
        if is_wrong.any():
            raise ValueError(
                f"the best score of row {is_wrong.argmax()} is {best[is_wrong.argmax()]}: scores "
                "must be in 0..1; give the network a softmax or sigmoid at its end"
            )
        edges = np.linspace(0, 1, self.num_bins + 1)
        own = np.searchsorted(edges[1:-1], best, side="left")
        score_sum = np.zeros(self.num_bins, np.int64)
        np.add.at(score_sum, own, np.rint(best * _FIXED_POINT).astype(np.int64))
        counts = np.bincount(own, minlength=self.num_bins)
        hits = np.bincount(own[is_hit], minlength=self.num_bins)
        return self.merge(type(self)(self.num_bins, counts, hits, score_sum))

    def per_bin(self) -> dict[str, np.ndarray]:  # each (B,)
        """Return accuracy, mean score (NaN in an empty bin) and counts, for a diagram."""
        return {
            "accuracy": ratio(self.hits, self.counts),
            "score": ratio(self.score_sum / _FIXED_POINT, self.counts),
            "counts": self.counts,
        }

    def as_dict(self) -> dict[str, float | None]:
        """Return expected_calibration_error; None of nothing.

        The mean of |accuracy − score| over the bins, weighted by their images (Guo et al., On
        Calibration of Modern Neural Networks, 2017, equation 3).
        """
        gap = np.abs(self.hits - self.score_sum / _FIXED_POINT).sum()
        return nan_to_none({"expected_calibration_error": float(ratio(gap, self.counts.sum()))})
