"""Report sections of a training: curves, metrics, epochs, job file."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

import pyarrow as pa

from cvbatch.core.errors import NotFoundError, SourceError
from cvbatch.core.redaction import redact
from cvbatch.plots.figure import encode
from cvbatch.plots.learning_curves import NOT_DRAWN, draw_learning_curves
from cvbatch.report import charts
from cvbatch.report.evaluation_page import read_json
from cvbatch.report.html import (
    Section,
    code_block,
    format_count,
    format_duration,
    metric_tiles,
    paragraph,
    table,
)
from cvbatch.storage import store
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage
from cvbatch.train.history import columns_of

STATE = "_cvbatch/training.json"
_MAX_EPOCHS = 1000  # rows of the table
_MAX_TEXT = 100_000


@dataclass(frozen=True)
class Training:
    """State, history, metrics and job file in the sink of a training."""

    uri: str
    state: dict[str, Any]
    history: list[dict[str, Any]]  # one row per epoch
    metrics: dict[str, dict[str, Any]]  # by split; {} if the training is not complete
    config: str

    @property
    def done(self) -> dict[str, Any]:
        """Return the summary of the completed run; {} if the training is not complete."""
        return self.state.get("done") or {}


def load(storage: Storage, uri: str) -> Training:
    """Read the state, history and metrics of a training.

    Raises:
        SourceError: a file is damaged.
    """
    uri = store.absolute(uri)
    try:
        config = storage.read_bytes(store.join(uri, "config.yaml")).decode("utf-8", "replace")
    except NotFoundError:
        config = ""
    return Training(
        uri,
        read_json(storage, store.join(uri, STATE)) or {},
        _history(storage, store.join(uri, "history.parquet")),
        _splits(read_json(storage, store.join(uri, "metrics.json")) or {}),
        config,
    )


def _splits(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {split: values for split, values in metrics.items() if isinstance(values, dict)}


def _history(storage: Storage, uri: str) -> list[dict[str, Any]]:
    try:
        with storage.open_input(uri) as file:
            rows: list[dict[str, Any]] = ParquetFile(file).read().to_pylist()
    except NotFoundError:
        return []
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(
            f"{uri} cannot be read as Parquet ({str(error)[:200]}); train again"
        ) from None
    return rows


def sections(training: Training) -> list[Section]:
    """Return summary, curves, a table of the epochs, metrics of the best network, and job file."""
    result = [Section("counts", "Summary", _summary(training))]
    if training.history:
        result.append(Section("curves", "Curves", [_curves(training)]))
        result.append(Section("epochs", "Epochs", [_epochs(training)]))
    if training.metrics:
        result.append(Section("scores", "Metrics", [_metrics(training)]))
    if training.config:
        text = redact(training.config[:_MAX_TEXT])
        result.append(Section("job", "Job file", [code_block(text, "Resolved job file")]))
    return result


def _summary(training: Training) -> list[Element]:
    history, done = training.history, training.done
    seconds = sum(float(row.get("seconds") or 0) for row in history)
    waited = sum(float(row.get("waited_seconds") or 0) for row in history)
    steps = max((int(row["step"]) for row in history if row.get("step") is not None), default=0)
    tiles = [
        ("Epochs", format_count(len(history)), f"{steps:,} steps"),
        ("Best epoch", str(done.get("best_epoch") or "–"), ""),
        (
            "Time",
            format_duration(seconds),
            f"of which {format_duration(waited)} waiting for images",
        ),
    ]
    for split, number in (done.get("images") or {}).items():
        tiles.append((f"Images: {split}", format_count(int(number)), ""))
    for split, values in training.metrics.items():
        for metric, value in list(values.items())[:1]:
            tiles.append((f"{split}: {metric.replace('_', ' ')}", _format_metric(value), ""))
    body = [metric_tiles(tiles)]
    body += [paragraph(str(note), kind="note") for note in done.get("notes") or ()]
    if not history:
        body.append(paragraph("No epoch is complete yet.", kind="note"))
    if not done:
        text = "The training is not complete: run the same command again to resume."
        body.append(paragraph(text, kind="note"))
    return body


def _format_metric(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) and math.isfinite(value) else "–"


def _curves(training: Training) -> Element:
    """Return the learning curves."""
    rows, best_epoch = training.history, int(training.done.get("best_epoch") or 0)
    svg = base64.b64encode(encode(draw_learning_curves(rows, best_epoch), "svg")).decode()
    drawn = [key for key in columns_of(rows) if key not in NOT_DRAWN]
    description = f"Curves of {', '.join(drawn)}; the table of the epochs has the values"
    source = f"data:image/svg+xml;base64,{svg}"
    return charts.plot(source, "Learning curves", description, is_wide=True)


def _epochs(training: Training) -> Element:
    keys = columns_of(training.history)
    rows = [
        tuple(_format_value(row.get(key)) for key in keys)
        for row in training.history[-_MAX_EPOCHS:]
    ]
    head = [key.replace("_", " ") for key in keys]
    more = "" if len(training.history) <= _MAX_EPOCHS else f" (the last {_MAX_EPOCHS})"
    numeric = "".join("t" if key == "phase" else "n" for key in keys)
    return table(f"Metrics per epoch{more}", head, rows, numeric)


def _format_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    return "–" if value is None else str(value)


def _metrics(training: Training) -> Element:
    metrics = list(dict.fromkeys(key for values in training.metrics.values() for key in values))
    rows = [
        (
            metric.replace("_", " "),
            *(_format_metric(values.get(metric)) for values in training.metrics.values()),
        )
        for metric in metrics
    ]
    head = ("metric", *training.metrics)
    return table(
        "Metrics of the best network by split", head, rows, "t" + "n" * len(training.metrics)
    )
