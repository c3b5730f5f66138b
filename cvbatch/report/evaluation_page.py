"""The parts of a page that are about an evaluation: its figures, tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from cvbatch.config.evaluate import EVALUATION_VERSION
from cvbatch.core.errors import NotFoundError, SourceError
from cvbatch.core.tasks import CLASS_COLUMNS
from cvbatch.evaluate.columns import COLUMN_EVALUATIONS
from cvbatch.report import charts
from cvbatch.report.html import Cell, Section, count, el, name, paragraph, shortened, table, tiles
from cvbatch.report.overlays import Budget
from cvbatch.storage import store
from cvbatch.storage.store import Storage

STATE = "_cvbatch/evaluation.json"
MAX_CLASSES = 200
_MAX_CONFUSED = 24  # classes of a matrix that is a table
_MAX_PICTURES = 12
_WIDE = 900  # pixels of a picture that has a row for itself
# Task → the metrics that are shown first, those of them that there are.
_LEADING = {
    CLASS_COLUMNS[column]: evaluation.leading for column, evaluation in COLUMN_EVALUATIONS.items()
} | {"heatmap": ("insertion_auc", "deletion_auc", "pointing_game")}


@dataclass(frozen=True)
class Evaluation:
    """What lies in an evaluation's sink."""

    storage: Storage
    uri: str
    state: dict[str, Any]
    metrics: dict[str, Any]  # {} where it did not come to its end

    @property
    def predictions(self) -> str:
        """Return the sink of the prediction that was scored."""
        return str(self.state.get("predictions", {}).get("uri", ""))


def find(storage: Storage, uri: str) -> Evaluation:
    """Return what an evaluation's sink says.

    Raises:
        SourceError: there is none, it is damaged, or of another schema version.
    """
    uri = store.absolute(uri)
    state = read_json(storage, store.join(uri, STATE))
    if state is None:
        raise SourceError(
            f"{uri} holds no evaluation: it has no {STATE}; name the sink of a `cvbatch evaluate`"
        )
    version = state.get("schema_version")
    if version != EVALUATION_VERSION:
        raise SourceError(
            f"{uri} is an evaluation of schema version {version!r}, and {EVALUATION_VERSION} is "
            "read here; evaluate again, or use the cvbatch that wrote it"
        )
    is_complete = bool(state.get("is_complete"))
    metrics = read_json(storage, store.join(uri, "metrics.json")) if is_complete else {}
    if metrics is None:
        raise SourceError(f"{uri} lacks metrics.json; evaluate again with --overwrite")
    return Evaluation(storage, uri, state, metrics)


def read_json(storage: Storage, uri: str) -> dict[str, Any] | None:
    """Return the object in a JSON file; None where there is no such file.

    Raises:
        SourceError: it is damaged.
    """
    try:
        said = json.loads(storage.read_bytes(uri))
    except NotFoundError:
        return None
    except ValueError as error:
        raise SourceError(f"{uri} is damaged ({error}); write it again") from None
    if not isinstance(said, dict):
        raise SourceError(f"{uri} is damaged: it holds no object; write it again")
    return said


def sections(found: Evaluation, budget: Budget) -> list[Section]:
    """Return the figures of every task, and the pictures.

    Raises:
        SourceError: metrics.json is damaged.
    """
    if not found.metrics:
        told = "The evaluation did not come to its end: run its command again."
        return [Section("scores", "Scores", [paragraph(told, kind="note")])]
    try:
        tasks = found.metrics["tasks"]
        body = [_leading(tasks), _sides(found)]
        made = [Section("scores", "Scores", body)]
        made += [Section(f"scores-{task}", task.capitalize(), _task(tasks[task])) for task in tasks]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise SourceError(
            f"{found.uri}/metrics.json is damaged ({error!r}); evaluate again with --overwrite"
        ) from None
    drawn = _pictures(found.storage, found.uri, budget)
    return [*made, Section("curves", "Curves", drawn)] if drawn else made


def _leading(tasks: Mapping[str, Any]) -> Element:
    figures = []
    for task, said in tasks.items():
        for metric in _LEADING.get(task, tuple(said["overall"])[:1]):
            if metric in said["overall"]:
                one = said["overall"][metric]
                figures.append((f"{task}: {_words(metric)}", _value(one), _interval(one)))
    return tiles(figures)


