"""The plots of an evaluation draw the numbers of its metrics."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from cvbatch.config.evaluate import parse_evaluation
from cvbatch.core.errors import ModelError
from cvbatch.evaluate import plots
from cvbatch.evaluate.boxes import box_details, box_plots
from cvbatch.evaluate.columns import metric_details, metric_rows, plot_files, score_rows
from cvbatch.evaluate.job import evaluate
from cvbatch.evaluate.labels import label_plots
from cvbatch.evaluate.scoring import merge_scores
from cvbatch.metrics.counts import ClassCounts
from tests.evaluate.test_job import all_tasks
from tests.evaluate.test_scoring import all_metrics, make_spec, tables
from tests.support.evaluations import TextListener

KINDS = {
    "labels": ("precision_recall", "reliability", "confusion", "confusion_counts", "classes"),
    "mask": ("confusion", "confusion_counts", "classes"),
    "boxes": ("precision_recall", "confusion", "confusion_counts", "classes"),
}
TASKS = {"labels": "classification", "mask": "segmentation", "boxes": "detection"}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """(spec, scores) of random predictions of every task."""
    rows, truth, classes = all_tasks(6)
    predicted, true = tables(tmp_path_factory.mktemp("scored"), rows, truth, classes)
    spec = make_spec(classes)
    return spec, score_rows(spec, predicted, true, "rows")


def test_every_plot_is_written_as_png_and_svg(scored):
    files = plot_files(*scored, all_metrics(*scored))
    assert set(files) == {
        f"{kind}_{TASKS[column]}.{suffix}"
        for column, kinds in KINDS.items()
        for kind in kinds
        for suffix in ("png", "svg")
    }


def test_the_confusion_matrix_of_boxes_has_the_counts_of_precision_and_recall(scored):
    spec, scores = scored
    counts = np.array(box_details(spec, scores)["confusion"]["counts"])
    classes = len(spec.classes["boxes"])
    assert box_details(spec, scores)["confusion"]["classes"][-1] == plots.BACKGROUND
    tally = scores.metric("boxes_tally", ClassCounts)
    assert tally.hits[0].sum() > 0
    assert np.diagonal(counts)[:classes].tolist() == tally.hits[0].tolist()
    assert counts[:classes].sum(axis=1).tolist() == tally.support[0].tolist()
    assert counts[:, :classes].sum(axis=0).tolist() == tally.predicted[0].tolist()
    assert counts[classes, classes:].sum() == 0 and counts[:, -1].sum() == 0
    json.dumps(metric_details(spec, scores))


def test_curves_of_boxes_at_the_threshold_are_the_metrics(scored):
    spec, scores = scored
    _, *by_score = box_plots(spec, scores)["precision_recall"].axes
    rows = {(row.class_name, row.metric): row.value for row in metric_rows(spec, scores, {})
            if row.task == "detection"}  # fmt: skip
    lines = {axes.get_ylabel().lower(): axes.lines for axes in by_score}
    for k, name in enumerate(spec.classes["boxes"]):
        for metric in ("precision", "recall"):
            colour = f"C{k}"
            (line,) = (one for one in lines[metric] if one.get_color() == colour)
            x, y = line.get_data()
            at = int(np.argmin(abs(x - spec.score_threshold)))
            assert x[at] == pytest.approx(spec.score_threshold)
            expected = rows[name, metric]
            assert (np.isnan(y[at]) and expected is None) or y[at] == pytest.approx(expected)


def test_curves_of_labels_count_every_listed_score(scored):
    _, scores = scored
    rows, truth, classes = all_tasks(6)
    for k in range(len(classes["labels"])):
        curve = scores.metrics["precision"].score_curve(k)
        listed = [
            (score, truth[name]["labels"][0][0] == k)
            for name, row in rows.items()
            for class_id, score in row.get("labels", ())
            if class_id == k and not row.get("failed")
        ]
        assert curve.support == sum(row["labels"][0][0] == k for row in truth.values())
        for threshold in (-1.0, 0.3, 0.5, 0.9):
            at = curve.at(np.array([threshold]))
            above = [is_right for score, is_right in listed if score >= threshold]
            assert (at.predicted[0], at.hits[0]) == (len(above), sum(above))


def test_without_images_the_plots_are_empty(scored, tmp_path):
    rows, truth, classes = all_tasks(6)
    predicted, true = tables(tmp_path, rows, truth, classes)
    spec = make_spec(classes)
    empty = merge_scores([score_rows(spec, predicted[:0], true[:0], "none")])
    for figure in (*label_plots(spec, empty).values(), *box_plots(spec, empty).values()):
        notes = [text.get_text() for axes in figure.axes for text in axes.texts]
        assert set(notes) & {"no labelled objects", "no predictions", "nothing to compare"}


def test_without_matplotlib_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    job = {"predictions": {"uri": str(tmp_path)}, "truth": {"uri": str(tmp_path)},
           "sink": {"uri": str(tmp_path / "out")}}  # fmt: skip
    with pytest.raises(ModelError, match=r"matplotlib is not installed; .*cvbatch\[plots\]"):
        evaluate(parse_evaluation(job), TextListener())
    assert not (tmp_path / "out").exists()
