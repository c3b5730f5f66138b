"""Every layer has one row for each task and for each column with a class table.

Who adds a task or a column sees here which tables still lack it.
"""

from dataclasses import fields
from importlib import import_module
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pytest

from cvbatch.config.base import Section
from cvbatch.config.models import MODEL_SECTIONS
from cvbatch.core.tasks import CLASS_COLUMNS, TASKS, Task, TaskInfo
from cvbatch.core.types import ImageBatch, InputKey, Labels, ModelPredictions, ModelSpec
from cvbatch.datasets.schema import LABEL_COLUMNS, LabelColumn
from cvbatch.evaluate import columns as evaluation
from cvbatch.evaluate.metrics_table import overall_rows, to_json
from cvbatch.evaluate.scoring import EvaluationSpec, merge_scores
from cvbatch.exporters.job import EXPORTS
from cvbatch.importers.validation import LabelledImage as ImportedRow
from cvbatch.inference.postprocess import POSTPROCESSORS, Postprocessor, tiles_unsupported
from cvbatch.inference.predictor import LoadedModel, Predictor
from cvbatch.metrics.counts import ClassCounts, count_by_class
from cvbatch.predict.serialization import predictions_to_table, table_to_predictions
from cvbatch.results import schema, writer
from cvbatch.results.parts import read_footer
from cvbatch.storage.store import Storage

TASK_TABLES = [
    "cvbatch.core.tasks.TASKS",
    "cvbatch.config.models.MODEL_SECTIONS",
    "cvbatch.inference.graph_outputs.GRAPH_OUTPUTS",
    "cvbatch.inference.postprocess.POSTPROCESSORS",
]
CLASS_TASK_TABLES = [  # of tasks with classes
    "cvbatch.train.learners.base.LEARNERS",
    "cvbatch.explain.class_scores.CLASS_SCORES",
]
COLUMN_TABLES = [
    "cvbatch.core.tasks.CLASS_COLUMNS",
    "cvbatch.datasets.schema.LABEL_COLUMNS",
    "cvbatch.evaluate.columns.COLUMN_EVALUATIONS",
    "cvbatch.report.columns.COLUMN_PAGES",
]


def difference(name, wanted):
    """Return in words which keys a table lacks and which it has too many; "" if none."""
    module, _, table = name.rpartition(".")
    keys = set(getattr(import_module(module), table))
    more = f" and has the unknown {sorted(keys - set(wanted))}" if keys - set(wanted) else ""
    lacks = f" lacks a row for {sorted(set(wanted) - keys)}" if set(wanted) - keys else ""
    return f"{name}{lacks}{more}" if lacks or more else ""


@pytest.mark.keras
@pytest.mark.parametrize("name", TASK_TABLES)
def test_every_task_is_a_row(name):
    assert difference(name, get_args(Task)) == ""


@pytest.mark.keras
@pytest.mark.parametrize("name", CLASS_TASK_TABLES)
def test_every_task_with_classes_is_a_row(name):
    assert difference(name, [task for task in TASKS if TASKS[task].label_column]) == ""


@pytest.mark.parametrize("name", COLUMN_TABLES)
def test_every_column_with_a_class_table_is_a_row(name):
    filled = {name for task in TASKS.values() if task.label_column for name in task.columns}
    assert difference(name, filled - {"mask_areas"}) == ""


def test_a_table_that_lacks_a_row_is_named_with_the_row(monkeypatch):
    monkeypatch.delitem(LABEL_COLUMNS, "boxes")
    name = "cvbatch.datasets.schema.LABEL_COLUMNS"
    assert difference(name, [*CLASS_COLUMNS, "pose"]) == f"{name} lacks a row for ['boxes', 'pose']"
    assert difference(name, ["labels"]) == f"{name} and has the unknown ['mask']"


def test_every_kind_of_prediction_is_stored():
    kinds = {field.name for field in fields(ModelPredictions)}
    assert difference("cvbatch.results.schema.PREDICTION_KINDS", kinds) == ""
    filled = {column for task in TASKS.values() for column in task.columns}
    requested = {"heatmaps", "box_masks"}
    assert difference("cvbatch.results.schema.COLUMN_TYPES", filled | requested) == ""


def test_a_task_has_labels_and_metrics():
    for task, info in TASKS.items():
        assert info.label_column in {"", *CLASS_COLUMNS}, task
    for column, task in CLASS_COLUMNS.items():
        assert column in TASKS[task].columns
        assert column == TASKS[task].label_column


def test_images_are_cut_for_tasks_that_merge_tiles():
    for task, section in MODEL_SECTIONS.items():
        has_tiles = "tiles" in section.model_fields
        assert has_tiles == (POSTPROCESSORS[task].merge is not tiles_unsupported), task