def _sides(found: Evaluation) -> Element:
    """Return which images were compared."""
    images = found.metrics.get("images", {})
    words = {
        "images": "on both sides",
        "failed": "of them failed",
        "no_truth": "predicted, without a truth",
        "no_prediction": "labelled, not predicted",
        "other_splits": "of other splits",
        "heatmaps_judged": "whose heatmaps were judged",
        "heatmaps_left_out": "whose heatmaps were left out",
    }
    told = [f"{count(images[key])} {said}" for key, said in words.items() if images.get(key)]
    kind = found.metrics.get("joined_by")
    joined = f"; joined by {kind}" if kind else ""
    return paragraph(f"Images: {', '.join(told) or 'none'}{joined}.")


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _value(one: Mapping[str, Any]) -> str:
    return "undefined" if one["value"] is None else f"{one['value']:.4f}"


def _interval(one: Mapping[str, Any]) -> str:
    return "" if one.get("low") is None else f"{one['low']:.4f} to {one['high']:.4f}"


def _cell(one: Mapping[str, Any] | None) -> Cell | str:
    if one is None or one["value"] is None:
        return "–"
    return Cell(f"{one['value']:.3f}", one["value"])


def _task(said: Mapping[str, Any]) -> list[Element]:
    rows = [
        (_words(metric), _value(one), _interval(one), count(one["count"]))
        for metric, one in said["overall"].items()
    ]
    head = ("metric", "value", "95 % interval", "count")
    body = [table("Over all classes", head, rows, "tnnn")]
    by_class = said.get("classes", {})
    if by_class:
        body.append(_by_class(by_class))
    if "calibration" in said:
        body.append(_calibration(said["calibration"]))
    confusion = said.get("confusion")
    if confusion and len(confusion["classes"]) <= _MAX_CONFUSED:
        body.append(_confusion(confusion["classes"], confusion["counts"]))
    return body


def _by_class(classes: Mapping[str, Any]) -> Element:
    """Return a row a class, those with most of it first."""
    metrics = list(dict.fromkeys(metric for one in classes.values() for metric in one))
    weight = {label: max(f["count"] for f in one.values()) for label, one in classes.items()}
    order = sorted(classes, key=lambda label: -weight[label])[:MAX_CLASSES]
    rows = []
    for label in order:
        values = (_cell(classes[label].get(metric)) for metric in metrics)
        rows.append((name(label), *values, count(weight[label])))
    more = "" if len(classes) <= MAX_CLASSES else f" ({MAX_CLASSES} of {len(classes):,})"
    head = ("class", *map(_words, metrics), "count")
    return table(f"Class by class{more}", head, rows, "t" + "n" * (len(metrics) + 1))


def _calibration(bins: Mapping[str, Sequence[Any]]) -> Element:
    chart = charts.reliability(bins["score"], bins["accuracy"], bins["counts"])
    return el("div", {"class": "charts"}, chart)


def _confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> Element:
    """Return which class was taken for which: a row for each true one."""
    rows = []
    for label, line in zip(names, counts, strict=True):
        whole = sum(line) or 1
        cells: list[Cell | str] = [Cell(count(n), n / whole) if n else "·" for n in line]
        rows.append((name(label), *cells))
    head = ("true class", *(shortened(label, 24) for label in names), "none")
    return table("What each true class was taken for", head, rows, "t" + "n" * (len(names) + 1))


def _pictures(storage: Storage, uri: str, budget: Budget) -> list[Element]:
    """Return the pictures beside the figures: curves of precision over recall, matrices."""
    names = sorted(one for one in storage.list_names(uri) if one.endswith(".png"))
    made = []
    for one in names[:_MAX_PICTURES]:
        picture = storage.read_bytes(store.join(uri, one))
        data = budget.spend(picture, "png")
        if data:
            is_wide = int.from_bytes(picture[16:20]) > _WIDE  # as its header says
            title = one.removesuffix(".png").replace("_", " ")
            alt = f"Picture {title}; the figures stand in the tables above"
            image = el("img", {"src": data, "alt": alt, "class": "plot"})
            kind = "plot-box wide" if is_wide else "plot-box"
            made.append(el("figure", {"class": kind}, image, el("figcaption", {}, title)))
    return [el("div", {"class": "plots"}, *made)] if made else []
