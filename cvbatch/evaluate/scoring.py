"""What an evaluation compares (EvaluationSpec), and metric sums of some images that merge (Scores).

The merged sums do not depend on how the images were divided. This module does not import Ray.
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

MetricType = TypeVar("MetricType")
MAX_CONFUSION_CLASSES = 1000  # a larger matrix would dominate metrics.json
# These grow with the number of images, so all parts are merged in one call.
_GROWING_METRICS = (AveragePrecision, MultiLabelPrecision)


@dataclass(frozen=True)
class EvaluationSpec:
    """Columns and classes that are compared, and the options of the metrics.

    Args:
        classes: column → names of the ground-truth classes; only columns that are evaluated.
        class_of: column → (P,) int64 ground-truth class of each predicted class; −1: ignored.
        ks: k of each top-k accuracy.
        is_multi_label: an image has any number of labels.
        ignored_class: ground-truth mask class whose pixels are not counted; None: none.
        score_threshold: minimum score of predictions for precision, recall and F1.
        iou_threshold: minimum IoU of a true positive for precision, recall and F1 of boxes.
        num_replicates: R, bootstrap replicates; 0: no intervals.
        seed: of the bootstrap.
    """

    classes: dict[str, tuple[str, ...]]
    class_of: dict[str, np.ndarray]
    ks: tuple[int, ...]
    is_multi_label: bool
    ignored_class: int | None
    score_threshold: float
    iou_threshold: float
    num_replicates: int
    seed: int


@dataclass
class Scores:
    """Metric sums of some images by name, and counts of images by their condition."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)  # ids of images without predictions

    def metric(self, name: str, kind: type[MetricType]) -> MetricType:
        """Return a metric by its name. Raises TypeError if it is of another type."""
        metric = self.metrics[name]
        if not isinstance(metric, kind):
            raise TypeError(f"metric {name} is a {type(metric).__name__}, not a {kind.__name__}")
        return metric


@dataclass(frozen=True)
class ScoredRows:
    """Predictions and labels of n images in the same order, and the sums to add theirs to."""

    spec: EvaluationSpec
    predicted: pa.Table  # n rows
    truth: pa.Table  # n rows
    weights: np.ndarray  # (n, 1 + R) of each image: 1, then its count in each replicate
    sums: Scores

    def column(self, name: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray, int]:
        """Return predictions and labels of a column, and its number of ground-truth classes."""
        return self.predicted[name], self.truth[name], len(self.spec.classes[name])

    def empty_counts(self, num_classes: int) -> ClassCounts:
        """Return empty counts for all replicates."""
        return ClassCounts.empty(num_classes, self.spec.num_replicates)


def merge_scores(parts: Iterable[Scores]) -> Scores:
    """Return the scores of all images. The order of the parts does not matter."""
    total, growing = Scores(), dict[str, list[Metric]]()
    for part in parts:
        total.counts.update(part.counts)
        total.failed += part.failed
        for name, metric in part.metrics.items():
            if isinstance(metric, _GROWING_METRICS):
                growing.setdefault(name, []).append(metric)
            elif name in total.metrics:
                total.metrics[name] = total.metrics[name].merge(metric)
            else:
                total.metrics[name] = metric
    for name, (first, *rest) in growing.items():
        total.metrics[name] = first.merge(*rest)
    total.failed.sort()
    return total


def flatten_lists(column: pa.ChunkedArray) -> tuple[Any, np.ndarray]:
    """Return the M elements of a list column in order, and their image index, (M,) int64."""
    lists = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    return lists.flatten(), np.repeat(np.arange(len(lists)), lengths)


def aligned_list(table: pa.Table, column: str, image_index: np.ndarray) -> Any:  # (M,) → M elements
    """Return a list column that should have one element for each one of another list column.

    They are null without the column, and in images where the numbers of elements differ.

    Args:
        image_index: of the elements of the other column, as `flatten_lists` returns it.
    """
    if column not in table.column_names:
        return pa.nulls(len(image_index))
    stored, stored_index = flatten_lists(table[column])
    counts, stored_counts = (
        np.bincount(index, minlength=table.num_rows) for index in (image_index, stored_index)
    )
    is_complete = counts == stored_counts
    position = np.zeros(len(image_index), np.int64)
    position[is_complete[image_index]] = np.flatnonzero(is_complete[stored_index])
    return stored.take(pa.array(position, mask=~is_complete[image_index]))


def struct_values(structs: Any, name: str) -> np.ndarray:  # M structs → (M,)
    """Return one field of structs."""
    values: np.ndarray = pc.struct_field(structs, name).to_numpy(zero_copy_only=False)
    return values