def test_every_column_is_imported_and_exported():
    no_boxes = np.zeros((0, 4), np.float32), *(np.zeros(0, kind) for kind in ("i4", "f4", bool))
    row = ImportedRow("a", b"", 1, 1, "train", [], *no_boxes, None)
    assert set(row.classes_present) == set(CLASS_COLUMNS)
    exported = {column for one in EXPORTS.values() for column in one.COLUMNS}
    assert exported == {*CLASS_COLUMNS, "box_masks"}


# A task and a column that no other module knows


class ToneConfig(Section):
    """Says whether an image is dark or bright."""

    task: Literal["tone"]
    threshold: int = 100


def read_tones(config, spec, outputs, image_index, placements):
    is_bright = (outputs["mean"] >= config.threshold).astype(np.int32)
    scores = np.ones(len(is_bright), np.float32)
    return ModelPredictions(labels=Labels(is_bright, scores, image_index))


def test_a_new_task_is_predicted_and_stored_through_its_rows(monkeypatch, tmp_path):
    monkeypatch.setitem(TASKS, "tone", TaskInfo(("labels",), "labels", is_whole_image=True))
    monkeypatch.setitem(POSTPROCESSORS, "tone", Postprocessor(read_tones))
    config = ToneConfig(task="tone")
    spec = ModelSpec("tones", "tone", ("dark", "bright"), 2, 2, "stretch", "f" * 64)
    pixels = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (0, 99, 100, 255)])
    sides = np.full(4, 2, np.int32)
    ids = list("abcd")
    batch = ImageBatch("c", ids, ids, sides, sides, {}, {InputKey(2, 2, "stretch"): pixels})

    model = LoadedModel(config, spec, lambda images: {"mean": images.mean((1, 2, 3))}, 3)
    predictions = Predictor([model])(batch)
    (predictions,) = table_to_predictions(predictions_to_table([predictions]))
    models = [schema.ResultModel(config, spec)]
    arrow_schema = schema.result_schema(models)
    rows = schema.to_rows(predictions, models, arrow_schema)
    metadata = schema.result_metadata(models, "f" * 64, "1.0")
    part = tmp_path / "part.parquet"
    part.write_bytes(writer.encode_part([rows], arrow_schema, metadata))

    labels = [[one["label"] for one in labels] for labels in rows["labels"].to_pylist()]
    assert labels == [["dark"], ["dark"], ["bright"], ["bright"]]
    assert read_footer(Storage(), str(part)).models["labels"]["options"] == {"threshold": 100}


def score_counts(rows):
    predicted, truth, num_classes = rows.column("counts")
    every, hit = np.arange(len(truth)), np.array(predicted) == np.array(truth)
    true, answer = np.array(truth), np.array(predicted)
    rows.sums.metrics["counts_tally"] = rows.empty_counts(num_classes).add(
        count_by_class(rows.weights, every[hit], true[hit], num_classes),
        count_by_class(rows.weights, every, true, num_classes),
        count_by_class(rows.weights, every, answer, num_classes),
    )


def test_a_new_column_is_evaluated_through_its_rows(monkeypatch):
    def figures(order, scored, replicates):
        return overall_rows(
            "counting", scored.metric("counts_tally", ClassCounts), ("accuracy",), 4
        )

    row = evaluation.ColumnEvaluation(
        score_counts, figures, lambda *_: {"more": 1}, lambda *_: {}, (), ("accuracy",)
    )
    monkeypatch.setitem(CLASS_COLUMNS, "counts", "counting")
    monkeypatch.setitem(LABEL_COLUMNS, "counts", LabelColumn({"counts": pa.int32()}, "counts"))
    monkeypatch.setitem(evaluation.COLUMN_EVALUATIONS, "counts", row)
    order = EvaluationSpec({"counts": ("none", "one")}, {}, (), False, None, 0.5, 0.5, 0, 0)
    predicted = pa.table({"image_id": list("abcd"), "status": ["ok"] * 4, "counts": [0, 1, 1, 1]})
    truth = pa.table({"counts": [0, 1, 1, 0]})

    scored = merge_scores(
        evaluation.score_rows(order, predicted.slice(i, 2), truth.slice(i, 2), "here")
        for i in (0, 2)
    )

    (figure,) = evaluation.metric_rows(order, scored, {})
    assert (figure.task, figure.metric, figure.value) == ("counting", "accuracy", 0.75)
    details = evaluation.metric_details(order, scored)
    assert b'"more": 1' in to_json([figure], {}, details)
    assert evaluation.plot_files(order, scored, [figure]) == {}
