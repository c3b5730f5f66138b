"""Report sections of an evaluation: metrics, tables, plots."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from cvbatch.config.evaluate import EVALUATION_VERSION
from cvbatch.core.errors import NotFoundError, SourceError
from cvbatch.core.tasks import CLASS_COLUMNS
from cvbatch.evaluate.columns import COLUMN_EVALUATIONS
from cvbatch.report import charts
from cvbatch.report.html import (
    Cell,
    Section,
    el,
    format_count,
    metric_tiles,
    name_element,
    paragraph,
    shorten,
    table,
)
from cvbatch.report.outcomes import Cell as Confused
from cvbatch.report.overlays import ByteBudget
from cvbatch.storage import store
from cvbatch.storage.store import Storage

STATE = "_cvbatch/evaluation.json"
MAX_CLASSES = 200
_MAX_CONFUSION_CLASSES = 24  # of a confusion matrix that is shown as a table
_MAX_PLOTS = 24
_WIDE = 640  # pixels or points; a wider plot has its own row
# Task → metrics that are shown first, if they exist.
_LEADING = {
    CLASS_COLUMNS[column]: evaluation.leading for column, evaluation in COLUMN_EVALUATIONS.items()
} | {"heatmap": ("insertion_auc", "deletion_auc", "pointing_game")}


@dataclass(frozen=True)
class Evaluation:
    """State and metrics in the sink of an evaluation."""

    storage: Storage
    uri: str
    state: dict[str, Any]
    metrics: dict[str, Any]  # {} if the evaluation is not complete

    @property
    def predictions(self) -> str:
        """Return the URI of the evaluated prediction."""
        return str(self.state.get("predictions", {}).get("uri", ""))


def load(storage: Storage, uri: str) -> Evaluation:
    """Read the state and the metrics of an evaluation.

    Raises:
        SourceError: the folder is not an evaluation, is damaged, or has another schema version.
    """
    uri = store.absolute(uri)
    state = read_json(storage, store.join(uri, STATE))
    if state is None:
        raise SourceError(
            f"{uri} is not an evaluation: {STATE} is missing; use the sink of `cvbatch evaluate`"
        )
    version = state.get("schema_version")
    if version != EVALUATION_VERSION:
        raise SourceError(
            f"{uri} has schema version {version!r}, but this cvbatch reads {EVALUATION_VERSION}; "
            "evaluate again, or use the version of cvbatch that wrote it"
        )
    is_complete = bool(state.get("is_complete"))
    metrics = read_json(storage, store.join(uri, "metrics.json")) if is_complete else {}
    if metrics is None:
        raise SourceError(f"{uri}/metrics.json is missing; evaluate again with --overwrite")
    return Evaluation(storage, uri, state, metrics)


def read_json(storage: Storage, uri: str) -> dict[str, Any] | None:
    """Read a JSON object; return None if the file does not exist.

    Raises:
        SourceError: the file is not a JSON object.
    """
    try:
        values = json.loads(storage.read_bytes(uri))
    except NotFoundError:
        return None
    except ValueError as error:
        raise SourceError(f"{uri} is damaged ({error}); write it again") from None
    if not isinstance(values, dict):
        raise SourceError(f"{uri} is damaged: it is not a JSON object; write it again")
    return values


def sections(evaluation: Evaluation, budget: ByteBudget) -> list[Section]:
    """Return the metrics of every task, and the plots.

    Raises:
        SourceError: metrics.json is damaged.
    """
    if not evaluation.metrics:
        text = "The evaluation is not complete: run the same command again to resume."
        return [Section("scores", "Metrics", [paragraph(text, kind="note")])]
    try:
        tasks = evaluation.metrics["tasks"]
        body = [_leading_metrics(tasks), _image_counts(evaluation)]
        result = [Section("scores", "Metrics", body)]
        result += [
            Section(f"scores-{task}", task.capitalize(), _task(task, tasks[task])) for task in tasks
        ]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise SourceError(
            f"{evaluation.uri}/metrics.json is damaged ({error!r}); evaluate again with --overwrite"
        ) from None
    plots = _plots(evaluation.storage, evaluation.uri, budget)
    return [*result, Section("curves", "Plots", plots)] if plots else result


def _leading_metrics(tasks: Mapping[str, Any]) -> Element:
    tiles = []
    for task, scores in tasks.items():
        overall = scores["overall"]
        for metric in _LEADING.get(task, tuple(overall)[:1]):
            if metric in overall:
                value, interval = _value(overall[metric]), _interval(overall[metric])
                tiles.append((f"{task}: {_title(metric)}", value, interval))
    return metric_tiles(tiles)


def _image_counts(evaluation: Evaluation) -> Element:
    """Return how many images were compared, and why others were not."""
    images = evaluation.metrics.get("images", {})
    descriptions = {
        "images": "compared",
        "failed": "of these failed",
        "no_truth": "predicted, without ground truth",
        "no_prediction": "labelled, without prediction",
        "other_splits": "of other splits",
        "heatmaps_judged": "with evaluated heatmaps",
        "heatmaps_left_out": "with heatmaps left out",
    }
    counts = [
        f"{format_count(images[key])} {text}"
        for key, text in descriptions.items()
        if images.get(key)
    ]
    kind = evaluation.metrics.get("joined_by")
    joined = f"; joined by {kind}" if kind else ""
    return paragraph(f"Images: {', '.join(counts) or 'none'}{joined}.")


def _title(metric: str) -> str:
    return metric.replace("_", " ")


def _value(metric: Mapping[str, Any]) -> str:
    return "undefined" if metric["value"] is None else f"{metric['value']:.4f}"


def _interval(metric: Mapping[str, Any]) -> str:
    return "" if metric.get("low") is None else f"{metric['low']:.4f} to {metric['high']:.4f}"


def _cell(metric: Mapping[str, Any] | None) -> Cell | str:
    if metric is None or metric["value"] is None:
        return "–"
    return Cell(f"{metric['value']:.3f}", metric["value"])


def _task(task: str, scores: Mapping[str, Any]) -> list[Element]:
    """Return the tables and charts of one task."""
    rows = [
        (_title(name), _value(metric), _interval(metric), format_count(metric["count"]))
        for name, metric in scores["overall"].items()
    ]
    head = ("metric", "value", "95 % interval", "count")
    body = [table("Metrics over all classes", head, rows, "tnnn")]
    class_metrics = scores.get("classes", {})
    if class_metrics:
        body.append(_class_table(class_metrics))
    confusion = scores.get("confusion")
    if confusion and len(confusion["classes"]) <= _MAX_CONFUSION_CLASSES:
        column = next(key for key, name in CLASS_COLUMNS.items() if name == task)
        body.append(_confusion_matrix(column, confusion["classes"], confusion["counts"]))
    return body


def _class_table(classes: Mapping[str, Any]) -> Element:
    """Return a row for each class, those with the largest count first."""
    metrics = list(dict.fromkeys(name for values in classes.values() for name in values))
    counts = {
        label: max(metric["count"] for metric in values.values())
        for label, values in classes.items()
    }
    present = [label for label, values in classes.items() if _has_value(values)]
    order = sorted(present, key=lambda label: -counts[label])[:MAX_CLASSES]
    rows = []
    for label in order:
        values = (_cell(classes[label].get(metric)) for metric in metrics)
        rows.append((name_element(label), *values, format_count(counts[label])))
    absent = len(classes) - len(present)
    more = f"; {absent:,} without ground truth and predictions left out" if absent else ""
    more += f"; the {MAX_CLASSES} most frequent" if len(present) > MAX_CLASSES else ""
    head = ("class", *map(_title, metrics), "count")
    return table(f"Metrics per class{more}", head, rows, "t" + "n" * (len(metrics) + 1))


def _has_value(metrics: Mapping[str, Any]) -> bool:
    """Return whether a class occurs in the ground truth or in the predictions."""
    return any(metric["count"] or metric["value"] is not None for metric in metrics.values())


def _confusion_matrix(
    column: str, names: Sequence[str], counts: Sequence[Sequence[int]]
) -> Element:
    """Return the confusion matrix: a row for each true class, cells that filter the gallery."""
    rows = []
    predicted = [*names, ""]
    for label, row_counts in zip(names, counts, strict=True):
        total = sum(row_counts) or 1
        cells = [
            _confusion_cell(Confused(column, label, other), number, number / total)
            for other, number in zip(predicted, row_counts, strict=True)
        ]
        rows.append((name_element(label), *cells))
    head = ("true class", *(shorten(label, 24) for label in names), "none")
    title = "Confusion matrix: true class by predicted class; a number shows its images"
    return table(title, head, rows, "t" + "n" * (len(names) + 1))


def _confusion_cell(cell: Confused, number: int, share: float) -> Element | str:
    """Return a link to the images of a cell, shaded by its share of the true class."""
    if not number:
        return "·"
    text = f"true {shorten(cell.true)}, predicted {shorten(cell.predicted) or 'none'}"
    is_wrong = "wrong" if cell.true != cell.predicted else "right"
    return el(
        "a",
        {"href": "#gallery", "class": f"confusion {is_wrong} shade-{math.ceil(share * 4)}",
         "data-cell": json.dumps([cell.column, shorten(cell.true), shorten(cell.predicted)]),
         "aria-label": f"{format_count(number)}: {text}, show images"},
        format_count(number),
    )  # fmt: skip


def _plots(storage: Storage, uri: str, budget: ByteBudget) -> list[Element]:
    """Return the plots of the sink by task: as SVG, or as PNG where cvbatch wrote no SVG yet."""
    files = {
        name.removesuffix(kind): kind
        for kind in (".png", ".svg")
        for name in storage.list_names(uri)
        if name.endswith(kind)
    }
    figures = []
    for name in sorted(files, key=lambda name: name.rpartition("_")[::-1])[:_MAX_PLOTS]:
        kind = files[name]
        data = storage.read_bytes(store.join(uri, f"{name}{kind}"))
        source = budget.embed(data, "svg+xml" if kind == ".svg" else "png")
        if source:
            title = name.replace("_", " ")
            description = f"Plot of {title}; the tables above have the values"
            is_wide = _plot_width(data) > _WIDE
            figures.append(charts.plot(source, title, description, is_wide=is_wide))
    return [el("div", {"class": "plots"}, *figures)] if figures else []


def _plot_width(data: bytes) -> float:
    """Return the width of an SVG in points; of a PNG in pixels."""
    found = re.search(rb'<svg [^>]*width="([0-9.]+)pt"', data[:4096])
    return float(found[1]) if found else int.from_bytes(data[16:20])
