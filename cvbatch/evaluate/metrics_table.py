"""Metrics of an evaluation as a table: one figure a row, with its interval and its count."""

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

Replicates = dict[int, dict[str, np.ndarray]]  # number → metric → (C,)
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
AVERAGES = [f"{how}_{what}" for how in ("macro", "weighted") for what in RATIOS]
MICRO = [f"micro_{what}" for what in RATIOS]


@dataclass(frozen=True)
class MetricRow:
    """One number, and how sure it is."""

    task: str
    class_name: str | None  # None: over all classes
    metric: str
    value: float | None  # None: undefined
    low: float | None  # the 95 % interval; None: there is none
    high: float | None
    count: int  # images, objects or pixels it is about


def metric_row(
    task: str, class_name: str | None, metric: str, value: float | None, count: int
) -> MetricRow:
    """Return a figure without an interval; value: NaN is undefined, as None is."""
    known = None if value is None or math.isnan(value) else float(value)
    return MetricRow(task, class_name, metric, known, None, None, count)


def with_interval(figure: MetricRow, values: np.ndarray) -> MetricRow:  # (1 + R,)
    """Return a figure with its interval; values: of the images, then of each replicate."""
    ends = None if figure.value is None else percentile_interval(values)
    return figure if ends is None else replace(figure, low=ends[0], high=ends[1])


def bootstrapped_row(
    task: str,
    class_name: str | None,
    metric: str,
    values: np.ndarray,  # (1 + R,)
    count: int,
) -> MetricRow:
    """Return a figure with its interval.

    Args:
        task: whose metric it is.
        class_name: None: over all classes.
        metric: its name.
        values: of the images, then of each replicate of them; NaN: undefined.
        count: images, objects or pixels that it is about.
    """
    return with_interval(metric_row(task, class_name, metric, float(values[0]), count), values)


def overall_rows(
    task: str, tally: ClassCounts, metrics: Sequence[str], count: int
) -> Iterator[MetricRow]:
    """Yield metrics of a tally over all classes, with their intervals."""
    overall = tally.overall()
    for metric in metrics:
        yield bootstrapped_row(task, None, metric, overall[metric], count)


def class_rows(
    task: str, tally: ClassCounts, name: str, k: int, metrics: Sequence[str]
) -> Iterator[MetricRow]:
    """Yield metrics of class `k` of a tally, with their intervals."""
    figures = tally.per_class()
    for metric in metrics:
        yield bootstrapped_row(task, name, metric, figures[metric][:, k], int(tally.support[0, k]))


def confusion_details(score: Metric | None, names: Sequence[str]) -> dict[str, Any]:
    """Return the counts of a confusion as details of metrics.json; {} where it was not scored."""
    if not isinstance(score, Confusion):
        return {}
    # rows: true class; last column: no class predicted
    return {"confusion": {"classes": list(names), "counts": score.counts.tolist()}}


def to_parquet(figures: Sequence[MetricRow]) -> pa.Buffer:
    """Return the figures as a Parquet file, a figure a row."""
    names = [item if item != "class" else "class_name" for item in _SCHEMA.names]
    columns = [[getattr(figure, name) for figure in figures] for name in names]
    arrays = [pa.array(c, kind) for c, kind in zip(columns, _SCHEMA.types, strict=True)]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays, schema=_SCHEMA), buffer, store_schema=False)
    return buffer.getvalue()


def to_json(
    figures: Sequence[MetricRow],
    about: dict[str, Any],
    details: dict[str, dict[str, Any]],
) -> bytes:
    """Return the figures by task and class.

    Args:
        figures: of all tasks.
        about: what precedes them: the images, where they come from.
        details: what else is known of a task, by its name.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for figure in figures:
        task = tasks.setdefault(figure.task, {"overall": {}, "classes": {}})
        row = asdict(figure)
        stored = {key: row[key] for key in ("value", "low", "high", "count")}
        if figure.class_name is None:
            task["overall"][figure.metric] = stored
        else:
            task["classes"].setdefault(figure.class_name, {})[figure.metric] = stored
    for name, more in details.items():
        tasks[name] |= more
    return json.dumps({**about, "tasks": tasks}, indent=1, ensure_ascii=False).encode()
