"""Notes on a training state what its data and its history show, and nothing else."""

import math

import numpy as np
import pytest

from cvbatch.config.train import parse_training
from cvbatch.datasets.reader import LabelledDataset, RowGroup, Split
from cvbatch.train.run_notes import data_notes, history_notes

CLASSES = ("road", "pole", "void")


def job_of(task="segmentation", **training):
    model = {"task": task, "model": "encoder_decoder", "weights": "random"}
    return parse_training(
        {"source": {"uri": "in"}, "sink": {"uri": "out"}, "model": model, "training": training}
    )


def data_of(num_validation):
    splits = {}
    for name, count in (("train", 100), ("validation", num_validation)):
        splits[name] = Split(name, (RowGroup("f", 0, None, count, 1),), 0)
    return LabelledDataset(CLASSES, splits, "")


def rows_of(losses, val_losses=None, metric=0.5, **values):
    rows = []
    for i, loss in enumerate(losses):
        row = {"epoch": i + 1, "phase": "all", "loss": loss}
        if val_losses is not None:
            row |= {"val_loss": val_losses[i], "mean_iou": metric}
        rows.append(row | {key.replace("__", "/"): value for key, value in values.items()})
    return rows


def notes_of(rows, best=None, epochs=None, **training):
    job = job_of(epochs=epochs or len(rows), recipe="scratch", **training)
    planned = {"all": epochs or len(rows)}
    return history_notes(rows, best or len(rows), planned, "mean_iou", job)[1:]


def test_data_without_faults_have_no_note():
    assert data_notes(job_of(), data_of(30), np.array([5, 1, 2])) == []


def test_a_class_without_examples_is_named_unless_it_is_ignored():
    (note,) = data_notes(job_of(ignored_class=2), data_of(30), np.array([5, 0, 0]))
    assert note.startswith("no training example of 'pole': ")


def test_a_small_validation_split_and_the_weights_are_reported():
    job = job_of(class_weights=[0.5, 20.0, 1.0])
    notes = data_notes(job, data_of(29), np.array([5, 1, 2]))
    assert notes[0].startswith("the validation split has 29 images")
    assert notes[1] == "class weights: road 0.5, pole 20, void 1"


@pytest.mark.parametrize("key", ["loss", "val_loss"])
def test_the_best_epoch_is_stated(key):
    rows = rows_of([3.0, 2.0, 2.5], None if key == "loss" else [3.0, 2.0, 2.0], metric=0.25)
    planned = {"all": 3}
    note = history_notes(rows, 2, planned, "mean_iou", job_of(recipe="scratch"))[0]
    value = "loss 2" if key == "loss" else "mean_iou 0.25"
    assert note == f"best epoch: 2 of 3, {value}"


@pytest.mark.parametrize("has_validation", [False, True])
def test_a_loss_that_still_falls_asks_for_more_epochs(has_validation):
    falling = [10 * 0.95**i for i in range(20)]  # by 1 − 0.95⁶ in the last third, 6 epochs
    rows = rows_of(falling, falling if has_validation else None)
    (note,) = notes_of(rows)
    kind = "validation" if has_validation else "training"
    assert f"the {kind} loss still falls, by 26% since epoch 14" in note
    assert "training.epochs: 40 instead of 20" in note
    assert not any("still falls" in other for other in notes_of(rows[:19], epochs=20, patience=3))


@pytest.mark.parametrize("validation", [[1.0] * 20, [1.0 - 0.0005 * i for i in range(20)]])
def test_a_flat_loss_has_no_note(validation):
    assert notes_of(rows_of([10 * 0.95**i for i in range(20)], validation)) == []


def test_a_validation_loss_that_rises_while_training_improves_is_overfitting():
    losses = [10 * 0.95**i for i in range(20)]
    validation = [5.0 - i for i in range(4)] + [2.0 + 0.05 * i for i in range(1, 17)]
    (note,) = notes_of(rows_of(losses, validation))
    assert "lowest in epoch 4 and 39% higher at the end" in note
    assert notes_of(rows_of(losses[::-1], validation)) == []


def test_early_stopping_names_the_phase_and_the_key():
    (note,) = notes_of(rows_of([1.0] * 6, [1.0] * 6), epochs=9, patience=3)
    assert note.startswith("early stopping: phase all ended after 6 of 9 epochs, because mean_iou")


WEAK = {"iou__road": 0.9, "iou__pole": 0.02, "iou__void": math.nan, "recall__road": 0.9}
WEAK |= {"recall__pole": 0.02, "recall__void": math.nan}


def test_weak_and_unknown_classes_are_named_with_what_to_do():
    unknown, weak = notes_of(rows_of([1.0], [1.0], **WEAK))
    assert unknown == "no validation example of 'void': nothing is known of it"
    assert weak.startswith("iou below 0.1 in the best epoch: pole 0.02; set training.class_weights")
    (weak,) = notes_of(
        rows_of([1.0], [1.0], **WEAK),
        ignored_class=2, class_weights="balanced",
    )  # fmt: skip
    assert weak.endswith("pole 0.02; add images of them")


def test_a_network_that_has_learned_no_class_gets_no_advice_on_single_ones():
    values = {**WEAK, "iou__road": 0.2}
    assert notes_of(rows_of([1.0], [1.0], **values), ignored_class=2) == []
