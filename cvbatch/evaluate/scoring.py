"""What is scored and how, and scores of pieces of the images as sums that merge.

How the images were cut into pieces does not change the merged scores. Nothing here imports Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.base import Metric
from cvbatch.metrics.classification import MultiLabelPrecision
from cvbatch.metrics.counts import ClassCounts

ScoreType = TypeVar("ScoreType")
_RECORDS = (AveragePrecision, MultiLabelPrecision)  # grow with the images; merged once


@dataclass(frozen=True)
class EvaluationSpec:
    """What is scored, and how."""

    classes: dict[str, tuple[str, ...]]  # column → the true classes; the columns that are scored
    class_of: dict[str, np.ndarray]  # column → (P,) true class of each predicted one; −1: none
    ks: tuple[int, ...]
    is_multi_label: bool
    ignored: int | None  # class of the true masks
    score_threshold: float
    iou_threshold: float
    num_replicates: int
    seed: int


@dataclass
class Scores:
    """The scores of some images by name, and counts of images by what is odd with them."""

    scores: dict[str, Metric] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)  # ids of images without predictions

    def score(self, name: str, kind: type[ScoreType]) -> ScoreType:
        """Return a score by its name. Raises TypeError where it is of another kind."""
        score = self.scores[name]
        if not isinstance(score, kind):
            raise TypeError(f"score {name} is a {type(score).__name__}, not a {kind.__name__}")
        return score


@dataclass(frozen=True)
class ScoredRows:
    """Predicted rows and their labels in the same order, and the scores that they are added to."""

    order: EvaluationSpec
    predicted: pa.Table  # n rows
    truth: pa.Table  # n rows
    weights: np.ndarray  # (n, 1 + R)
    scored: Scores

    def of(self, column: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray, int]:
        """Return predictions and labels of a column, and its number of true classes."""
        return self.predicted[column], self.truth[column], len(self.order.classes[column])

    def tally(self, num_classes: int) -> ClassCounts:
        """Return empty counts for all replicates."""
        return ClassCounts.empty(num_classes, self.order.num_replicates)


def merge_scores(parts: Iterable[Scores]) -> Scores:
    """Return the scores of all the images; parts in any order give the same."""
    total, records = Scores(), dict[str, list[Metric]]()
    for part in parts:
        total.counts.update(part.counts)
        total.failed += part.failed
        for name, score in part.scores.items():
            if isinstance(score, _RECORDS):
                records.setdefault(name, []).append(score)
            elif name in total.scores:
                total.scores[name] = total.scores[name].merge(score)
            else:
                total.scores[name] = score
    for name, (first, *others) in records.items():
        total.scores[name] = first.merge(*others)
    total.failed.sort()
    return total


def flatten_lists(column: pa.ChunkedArray) -> tuple[Any, np.ndarray]:  # M structs, (M,) image index
    """Return the elements of a list column, one after the other."""
    lists = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    return lists.flatten(), np.repeat(np.arange(len(lists)), lengths)


def struct_values(structs: Any, name: str) -> np.ndarray:  # M structs → (M,)
    """Return one field of structs."""
    values: np.ndarray = pc.struct_field(structs, name).to_numpy(zero_copy_only=False)
    return values
