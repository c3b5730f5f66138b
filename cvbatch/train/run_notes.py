"""Notes on a training for people: what its data lack, and what its history shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from cvbatch.config.train import TrainJob
from cvbatch.datasets.reader import LabelledDataset
from cvbatch.train.history import Row, class_values

MIN_VALIDATION_IMAGES = 30  # with fewer, one image moves an accuracy by more than 3 points
_MAX_NAMES = 10
_WEAK, _STRONG = 0.1, 0.3  # values of a class
_STILL_FALLS = 0.02  # in the last third of a phase, as a fraction; its rate is low by then
_OVERFITS = 0.1  # increase of the validation loss since its minimum, as a fraction


def data_notes(
    job: TrainJob,
    data: LabelledDataset,
    counts: np.ndarray,  # (C,) int64
) -> list[str]:
    """Return notes on classes without training examples and on a small validation split.

    Args:
        job: its class weights are a list, or absent.
        data: classes and splits.
        counts: training examples (labels, boxes or pixels) of each class.
    """
    notes = []
    ignored = job.training.ignored_class
    absent = [c for k, c in enumerate(data.classes) if not counts[k] and k != ignored]
    if absent:
        notes.append(
            f"no training example of {_names(absent)}: the network cannot learn this; add images, "
            "or import the data without the class"
        )
    images = len(data.splits["validation"]) if "validation" in data.splits else None
    if images is not None and images < MIN_VALIDATION_IMAGES:
        notes.append(
            f"the validation split has {images} images: chance decides its metrics and the best "
            f"epoch; use at least {MIN_VALIDATION_IMAGES}"
        )
    if isinstance(weights := job.training.class_weights, list):
        values = dict(zip(data.classes, weights, strict=True))
        notes.append(f"class weights: {_values(values)}")
    return notes


def history_notes(
    rows: Sequence[Row],
    best_epoch: int,
    planned: Mapping[str, int],
    metric: str,
    job: TrainJob,
) -> list[str]:
    """Return notes on the best epoch, its weak classes, early stopping, and the losses.

    Args:
        rows: one per epoch, at least one.
        best_epoch: value of "epoch" in the best row.
        planned: number of epochs by phase.
        metric: selects the best epoch; without validation that is the loss.
        job: for the advice.
    """
    best = next(row for row in rows if row["epoch"] == best_epoch)
    key = metric if metric in best else "loss"
    notes = [f"best epoch: {best_epoch} of {rows[-1]['epoch']}, {key} {best[key]:.4g}"]
    notes += _stopped_phases(rows, planned, key, job.training.patience)
    last = [row for row in rows if row["phase"] == rows[-1]["phase"]]
    notes += _loss_notes(last, is_stopped=len(last) < planned[last[0]["phase"]], job=job)
    return notes + _class_notes(class_values(best), job)


def _stopped_phases(
    rows: Sequence[Row], planned: Mapping[str, int], key: str, patience: int | None
) -> list[str]:
    done = Counter(row["phase"] for row in rows)
    return [
        f"early stopping: phase {phase} ended after {done[phase]} of {epochs} epochs, because "
        f"{key} did not improve in {patience} (training.patience)"
        for phase, epochs in planned.items()
        if done[phase] < epochs
    ]


def _loss_notes(rows: Sequence[Row], *, is_stopped: bool, job: TrainJob) -> list[str]:
    """Return whether the loss of the last phase still falls, or rises in validation only."""
    key = "val_loss" if "val_loss" in rows[0] else "loss"
    name = "validation loss" if key == "val_loss" else "training loss"
    values = np.array([row[key] for row in rows])
    count, third, window = len(rows), max(1, len(rows) // 3), max(1, len(rows) // 10)
    if count < 3 or not np.isfinite(values).all():
        return []
    end = values[-window:].mean()
    start = values[max(0, count - third - window) : count - third].mean()
    fall, lowest = (start - end) / start if start else 0.0, int(values.argmin())
    rise = end / values[lowest] - 1 if values[lowest] > 0 else 0.0
    if fall >= _STILL_FALLS and not is_stopped:
        epochs = job.training.epochs
        return [
            f"the {name} still falls, by {fall:.0%} since epoch {rows[-third - 1]['epoch']}: the "
            f"network can learn more; set training.epochs: {2 * epochs} instead of {epochs}"
        ]
    if key == "val_loss" and rise >= _OVERFITS and rows[-1]["loss"] < rows[lowest]["loss"]:
        return [
            f"overfitting: the validation loss is lowest in epoch {rows[lowest]['epoch']} and "
            f"{rise:.0%} higher at the end, while the training loss falls; add images, set "
            "training.augment, or train fewer epochs"
        ]
    return []


def _class_notes(values: Mapping[str, Mapping[str, float]], job: TrainJob) -> list[str]:
    """Return the classes of the best epoch that validation has no example of, and the weak ones.

    Args:
        values: name of the value → class → value, NaN without examples.
        job: for the advice.
    """
    if not values:
        return []
    name = next(iter(values))
    shown = values[name]
    ignored = job.training.ignored_class
    unknown = [
        label
        for k, (label, value) in enumerate(values.get("recall", shown).items())
        if math.isnan(value) and k != ignored
    ]
    notes = []
    if unknown:
        notes.append(f"no validation example of {_names(unknown)}: nothing is known of it")
    weak = {c: value for c, value in shown.items() if value < _WEAK and c not in unknown}
    if weak and max(value for value in shown.values() if not math.isnan(value)) >= _STRONG:
        can_weigh = job.training.class_weights is None and not job.model.multi_label
        remedy = "set training.class_weights: sqrt_balanced or balanced, or " * can_weigh
        notes.append(
            f"{name.replace('_', ' ')} below {_WEAK} in the best epoch: {_values(weak)}; {remedy}"
            "add images of them"
        )
    return notes


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more classes" if len(names) > _MAX_NAMES else ""
    return ", ".join(map(repr, names[:_MAX_NAMES])) + more


def _values(values: Mapping[str, float]) -> str:
    items = [f"{name} {value:.3g}" for name, value in list(values.items())[:_MAX_NAMES]]
    more = f" and {len(values) - _MAX_NAMES} more" if len(values) > _MAX_NAMES else ""
    return ", ".join(items) + more
