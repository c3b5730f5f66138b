"""Table of metrics (metrics.parquet, metrics.json): value, 95 % interval and count of each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.metrics.base import Metric
from cvbatch.metrics.classification import Confusion
from cvbatch.metrics.counts import ClassCounts, percentile_interval

Replicates = dict[int, dict[str, np.ndarray]]  # number of the replicate → metric → (C,)
_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("class", pa.string()),  # null: over all classes
        ("metric", pa.string()),
        ("value", pa.float64()),  # null: undefined
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("count", pa.int64()),
    ]
)
RATIOS = ("precision", "recall", "f1")
AVERAGES = [f"{average}_{metric}" for average in ("macro", "weighted") for metric in RATIOS]
MICRO = [f"micro_{metric}" for metric in RATIOS]


@dataclass(frozen=True)
class MetricRow:
    """One metric with its 95 % bootstrap interval."""

    task: str
    class_name: str | None  # None: over all classes
    metric: str
    value: float | None  # None: undefined
    low: float | None  # None: no interval
    high: float | None
    count: int  # images, objects or pixels behind the value


def metric_row(
    task: str, class_name: str | None, metric: str, value: float | None, count: int
) -> MetricRow:
    """Return a row without an interval; `value` is None or NaN if undefined."""
    defined = None if value is None or math.isnan(value) else float(value)
    return MetricRow(task, class_name, metric, defined, None, None, count)


def with_interval(row: MetricRow, values: np.ndarray) -> MetricRow:  # (1 + R,)
    """Return the row with its interval; `values`: of the images, then of each replicate."""
    ends = None if row.value is None else percentile_interval(values)
    return row if ends is None else replace(row, low=ends[0], high=ends[1])


def bootstrapped_row(
    task: str,
    class_name: str | None,
    metric: str,
    values: np.ndarray,  # (1 + R,)
    count: int,
) -> MetricRow:
    """Return a row with its interval.

    Args:
        task: task of the metric.
        class_name: None: over all classes.
        metric: name of the metric.
        values: of the images, then of each replicate; NaN: undefined.
        count: images, objects or pixels behind the value.
    """
    return with_interval(metric_row(task, class_name, metric, float(values[0]), count), values)


def overall_rows(
    task: str, counts: ClassCounts, metrics: Sequence[str], num_items: int
) -> Iterator[MetricRow]:
    """Yield metrics over all classes, with their intervals."""
    overall = counts.overall()
    for metric in metrics:
        yield bootstrapped_row(task, None, metric, overall[metric], num_items)


def class_rows(
    task: str, counts: ClassCounts, name: str, k: int, metrics: Sequence[str]
) -> Iterator[MetricRow]:
    """Yield metrics of class `k`, with their intervals."""
    per_class = counts.per_class()
    for metric in metrics:
        values = per_class[metric][:, k]
        yield bootstrapped_row(task, name, metric, values, int(counts.support[0, k]))


def confusion_details(confusion: Metric | None, names: Sequence[str]) -> dict[str, Any]:
    """Return a confusion matrix as details of metrics.json; {} if there is none.

    Rows are ground-truth classes; the last column counts images or pixels without a prediction.
    """
    if not isinstance(confusion, Confusion):
        return {}
    return {"confusion": {"classes": list(names), "counts": confusion.counts.tolist()}}


def to_parquet(rows: Sequence[MetricRow]) -> pa.Buffer:
    """Return the metrics as a Parquet file, one a row."""
    names = [item if item != "class" else "class_name" for item in _SCHEMA.names]
    columns = [[getattr(row, name) for row in rows] for name in names]
    arrays = [pa.array(c, kind) for c, kind in zip(columns, _SCHEMA.types, strict=True)]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays, schema=_SCHEMA), buffer, store_schema=False)
    return buffer.getvalue()


def to_json(
    rows: Sequence[MetricRow],
    header: dict[str, Any],
    details: dict[str, dict[str, Any]],
) -> bytes:
    """Return the metrics by task and class.

    Args:
        rows: metrics of all tasks.
        header: what precedes them: counts of images, sources.
        details: further values, by task.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for row in rows:
        task = tasks.setdefault(row.task, {"overall": {}, "classes": {}})
        values = asdict(row)
        stored = {key: values[key] for key in ("value", "low", "high", "count")}
        if row.class_name is None:
            task["overall"][row.metric] = stored
        else:
            task["classes"].setdefault(row.class_name, {})[row.metric] = stored
    for name, more in details.items():
        tasks[name] |= more
    return json.dumps({**header, "tasks": tasks}, indent=1, ensure_ascii=False).encode()
