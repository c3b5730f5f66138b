"""True positives, labels and predictions per class, for precision, recall and F1.

They are also counted for bootstrap replicates of the images, in which each image counts as often as
its weight. Weights depend only on the seed and the name of the image, so replicates are the same
however the images are split.

Source: B. Efron, Bootstrap Methods, 1979; Poisson weights for split data: Chamandy et al.,
Estimating Uncertainty for Massive Data Streams, 2012.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import exp, factorial
from typing import Self

import numpy as np

from cvbatch.metrics.base import Metric, class_ratios, ratio, summed

# P(X ≤ k) of the Poisson distribution with mean 1; above 17 it is 1 in 53 bits.
_POISSON_CDF = np.cumsum([exp(-1) / factorial(k) for k in range(18)])
_INCREMENT, _FACTOR_1, _FACTOR_2 = (  # of SplitMix64
    np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
INTERVAL_PERCENTILES = (2.5, 97.5)


def bootstrap_weights(
    names: Sequence[str],  # N
    num_replicates: int,
    seed: int,
) -> np.ndarray:  # (N, 1 + R) int64
    """Return how often each image counts: once in column 0, Poisson distributed in all others.

    Random numbers are SplitMix64 of the BLAKE2b hash of the name, keyed with the seed.

    Args:
        names: unique names of the images.
        num_replicates: number R of bootstrap replicates.
        seed: other seeds give other weights.

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014.
    """
    weights = np.ones((len(names), 1 + num_replicates), np.int64)
    if not num_replicates or not names:
        return weights
    key = seed.to_bytes(8, "little")
    hashed = b"".join(
        hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in names
    )
    start = np.frombuffer(hashed, "<u8")[:, None]
    bits = start + _INCREMENT * np.arange(1, num_replicates + 1, dtype=np.uint64)
    for shift, factor in ((30, _FACTOR_1), (27, _FACTOR_2)):
        bits = (bits ^ (bits >> np.uint64(shift))) * factor
    bits ^= bits >> np.uint64(31)
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    weights[:, 1:] = np.searchsorted(_POISSON_CDF, uniform, "right")
    return weights


@dataclass(frozen=True)
class ClassCounts(Metric):
    """Counts per class: row 0 over the images, every other row over one bootstrap replicate."""

    num_classes: int
    num_replicates: int
    hits: np.ndarray = field(metadata=summed(np.int64))  # (1 + R, C) true positives
    support: np.ndarray = field(metadata=summed(np.int64))  # (1 + R, C) true classes
    predicted: np.ndarray = field(metadata=summed(np.int64))  # (1 + R, C)

    @classmethod
    def empty(cls, num_classes: int, num_replicates: int = 0) -> Self:
        """Return counts of 0."""
        none = np.zeros((1 + num_replicates, num_classes), np.int64)
        return cls(num_classes, num_replicates, none, none, none)

    def add(
        self,
        hits: np.ndarray | None = None,  # (1 + R, C)
        support: np.ndarray | None = None,  # (1 + R, C)
        predicted: np.ndarray | None = None,  # (1 + R, C)
    ) -> Self:
        """Return the counts with those of `count_by_class` added; None: nothing to add."""
        none = np.zeros_like(self.hits)
        return replace(
            self,
            hits=self.hits + (none if hits is None else hits),
            support=self.support + (none if support is None else support),
            predicted=self.predicted + (none if predicted is None else predicted),
        )

    def per_class(self) -> dict[str, np.ndarray]:  # each (1 + R, C) float64
        """Return precision, recall, f1 and iou of each class, NaN where undefined."""
        return class_ratios(self.hits, self.support, self.predicted)

    def overall(self) -> dict[str, np.ndarray]:  # each (1 + R,) float64
        """Return accuracy, mean_iou, and micro, macro and weighted averages of `per_class`.

        Macro: mean over the classes that are true or predicted classes; weighted: by support;
        micro: of the summed counts. As in `cvbatch.metrics.classification.Confusion`, a ratio with
        a denominator of 0 counts as 0.
        """
        occurs = self.support + self.predicted > 0
        share = ratio(self.support, np.broadcast_to(_total(self.support), self.support.shape))
        counts = (_total(part) for part in (self.hits, self.support, self.predicted))
        total = ClassCounts(1, self.num_replicates, *counts)
        result = {}
        for name, values in self.per_class().items():
            defined = np.nan_to_num(values)
            result[f"macro_{name}"] = ratio((defined * occurs).sum(axis=1), occurs.sum(axis=1))
            result[f"weighted_{name}"] = (share * defined).sum(axis=1)
            result[f"micro_{name}"] = total.per_class()[name][:, 0]
        result["accuracy"] = result["micro_recall"]
        result["mean_iou"] = result["macro_iou"]
        return result


def _total(counts: np.ndarray) -> np.ndarray:  # (1 + R, C) → (1 + R, 1)
    total: np.ndarray = counts.sum(axis=1, keepdims=True)
    return total


def count_by_class(
    weights: np.ndarray,  # (N, 1 + R)
    image_index: np.ndarray,  # (M,)
    class_id: np.ndarray,  # (M,)
    num_classes: int,
    amount: np.ndarray | None = None,  # (M,)
) -> np.ndarray:  # (1 + R, C) int64
    """Return the weighted number of events of each class.

    Args:
        weights: how often each image counts, from `bootstrap_weights`.
        image_index: image of each event.
        class_id: class of each event.
        num_classes: number C of classes.
        amount: count of each event, such as pixels. None: 1.
    """
    counts = np.zeros((weights.shape[1], num_classes), np.int64)
    if not len(class_id):
        return counts
    order = np.argsort(class_id, kind="stable")
    classes, first = np.unique(class_id[order], return_index=True)
    rows = weights[image_index[order]]
    if amount is not None:
        rows = rows * amount[order, None]
    counts[:, classes] = np.add.reduceat(rows, first).T
    return counts


def percentile_interval(
    values: np.ndarray,
) -> tuple[float, float] | None:  # (1 + R, ...)
    """Return the 95 % percentile interval of a metric over its replicates; None without any."""
    replicates = values[1:][~np.isnan(values[1:])]
    if not replicates.size:
        return None
    low, high = np.percentile(replicates, INTERVAL_PERCENTILES)
    return float(low), float(high)
