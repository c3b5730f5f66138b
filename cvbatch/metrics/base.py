"""Scores are computed where the answers are and merged later; here is what it takes to merge.

Every score is a frozen bundle of integer sums, or of records in an order of their own. Ratios are
formed last: whatever way the images were split, the result is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np


def summed(dtype: type[np.generic] | None) -> dict[str, Any]:
    """Return the metadata of a field that grows with the images: an array, or None: an int."""
    return {"dtype": dtype}


@dataclass(frozen=True)
class Metric:
    """A score: fields with the metadata of `summed` are summed, all others are its settings.

    `merge` is associative and commutative, and an empty score of the same settings changes
    nothing. Scores pass between processes as themselves or as `to_state`.
    """

    def merge(self, *others: Self) -> Self:
        """Return the score of all the images that these scores saw.

        Raises:
            ValueError: the settings differ.
        """
        self.require_same_settings(others)
        names = [item.name for item in fields(self) if "dtype" in item.metadata]
        parts = (self, *others)
        return replace(self, **{name: sum(getattr(part, name) for part in parts) for name in names})

    def require_same_settings(self, others: Sequence[Self]) -> None:
        """Raise ValueError where a score cannot be merged with this one."""
        for name in [item.name for item in fields(self) if "dtype" not in item.metadata]:
            for other in others:
                mine, theirs = getattr(self, name), getattr(other, name)
                if mine != theirs:
                    raise ValueError(
                        f"{name} is {mine} here and {theirs} there: only scores of the same "
                        "settings merge; compute both with the same"
                    )

    def to_state(self) -> dict[str, Any]:
        """Return the fields as numbers, strings and lists of them, fit for JSON or columns."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Return the score that `to_state` told, also after JSON made lists of its tuples."""
        values = {}
        for item in fields(cls):
            value, dtype = state[item.name], item.metadata.get("dtype")
            if dtype is not None:
                value = np.array(value, dtype)
            values[item.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:  # (...), (...) → (...) float64
    """Return above / below, NaN where below is 0."""
    result: np.ndarray = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=result, where=np.asarray(below) > 0)
    return result


def nan_mean(values: np.ndarray) -> float:  # (...)
    """Return the mean of the values that are not NaN; NaN if none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def nan_to_none(values: dict[str, Any]) -> dict[str, float | None]:
    """Return the values as floats fit for JSON: None in place of NaN."""
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}


def require_finite(values: np.ndarray, what: str) -> None:  # (N, ...)
    """Raise ValueError where a value is NaN or infinite."""
    is_wrong = ~np.isfinite(values)
    if is_wrong.any():
        at = np.argwhere(is_wrong)[0]
        raise ValueError(
            f"the {what} in row {at[0]} is {values[tuple(at)]}: it must be finite; look for an "
            "overflow in the network or its precision"
        )


def require_class_ids(class_id: np.ndarray, num_classes: int) -> None:  # (N,)
    """Raise ValueError where a class id is not in 0..num_classes−1."""
    is_wrong = (class_id < 0) | (class_id >= num_classes)
    if is_wrong.any():
        raise ValueError(
            f"class id {class_id[is_wrong.argmax()]} is not one of {num_classes} classes: ids run "
            f"from 0 to {num_classes - 1}; give the right class table, or leave that label out"
        )
