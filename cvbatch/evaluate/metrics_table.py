"""What the scores of an evaluation come to: one figure a row, with its interval and its count."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.evaluate.scoring import TASKS, Order, Scored
from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.base import mean
from cvbatch.metrics.classification import Calibration, Confusion, MultiLabelPrecision, TopK
from cvbatch.metrics.counts import Tally, image_weights, interval

Kind = TypeVar("Kind")
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
_RATIOS = ("precision", "recall", "f1")
_AVERAGES = [f"{how}_{what}" for how in ("macro", "weighted") for what in _RATIOS]
_MICRO = [f"micro_{what}" for what in _RATIOS]
_AP = ("ap", "ap50", "ap75", "voc_ap")


@dataclass(frozen=True)
class Figure:
    """One number, and how sure it is."""

    task: str
    class_name: str | None  # None: over all classes
    metric: str
    value: float | None  # None: undefined
    low: float | None  # the 95 % interval; None: there is none
    high: float | None
    count: int  # images, objects or pixels it is about


def figures_of(order: Order, scored: Scored, replicates: Replicates) -> list[Figure]:
    """Return every figure that the scores give, task by task, overall before the classes.

    replicates: of `resample`, all of them; the intervals of average precision are made of these.
    """
    found: list[Figure] = []
    for column, task in TASKS.items():
        if column in order.classes:
            found += _TASK_FIGURES[task](order, scored)
    drawn = [replicates[r] for r in sorted(replicates)]
    return [_of_replicates(order, figure, drawn) for figure in found] if drawn else found


def _of_replicates(order: Order, figure: Figure, drawn: Sequence[dict[str, np.ndarray]]) -> Figure:
    """Return an average precision of boxes with its interval, any other figure as it is."""
    if figure.task != "detection" or figure.metric not in _AP:
        return figure
    if figure.class_name is None:
        values = [mean(one[figure.metric]) for one in drawn]
    else:
        k = order.classes["boxes"].index(figure.class_name)
        values = [float(one[figure.metric][k]) for one in drawn]
    return _with_interval(figure, np.array([math.nan, *values]))


def _classification(order: Order, scored: Scored) -> Iterator[Figure]:
    tally = _score(scored, "labels_tally", Tally)
    names = order.classes["labels"]
    if order.is_multi_label:
        count = scored.counts["classification_images"]
        precision = _score(scored, "precision", MultiLabelPrecision)
        values = precision.average_precision
        yield _plain("classification", None, "mean_average_precision", mean(values), count)
        yield from _averages("classification", tally, (*_MICRO, *_AVERAGES), count)
        for k, name in enumerate(names):
            support = int(tally.support[0, k])
            yield _plain("classification", name, "average_precision", float(values[k]), support)
            yield from _of_class("classification", tally, name, k, _RATIOS)
        return
    top_k = _score(scored, "top_k", TopK)
    yield from _averages("classification", tally, ("accuracy",), top_k.num_images)
    hits = _score(scored, "top_k_tally", Tally).figures()["recall"]
    for place, k in enumerate(top_k.ks):
        yield make_figure("classification", None, f"top_{k}", hits[:, place], top_k.num_images)
    yield from _averages("classification", tally, _AVERAGES, top_k.num_images)
    calibration = _score(scored, "calibration", Calibration)
    if not scored.counts["scores_outside_0_1"]:  # of logits there is none
        for metric, error in calibration.as_dict().items():
            count = int(calibration.counts.sum())
            yield _plain("classification", None, metric, error, count)
    for k, name in enumerate(names):
        yield from _of_class("classification", tally, name, k, _RATIOS)


def _segmentation(order: Order, scored: Scored) -> Iterator[Figure]:
    tally = _score(scored, "mask_tally", Tally)
    num_pixels = int(tally.support[0].sum())
    overall = tally.overall()
    yield make_figure("segmentation", None, "pixel_accuracy", overall["accuracy"], num_pixels)
    yield from _averages("segmentation", tally, ("mean_iou", *_AVERAGES), num_pixels)
    for k, name in enumerate(order.classes["mask"]):
        yield from _of_class("segmentation", tally, name, k, ("iou", *_RATIOS))


def _detection(order: Order, scored: Scored) -> Iterator[Figure]:
    score = _score(scored, "average_precision", AveragePrecision)
    tally = _score(scored, "boxes_tally", Tally)
    num_objects = int(tally.support[0].sum())
    for metric, value in score.as_dict().items():
        yield _plain("detection", None, metric, value, num_objects)
    yield from _averages("detection", tally, (*_MICRO, *_AVERAGES), num_objects)
    per_class = score.per_class()
    for k, name in enumerate(order.classes["boxes"]):
        support = int(tally.support[0, k])
        for metric in _AP:
            yield _plain("detection", name, metric, float(per_class[metric][k]), support)
        yield from _of_class("detection", tally, name, k, _RATIOS)


class Resampling(NamedTuple):
    """Average precisions that are still to be formed for each replicate of the images."""

    score: AveragePrecision
    num_objects: np.ndarray  # (1 + R, C) so counted
    seed: int


def resampling_of(order: Order, scored: Scored) -> Resampling | None:
    """Return what `resample` wants; None where there are no boxes or no replicates."""
    score = scored.scores.get("average_precision")
    if not isinstance(score, AveragePrecision) or not order.num_replicates:
        return None
    return Resampling(score, _score(scored, "boxes_tally", Tally).support, order.seed)


def resample(asked: Resampling, numbers: range) -> Replicates:
    """Return the average precisions of each class in some replicates, numbered from 1."""
    names = asked.score.image_key.tolist()
    weights = image_weights(names, len(asked.num_objects) - 1, asked.seed)
    return {r: asked.score.resampled(weights[:, r], asked.num_objects[r]) for r in numbers}


_TASK_FIGURES: dict[str, Callable[[Order, Scored], Iterator[Figure]]] = {
    "classification": _classification,
    "segmentation": _segmentation,
    "detection": _detection,
}


def _score(scored: Scored, name: str, kind: type[Kind]) -> Kind:
    found = scored.scores[name]
    if not isinstance(found, kind):
        raise TypeError(f"score {name} is a {type(found).__name__}, not a {kind.__name__}")
    return found


def _averages(task: str, tally: Tally, metrics: Sequence[str], count: int) -> Iterator[Figure]:
    overall = tally.overall()
    for metric in metrics:
        yield make_figure(task, None, metric, overall[metric], count)


def _of_class(
    task: str, tally: Tally, name: str, k: int, metrics: Sequence[str]
) -> Iterator[Figure]:
    figures = tally.figures()
    for metric in metrics:
        yield make_figure(task, name, metric, figures[metric][:, k], int(tally.support[0, k]))


def make_figure(
    task: str,
    class_name: str | None,
    metric: str,
    values: np.ndarray,  # (1 + R,)
    count: int,
) -> Figure:
    """Return a figure with its interval.

    values: of the images, then of each replicate of them; NaN: undefined.
    """
    return _with_interval(_plain(task, class_name, metric, float(values[0]), count), values)


def _with_interval(figure: Figure, values: np.ndarray) -> Figure:  # (1 + R,)
    ends = None if figure.value is None else interval(values)
    return figure if ends is None else replace(figure, low=ends[0], high=ends[1])


def _plain(
    task: str, class_name: str | None, metric: str, value: float | None, count: int
) -> Figure:
    known = None if value is None or math.isnan(value) else float(value)
    return Figure(task, class_name, metric, known, None, None, count)


def to_parquet(figures: Sequence[Figure]) -> pa.Buffer:
    """Return the figures as a Parquet file, a figure a row."""
    names = [item if item != "class" else "class_name" for item in _SCHEMA.names]
    columns = [[getattr(figure, name) for figure in figures] for name in names]
    arrays = [pa.array(c, kind) for c, kind in zip(columns, _SCHEMA.types, strict=True)]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays, schema=_SCHEMA), buffer, store_schema=False)
    return buffer.getvalue()


def to_json(
    figures: Sequence[Figure],
    about: dict[str, Any],
    order: Order,
    scored: Scored,
    details: dict[str, dict[str, Any]],
) -> bytes:
    """Return the figures by task and class, with the confusion counts and the calibration's bins.

    about: what stands before them: the images, where they come from. details: what else is known of
    a task, by its name.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for figure in figures:
        task = tasks.setdefault(figure.task, {"overall": {}, "classes": {}})
        row = asdict(figure)
        said = {key: row[key] for key in ("value", "low", "high", "count")}
        if figure.class_name is None:
            task["overall"][figure.metric] = said
        else:
            task["classes"].setdefault(figure.class_name, {})[figure.metric] = said
    for column, name in (("labels", "confusion"), ("mask", "pixels")):
        score = scored.scores.get(name)
        if isinstance(score, Confusion):
            tasks[TASKS[column]]["confusion"] = {
                "classes": list(order.classes[column]),
                "counts": score.counts.tolist(),  # rows: truth; last column: no class answered
            }
    calibration = scored.scores.get("calibration")
    if isinstance(calibration, Calibration):
        bins = {key: _nulls(values) for key, values in calibration.per_bin().items()}
        tasks["classification"]["calibration"] = bins
    for name, more in details.items():
        tasks[name] |= more
    return json.dumps({**about, "tasks": tasks}, indent=1, ensure_ascii=False).encode()


def _nulls(values: np.ndarray) -> list[float | None]:  # (B,)
    return [None if math.isnan(value) else value for value in values.tolist()]
