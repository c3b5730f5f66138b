"""The parts of a page that are about a training: its curves, what it came to, its job."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.core.errors import NotFoundError, SourceError
from cvbatch.core.redaction import hidden
from cvbatch.report import charts
from cvbatch.report.evaluation_page import read_json
from cvbatch.report.html import Section, count, duration, el, listing, paragraph, table, tiles
from cvbatch.storage import store
from cvbatch.storage.store import Storage
from cvbatch.train.history import columns_of

STATE = "_cvbatch/training.json"
_NOT_DRAWN = ("epoch", "step", "phase", "seconds", "waited_seconds")
_MAX_EPOCHS = 1000  # rows of the table
_MAX_TEXT = 100_000


@dataclass(frozen=True)
class Training:
    """What lies in a training's sink."""

    uri: str
    state: dict[str, Any]
    history: list[dict[str, Any]]  # an epoch each
    metrics: dict[str, dict[str, Any]]  # by split; {} before the end
    config: str

    @property
    def done(self) -> dict[str, Any]:
        """Return the summary of the run that came to its end; {} before."""
        return self.state.get("done") or {}


def find(storage: Storage, uri: str) -> Training:
    """Return what a training's sink says.

    Raises:
        SourceError: it is damaged.
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


def _splits(said: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {split: values for split, values in said.items() if isinstance(values, dict)}


def _history(storage: Storage, uri: str) -> list[dict[str, Any]]:
    try:
        with storage.open_input(uri) as file:
            rows: list[dict[str, Any]] = pq.ParquetFile(file).read().to_pylist()
    except NotFoundError:
        return []
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(
            f"{uri} cannot be read as Parquet ({str(error)[:200]}); train again"
        ) from None
    return rows


def sections(found: Training) -> list[Section]:
    """Return what a training came to, its curves, its epochs one by one, its job."""
    made = [Section("counts", "At a glance", _glance(found))]
    if found.history:
        made.append(Section("curves", "Curves", [_curves(found)]))
        made.append(Section("epochs", "Epochs", [_epochs(found)]))
    if found.metrics:
        made.append(Section("scores", "Scores", [_scores(found)]))
    if found.config:
        text = hidden(found.config[:_MAX_TEXT])
        made.append(Section("job", "Job file", [listing(text, "The resolved job file")]))
    return made


def _glance(found: Training) -> list[Element]:
    history, done = found.history, found.done
    seconds = sum(float(row.get("seconds") or 0) for row in history)
    waited = sum(float(row.get("waited_seconds") or 0) for row in history)
    steps = max((int(row["step"]) for row in history if row.get("step") is not None), default=0)
    figures = [
        ("Epochs", count(len(history)), f"{steps:,} steps"),
        ("Best epoch", str(done.get("best_epoch") or "–"), ""),
        ("Time", duration(seconds), f"{duration(waited)} of it waiting for images"),
    ]
    for split, number in (done.get("images") or {}).items():
        figures.append((f"Images: {split}", count(int(number)), ""))
    for split, values in found.metrics.items():
        for metric, value in list(values.items())[:1]:
            figures.append((f"{split}: {metric.replace('_', ' ')}", _figure(value), ""))
    body = [tiles(figures)]
    if not history:
        body.append(paragraph("No epoch is over yet.", kind="note"))
    if not done:
        told = "The training did not come to its end yet: run its command again to go on."
        body.append(paragraph(told, kind="note"))
    return body


def _figure(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) and math.isfinite(value) else "–"


def _curves(found: Training) -> Element:
    """Return a curve for each number, lowest to highest."""
    rows = found.history
    phases = [row.get("phase") for row in rows]
    breaks = [i for i in range(1, len(rows)) if phases[i] != phases[i - 1]]
    kept = found.done.get("best_epoch")
    best = next((i for i, row in enumerate(rows) if kept and row.get("epoch") == kept), None)
    labels = [str(row.get("epoch", i + 1)) for i, row in enumerate(rows)]
    drawn = []
    for key in columns_of(rows):
        if key in _NOT_DRAWN:
            continue
        values = [
            float(row[key]) if isinstance(row.get(key), int | float) else math.nan for row in rows
        ]
        drawn.append(charts.line(key.replace("_", " "), values, labels, breaks, best))
    return el("div", {"class": "charts"}, *drawn)


def _epochs(found: Training) -> Element:
    keys = columns_of(found.history)
    rows = [tuple(_plain(row.get(key)) for key in keys) for row in found.history[-_MAX_EPOCHS:]]
    head = [key.replace("_", " ") for key in keys]
    more = "" if len(found.history) <= _MAX_EPOCHS else f" (the last {_MAX_EPOCHS})"
    numeric = "".join("t" if key == "phase" else "n" for key in keys)
    return table(f"Epoch by epoch{more}", head, rows, numeric)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    return "–" if value is None else str(value)


def _scores(found: Training) -> Element:
    metrics = list(dict.fromkeys(key for values in found.metrics.values() for key in values))
    rows = [
        (metric.replace("_", " "), *(_figure(one.get(metric)) for one in found.metrics.values()))
        for metric in metrics
    ]
    head = ("metric", *found.metrics)
    return table("The kept network on each split", head, rows, "t" + "n" * len(found.metrics))
