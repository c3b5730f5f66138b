"""Scores of parts merge to the scores of all images, for any parts in any order."""

import itertools
import json

import numpy as np
import pytest

from cvbatch.core.errors import SourceError
from cvbatch.evaluate.boxes import bootstrap_average_precision, bootstrap_input
from cvbatch.evaluate.columns import metric_rows, score_rows
from cvbatch.evaluate.join import join, load_ground_truth, read_joined_part
from cvbatch.evaluate.metrics_table import to_parquet
from cvbatch.evaluate.scoring import EvaluationSpec, merge_scores
from cvbatch.results.result import Result
from cvbatch.storage.store import Storage
from tests.evaluate.test_job import all_tasks, random_masks
from tests.support.evaluations import write_result, write_truth

COLUMNS = ("labels", "mask", "boxes")


def make_spec(classes, **options):
    class_of = {column: np.arange(len(names)) for column, names in classes.items()}
    defaults = {"ks": (1, 2), "is_multi_label": False, "ignored_class": None}
    defaults |= {"score_threshold": 0.4, "iou_threshold": 0.5, "num_replicates": 9, "seed": 5}
    names = {column: tuple(names) for column, names in classes.items()}
    return EvaluationSpec(classes=names, class_of=class_of, **defaults | options)


def all_metrics(spec, scores):
    numbers = range(1, spec.num_replicates + 1)
    replicates = bootstrap_average_precision(bootstrap_input(spec, scores), numbers)
    return metric_rows(spec, scores, replicates)


def tables(folder, rows, truth, classes):
    """Return predictions and labels of all images as tables in the same order."""
    write_result(folder / "predictions", rows, classes, part_images=100)
    write_truth(folder / "truth", truth, classes)
    result = Result(Storage(), str(folder / "predictions"))
    (part,) = join(result, load_ground_truth(Storage(), [str(folder / "truth")], None), None).parts
    columns = [column for column in COLUMNS if column in classes]
    extra = ["box_is_crowd"] if "boxes" in classes else []
    return read_joined_part(part, ["image_id", "status", *columns], [*columns, *extra])


def test_no_image_gives_undefined_metrics(tmp_path):
    rows, truth, classes = all_tasks(6)
    predicted, true = tables(tmp_path, rows, truth, classes)
    spec = make_spec(classes)
    metrics = all_metrics(spec, merge_scores([score_rows(spec, predicted[:0], true[:0], "none")]))
    assert metrics
    assert {(row.value, row.low, row.count) for row in metrics} == {(None, None, 0)}


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_parts_merge_to_the_total_in_any_order(is_multi_label, tmp_path):
    rows, truth, classes = all_tasks(6)
    spec = make_spec(classes, is_multi_label=is_multi_label)
    predicted, true = tables(tmp_path, rows, truth, classes)
    total = merge_scores([score_rows(spec, predicted, true, "all")])
    rng = np.random.default_rng(0)
    for _ in range(4):
        cuts = [0, *np.sort(rng.choice(np.arange(1, 12), 4, replace=False)).tolist(), 12]
        parts = [
            score_rows(spec, predicted[a:b], true[a:b], "part") for a, b in itertools.pairwise(cuts)
        ]
        merged = merge_scores([parts[i] for i in rng.permutation(len(parts))])
        for name, metric in total.metrics.items():
            state = merged.metrics[name].to_state()
            assert json.dumps(metric.to_state()) == json.dumps(state), name
        assert (merged.counts, merged.failed) == (total.counts, total.failed)
        files = [to_parquet(all_metrics(spec, scores)) for scores in (total, merged)]
        assert files[0].equals(files[1])


def test_a_mask_of_another_size_counts_as_missing(tmp_path):
    rows, truth = random_masks(0, 2)
    rows["1"] = {"mask": rows["1"]["mask"][1:]}
    rows["4"], truth["4"] = {"failed": True}, truth["0"]
    predicted, true = tables(tmp_path, rows, truth, {"mask": ("sky", "sea", "sand")})
    spec = make_spec({"mask": ("sky", "sea", "sand")})
    scores = score_rows(spec, predicted, true, "rows")
    assert scores.counts["mask_size_differs"] == 1
    num_missing = int((truth["1"]["mask"] < 3).sum() + (truth["4"]["mask"] < 3).sum())
    assert scores.metrics["pixels"].counts[:, 3].sum() == num_missing


def test_a_class_beyond_the_class_table_is_refused(tmp_path):
    rows, truth = random_masks(0, 1)
    rows = {"0": rows["0"]}
    truth["0"]["mask"][0, 0] = 77
    predicted, true = tables(tmp_path, rows, truth, {"mask": ("sky", "sea", "sand")})
    with pytest.raises(SourceError, match="rows or its truth is damaged: a mask has class 77"):
        score_rows(make_spec({"mask": ("sky", "sea", "sand")}), predicted, true, "rows")
