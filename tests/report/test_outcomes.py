"""Outcomes of single images add up to the metrics of `cvbatch.evaluate`, and follow from scores."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from cvbatch.config.evaluate import EvaluationConfig
from cvbatch.evaluate.class_map import make_evaluation_spec
from cvbatch.evaluate.columns import score_part
from cvbatch.evaluate.join import join, load_ground_truth
from cvbatch.evaluate.plots import BACKGROUND
from cvbatch.evaluate.scoring import merge_scores
from cvbatch.geometry.boxes import iou
from cvbatch.metrics.counts import ClassCounts
from cvbatch.report.disagreements import compare_with_labels
from cvbatch.report.statistics import RowRef
from cvbatch.results.result import Result
from cvbatch.storage.store import Storage
from tests.support.evaluations import write_result, write_truth

CLASSES = {"labels": ("a", "b", "c"), "boxes": ("a", "b")}


def random_box(rng, score):
    x, y = rng.uniform(0, 60, 2)
    corners = (x, y, x + rng.uniform(20, 50), y + rng.uniform(20, 50))
    return (*map(float, corners), int(rng.integers(0, 2)), float(score))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A result and its labels: near and far boxes, crowds, images without labels or boxes."""
    folder, rng = tmp_path_factory.mktemp("outcomes"), np.random.default_rng(4)
    rows, truth = {}, {}
    for number in range(40):
        true_boxes = [random_box(rng, rng.random() < 0.15) for _ in range(rng.integers(0, 4))]
        near = [
            (*(float(side + rng.normal(0, 4)) for side in box[:4]), box[4], float(rng.random()))
            for box in true_boxes
            for _ in range(rng.integers(0, 3))
        ]
        boxes = sorted([*near, random_box(rng, rng.random())], key=lambda box: -box[5])
        scores = np.sort(rng.dirichlet(np.ones(3)))[::-1][:2].tolist()
        labels = list(zip(rng.permutation(3)[:2].tolist(), scores, strict=True))
        rows[f"i{number:02d}"] = {"labels": labels, "boxes": boxes}
        label = [(int(rng.integers(0, 3)), 1.0)] if number % 7 else []
        truth[f"i{number:02d}"] = {"labels": label, "boxes": true_boxes}
    rows["i03"] = {"failed": True}
    write_result(folder / "result", rows, CLASSES, part_images=6)
    write_truth(folder / "truth", truth, CLASSES)
    return Result(Storage(), str(folder / "result")), str(folder / "truth")


def compared(data, **evaluation):
    result, truth = data
    chosen = [RowRef(ref, i) for ref in result.done for i in range(6)]
    options = {"evaluation": evaluation, "chosen": chosen}
    return compare_with_labels(result, [truth], None, **options, is_sample=False)


def spec_and_parts(data, **evaluation):
    result, truth = data
    ground_truth = load_ground_truth(result.storage, [truth], None)
    config = EvaluationConfig(bootstrap=0, **evaluation)
    spec = make_evaluation_spec(config, result, ground_truth)
    return spec, join(result, ground_truth, None).parts


@pytest.mark.parametrize("iou_threshold", [0.5, 0.75])
@pytest.mark.parametrize("low", [0.0, 0.3, 0.7])
def test_true_positives_and_misses_are_those_of_evaluate_at_every_minimum_score(
    data, low, iou_threshold
):
    spec, parts = spec_and_parts(data, score_threshold=low, iou_threshold=iou_threshold)
    scores = merge_scores([score_part(spec, part) for part in parts])
    counts = scores.metric("boxes_tally", ClassCounts)
    hits, support, predicted = (
        int(values[0].sum()) for values in (counts.hits, counts.support, counts.predicted)
    )
    rows = compared(data, iou_threshold=iou_threshold).rows
    boxes = {
        RowRef(ref, i): row.boxes or []
        for ref in data[0].done
        for i, row in enumerate(data[0].rows(ref))
    }
    outcomes = Counter(
        outcome
        for row_ref, comparison in rows.items()
        for box, outcome in zip(boxes[row_ref], comparison.outcomes, strict=True)
        if box["score"] >= low
    )
    true_boxes = [box for row in rows.values() for box in row.true_boxes if not box.is_crowd]
    missed = [box for box in true_boxes if box.found is None or box.found < low]
    assert hits == outcomes["tp"] > 5
    assert predicted - hits == outcomes["fp"] > 5
    assert (support, support - hits) == (len(true_boxes), len(missed))
    assert any(box.is_crowd for row in rows.values() for box in row.true_boxes)


def test_a_found_object_overlaps_a_true_positive_of_its_class_with_that_score(data):
    rows = compared(data).rows
    num_found = 0
    for ref in data[0].done:
        for i, row in enumerate(data[0].rows(ref)):
            comparison = rows[RowRef(ref, i)]
            for box in comparison.true_boxes:
                if box.found is None:
                    continue
                number = [b["score"] for b in row.boxes].index(box.found)
                assert comparison.outcomes[number] == "tp"
                assert row.boxes[number]["label"] == box.label
                overlap = iou(row.xyxy[[number]].astype(float), np.array([box.xyxy]))
                assert overlap.item() >= 0.5
                num_found += 1
    assert num_found > 10


def test_cells_add_up_to_the_confusion_matrix(data):
    spec, parts = spec_and_parts(data)
    scores = merge_scores([score_part(spec, part) for part in parts])
    cells = Counter(cell for row in compared(data).rows.values() for cell in row.cells)
    names = CLASSES["labels"]
    for true, predicted in np.ndindex(3, 4):
        cell = ("labels", names[true], (*names, "")[predicted])
        assert cells[cell] == scores.metrics["confusion"].counts[true, predicted]
    assert sum(cells[cell] for cell in cells if cell.column == "labels") == 34  # one true label
    names = (*CLASSES["boxes"], BACKGROUND)
    pairs = np.argwhere(scores.metrics["box_confusion"].counts).tolist()
    expected = {("boxes", names[true], (*names, "")[predicted]) for true, predicted in pairs}
    assert {cell for cell in cells if cell.column == "boxes"} == expected
    assert any(cell.true == BACKGROUND for cell in cells)


def test_the_loss_is_the_cross_entropy_or_its_lower_bound(data):
    rows, num_bounds = compared(data).rows, 0
    for ref in data[0].done:
        for i, row in enumerate(data[0].rows(ref)):
            comparison = rows[RowRef(ref, i)]
            if row.error or not comparison.labels:
                assert comparison.loss is None
                continue
            stored = {label["label"]: label["score"] for label in row.labels}
            (true,) = comparison.labels
            remainder = min(1 - sum(stored.values()), min(stored.values()))
            probability = stored.get(true, remainder)
            assert comparison.loss == pytest.approx(-math.log(probability), abs=1e-6)
            assert comparison.is_loss_bound == (true not in stored)
            num_bounds += comparison.is_loss_bound
    assert 0 < num_bounds < 34


def test_the_search_of_a_sample_finds_the_lowest_agreement(data):
    result, truth = data
    everything = compared(data).rows
    sample = compare_with_labels(result, [truth], None, {}, [], is_sample=True)
    agreements = [sample.rows[row_ref].mean_agreement for row_ref in sample.lowest]
    known = [row.mean_agreement for row in everything.values()]
    known = sorted(value for value in known if value < 1)
    assert agreements == known[: len(agreements)] and len(agreements) == 32
    assert sample.num_searched == 40
    assert {ref: row.agreement for ref, row in sample.rows.items()}.items() <= {
        ref: row.agreement for ref, row in everything.items()
    }.items()
