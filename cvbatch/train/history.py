"""Metrics per epoch as JSON, Parquet, TensorBoard events and lines of text.

A row is a flat dict of numbers and strings for one epoch. Rows of a run may have different keys.
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
LEADING = ("epoch", "step", "phase", "seconds", "waited_seconds", "learning_rate", "loss")
_NOT_IN_LINE = {"epoch", "step", "phase", "seconds", "waited_seconds"}


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the keys of all rows: `LEADING` first, then the others in order of appearance."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in LEADING if key in keys] + [key for key in keys if key not in LEADING]


def to_json(rows: Sequence[Row]) -> bytes:
    """Return the rows as a JSON array of objects; NaN and infinity become null."""
    values = [{key: _finite_or_none(row.get(key)) for key in columns_of(rows)} for row in rows]
    return json.dumps(values, indent=1).encode()


def to_parquet(rows: Sequence[Row]) -> bytes:
    """Return the rows as a Parquet file: int64, double and string columns, null if missing."""
    columns = {key: pa.array([row.get(key) for row in rows]) for key in columns_of(rows)}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def write_tensorboard(rows: Sequence[Row], folder: Path) -> None:
    """Write every number of the rows as a TensorBoard scalar over the steps."""
    from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

    with SummaryWriter(str(folder)) as writer:
        for row in rows:
            for key in columns_of([row]):
                value = _number(row[key])
                if key not in ("epoch", "step") and math.isfinite(value):
                    writer.add_scalar(key, value, row["step"])


def format_row(row: Row) -> str:
    """Return an epoch's metrics as a line of text."""
    fields = [f"epoch {row['epoch']}", f"step {row['step']}", f"{row['seconds']:.0f} s"]
    fields += [
        f"{key} {row[key]:.4g}"
        for key in columns_of([row])
        if key not in _NOT_IN_LINE and math.isfinite(_number(row[key]))
    ]
    return " · ".join(fields)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
