"""Precision, recall and F1 of one class at every minimum score."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from cvbatch.metrics.base import class_ratios


class ScoreCurve(NamedTuple):
    """Counts of a class at n minimum scores: predictions of that score or more."""

    score: np.ndarray  # (n,) float64
    hits: np.ndarray  # (n,) int64 true positives
    predicted: np.ndarray  # (n,) int64
    support: int  # objects or images of the class

    @classmethod
    def of(
        cls, score: np.ndarray, hits: np.ndarray, predicted: np.ndarray, support: int
    ) -> Self:  # (m,), (m,), (m,)
        """Return the counts at every distinct score, the highest first.

        Args:
            score: of predictions or of groups of them, highest first.
            hits: true positives of each.
            predicted: predictions of each.
            support: objects or images of the class.
        """
        last = np.flatnonzero(np.append(score[1:] != score[:-1], True)[: len(score)])
        return cls(score[last], np.cumsum(hits)[last], np.cumsum(predicted)[last], support)

    def at(self, thresholds: np.ndarray) -> Self:  # (m,)
        """Return the counts at other minimum scores, in any order; `self.score` is descending."""
        position = np.searchsorted(-self.score, -thresholds, side="right")
        hits, predicted = (np.append(0, n)[position] for n in (self.hits, self.predicted))
        return self._replace(score=thresholds, hits=hits, predicted=predicted)

    def ratios(self) -> dict[str, np.ndarray]:  # each (n,) float64
        """Return precision, recall and f1 at each score; NaN where undefined."""
        support = np.full(len(self.score), self.support)
        return class_ratios(self.hits, support, self.predicted)

    def best(self) -> tuple[float, float] | None:
        """Return the score with the largest F1, of equals the highest, and that F1.

        None if the class has no objects or no predictions.
        """
        if not self.support or not len(self.score):
            return None
        f1 = self.ratios()["f1"]
        index = int(np.argmax(f1))
        return float(self.score[index]), float(f1[index])
