"""Metrics per epoch as JSON, Parquet, TensorBoard events and lines of text.

A row is a flat dict of numbers and strings for one epoch. Rows of a run may have different keys.
Values of single classes have keys such as recall/cat.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]

# The columns of every row, first and in this order; the loss terms and the metrics follow.
LEADING = (
    "epoch", "step", "phase", "seconds", "waited_seconds", "learning_rate", "loss", "val_loss",
)  # fmt: skip
CLASS_SEPARATOR = "/"  # between the name of a value and the class
_LOWEST = 3  # classes in the line of an epoch


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the keys of all rows: `LEADING` first, then the others in order of appearance.

    Values of single classes are left out.
    """
    keys = [key for key in _keys(rows) if CLASS_SEPARATOR not in key]
    return [key for key in LEADING if key in keys] + [key for key in keys if key not in LEADING]


def class_values(row: Row) -> dict[str, dict[str, float]]:
    """Return the values of single classes of a row: name → class → value."""
    values: dict[str, dict[str, float]] = {}
    for key, value in row.items():
        name, separator, label = key.partition(CLASS_SEPARATOR)
        if separator:
            values.setdefault(name, {})[label] = _number(value)
    return values


def validation_values(row: Row) -> dict[str, float]:
    """Return loss, metrics and values of classes on the validation images, named without val_."""
    return {
        key.removeprefix("val_"): value
        for key, value in row.items()
        if key == "val_loss" or (key not in LEADING and not key.startswith("loss_"))
    }


def _keys(rows: Sequence[Row]) -> dict[str, None]:
    return dict.fromkeys(key for row in rows for key in row)


def _all_columns_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys([*columns_of(rows), *_keys(rows)]))


def to_json(rows: Sequence[Row]) -> bytes:
    """Return the rows as a JSON array of objects; NaN and infinity become null."""
    values = [{key: _finite_or_none(row.get(key)) for key in _all_columns_of(rows)} for row in rows]
    return json.dumps(values, indent=1).encode()


def to_parquet(rows: Sequence[Row]) -> bytes:
    """Return the rows as a Parquet file: int64, double and string columns, null if missing."""
    columns = {key: pa.array([row.get(key) for row in rows]) for key in _all_columns_of(rows)}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def write_tensorboard(rows: Sequence[Row], folder: Path) -> None:
    """Write every number of the rows as a TensorBoard scalar over the steps."""
    from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

    with SummaryWriter(str(folder)) as writer:
        for row in rows:
            for key in _all_columns_of([row]):
                value = _number(row[key])
                if key not in ("epoch", "step") and math.isfinite(value):
                    writer.add_scalar(key, value, row["step"])


def format_row(row: Row, num_epochs: int) -> str:
    """Return an epoch's losses, metrics and lowest values of a class as a line of text.

    Args:
        row: of the epoch.
        num_epochs: of all phases.
    """
    fields = [f"epoch {row['epoch']}/{num_epochs}"]
    names = [key for key in columns_of([row]) if not key.startswith(("loss_", "val_loss_"))]
    fields += [
        f"{key} {row[key]:.4g}"
        for key in (*names[names.index("loss") :], "learning_rate")
        if math.isfinite(_number(row[key]))
    ]
    for name, values in list(class_values(row).items())[:1]:
        finite = sorted((v, label) for label, v in values.items() if math.isfinite(v))
        lowest = ", ".join(f"{label} {value:.3g}" for value, label in finite[:_LOWEST])
        fields += [f"lowest {name}: {lowest}"] if lowest else []
    return " · ".join([*fields, f"{row['seconds']:.0f} s"])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
