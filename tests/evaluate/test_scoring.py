"""Scores of pieces merge to the scores of all, whatever the pieces and their order were."""

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
from tests.evaluate.test_job import all_tasks, random_masks
from tests.support.evaluations import write_result, write_truth

COLUMNS = ("labels", "mask", "boxes")


def order_of(classes, **said):
    every = {column: np.arange(len(names)) for column, names in classes.items()}
    plain = {"ks": (1, 2), "is_multi_label": False, "ignored": None, "score_threshold": 0.4}
    plain |= {"iou_threshold": 0.5, "num_replicates": 9, "seed": 5}
    return EvaluationSpec(
        classes={c: tuple(n) for c, n in classes.items()}, class_of=every, **plain | said
    )


def all_figures(order, scored):
    asked = bootstrap_input(order, scored)
    return metric_rows(
        order, scored, bootstrap_average_precision(asked, range(1, order.num_replicates + 1))
    )


def tables(folder, rows, truth, classes):
    """Return both sides of all images as tables in the same order."""
    write_result(folder / "said", rows, classes, part_images=100)
    write_truth(folder / "truth", truth, classes)
    result = Result(str(folder / "said"))
    (piece,) = join(result, load_ground_truth([str(folder / "truth")], None), None).parts
    columns = [column for column in COLUMNS if column in classes]
    extra = ["box_is_crowd"] if "boxes" in classes else []
    return read_joined_part(piece, ["image_id", "status", *columns], [*columns, *extra])


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_pieces_merge_to_the_whole_in_any_order(is_multi_label, tmp_path):
    rows, truth, classes = all_tasks(6)
    order = order_of(classes, is_multi_label=is_multi_label)
    said, true = tables(tmp_path, rows, truth, classes)
    whole = merge_scores([score_rows(order, said, true, "all")])
    rng = np.random.default_rng(0)
    for _ in range(4):
        cuts = [0, *np.sort(rng.choice(np.arange(1, 12), 4, replace=False)).tolist(), 12]
        pieces = [
            score_rows(order, said[a:b], true[a:b], "piece") for a, b in itertools.pairwise(cuts)
        ]
        parts = merge_scores([pieces[i] for i in rng.permutation(len(pieces))])
        for name, score in whole.scores.items():
            assert json.dumps(score.to_state()) == json.dumps(parts.scores[name].to_state()), name
        assert (parts.counts, parts.failed) == (whole.counts, whole.failed)
        figures = [to_parquet(all_figures(order, one)) for one in (whole, parts)]
        assert figures[0].equals(figures[1])


def test_no_image_gives_undefined_figures(tmp_path):
    rows, truth, classes = all_tasks(6)
    said, true = tables(tmp_path, rows, truth, classes)
    order = order_of(classes)
    figures = all_figures(order, merge_scores([score_rows(order, said[:0], true[:0], "none")]))
    assert figures
    assert {(one.value, one.low, one.count) for one in figures} == {(None, None, 0)}


def test_a_mask_of_another_size_counts_as_no_answer(tmp_path):
    rows, truth = random_masks(0, 2)
    rows["1"] = {"mask": rows["1"]["mask"][1:]}
    rows["4"], truth["4"] = {"failed": True}, truth["0"]
    said, true = tables(tmp_path, rows, truth, {"mask": ("sky", "sea", "sand")})
    order = order_of({"mask": ("sky", "sea", "sand")})
    scored = score_rows(order, said, true, "here")
    assert scored.counts["mask_size_differs"] == 1
    counted = int((truth["1"]["mask"] < 3).sum() + (truth["4"]["mask"] < 3).sum())
    assert scored.scores["pixels"].counts[:, 3].sum() == counted


def test_a_class_that_the_table_lacks_is_damage(tmp_path):
    rows, truth = random_masks(0, 1)
    rows = {"0": rows["0"]}
    truth["0"]["mask"][0, 0] = 77
    said, true = tables(tmp_path, rows, truth, {"mask": ("sky", "sea", "sand")})
    with pytest.raises(SourceError, match="here or its truth is damaged: a mask has class 77"):
        score_rows(order_of({"mask": ("sky", "sea", "sand")}), said, true, "here")
