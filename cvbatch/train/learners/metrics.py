"""Validation metrics of a task: several mergeable metrics of the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.base import Metric
from cvbatch.metrics.classification import BoxIoU, Confusion, MultiLabelPrecision, TopK

_KINDS: dict[str, type[Metric]] = {
    "average_precision": AveragePrecision,
    "box_iou": BoxIoU,
    "confusion": Confusion,
    "multi_label_precision": MultiLabelPrecision,
    "top_k": TopK,
}


@dataclass(frozen=True)
class MetricSet:
    """Metrics of the same images by the name of their kind, merged and sent together."""

    metrics: Mapping[str, Metric]

    @classmethod
    def of(cls, *metrics: Metric) -> MetricSet:
        """Return the set of these metrics, at most one of each kind."""
        names = {kind: name for name, kind in _KINDS.items()}
        return cls({names[type(metric)]: metric for metric in metrics})

    def merge(self, *others: MetricSet) -> MetricSet:
        """Return the metrics over the images of all these sets.

        Raises:
            ValueError: the settings of a metric differ.
        """
        return MetricSet(
            {
                name: metric.merge(*(other.metrics[name] for other in others))
                for name, metric in self.metrics.items()
            }
        )

    def to_state(self) -> dict[str, Any]:
        """Return the sums as numbers, strings and lists of them, for JSON."""
        return {name: metric.to_state() for name, metric in self.metrics.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> MetricSet:
        """Return the set of a `to_state`; JSON may have converted its tuples to lists."""
        return cls({name: _KINDS[name].from_state(values) for name, values in state.items()})

    def values(self, name: str) -> dict[str, float]:
        """Return the values of one metric; NaN where undefined."""
        values = self.metrics[name].as_dict()  # type: ignore[attr-defined]
        return {key: float("nan") if value is None else value for key, value in values.items()}

    def per_class(self, name: str, *keys: str) -> dict[str, np.ndarray]:  # each (C,) float64
        """Return some values of each class of one metric; NaN where undefined."""
        values = self.metrics[name].per_class()  # type: ignore[attr-defined]
        return {key: values[key] for key in keys}
