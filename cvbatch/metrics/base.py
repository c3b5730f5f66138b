"""Mergeable metric sums: base class, conversion to and from JSON, checks.

Each worker computes metrics of its images; they are merged later. A metric stores integer sums, or
sorted records, and forms ratios last. So the result does not depend, not even in the last bit, on
how the images were split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np


def summed(dtype: type[np.generic] | None) -> dict[str, Any]:
    """Return the metadata of a field that `Metric.merge` sums.

    Args:
        dtype: of the array in the field; None for an int.
    """
    return {"dtype": dtype}


@dataclass(frozen=True)
class Metric:
    """Base class of metrics: fields with the metadata of `summed` are sums, all others settings.

    `merge` is associative and commutative; merging an empty metric changes nothing. Metrics are
    sent between processes by pickle or by `to_state`.
    """

    def merge(self, *others: Self) -> Self:
        """Return the metric over the images of all these metrics.

        Raises:
            ValueError: the settings differ.
        """
        self.require_same_settings(others)
        names = [item.name for item in fields(self) if "dtype" in item.metadata]
        parts = (self, *others)
        return replace(self, **{name: sum(getattr(part, name) for part in parts) for name in names})

    def require_same_settings(self, others: Sequence[Self]) -> None:
        """Raise ValueError if the settings of a metric differ from those of this one."""
        for name in [item.name for item in fields(self) if "dtype" not in item.metadata]:
            for other in others:
                value, other_value = getattr(self, name), getattr(other, name)
                if value != other_value:
                    raise ValueError(
                        f"{name} is {value} and {other_value}: only metrics with equal settings "
                        "can be merged; compute both with the same settings"
                    )

    def to_state(self) -> dict[str, Any]:
        """Return the fields as numbers, strings and lists of them, for JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Return the metric of a `to_state`; JSON may have converted its tuples to lists."""
        values = {}
        for item in fields(cls):
            value, dtype = state[item.name], item.metadata.get("dtype")
            if dtype is not None:
                value = np.array(value, dtype)
            values[item.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:  # (...) → (...) float64
    """Return numerator / denominator, NaN where the denominator is 0."""
    result: np.ndarray = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) > 0)
    return result


def class_ratios(
    hits: np.ndarray,  # (..., C)
    support: np.ndarray,  # (..., C)
    predicted: np.ndarray,  # (..., C)
) -> dict[str, np.ndarray]:  # each (..., C) float64
    """Return precision, recall, f1 and iou of each class, NaN where undefined.

    Args:
        hits: true positives.
        support: how often each class is the true class.
        predicted: how often each class is predicted.
    """
    return {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "f1": ratio(2 * hits, support + predicted),
        "iou": ratio(hits, support + predicted - hits),
    }


def nan_mean(values: np.ndarray) -> float:  # (...)
    """Return the mean of the values that are not NaN; NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def nan_to_none(values: dict[str, Any]) -> dict[str, float | None]:
    """Return the values as floats for JSON, with None in place of NaN."""
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}


def require_finite(values: np.ndarray, label: str) -> None:  # (N, ...)
    """Raise ValueError if a value is NaN or infinite; `label` names the values."""
    is_invalid = ~np.isfinite(values)
    if is_invalid.any():
        index = np.argwhere(is_invalid)[0]
        raise ValueError(
            f"the {label} in row {index[0]} is {values[tuple(index)]}: it must be finite; check "
            "the network and its precision for an overflow"
        )


def rows_of_class(class_id: np.ndarray, k: int) -> slice:  # (M,) ascending
    """Return the rows of a class."""
    # In the dtype of the column: for any other, NumPy copies the column.
    ends = np.array([k, k + 1], class_id.dtype)
    return slice(*np.searchsorted(class_id, ends).tolist())


def require_class_ids(class_id: np.ndarray, num_classes: int) -> None:  # (N,)
    """Raise ValueError if a class id is not in 0..num_classes−1."""
    is_invalid = (class_id < 0) | (class_id >= num_classes)
    if is_invalid.any():
        raise ValueError(
            f"class id {class_id[is_invalid.argmax()]} is not one of {num_classes} classes: ids "
            f"must be from 0 to {num_classes - 1}; use the right class table or remove that label"
        )
