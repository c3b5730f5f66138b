"""Empty heatmaps are counted from the predictions to the summary."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cvbatch.core.types import ChunkReport, Heatmaps
from cvbatch.predict.summary import Summary


def heatmaps(*maps):
    arrays = [np.array(values, np.float32) for values in maps]
    count = len(arrays)
    return Heatmaps(
        np.concatenate([array.ravel() for array in arrays]),
        np.array([array.shape[0] for array in arrays], np.int32),
        np.array([array.shape[1] for array in arrays], np.int32),
        np.zeros(count, np.int32),
        np.zeros(count, np.float32),
        np.arange(count),
    )


def test_a_map_is_empty_if_it_is_0_everywhere():
    assert heatmaps([[0, 0, 0]], [[0], [1]], [[0, 0], [0, 0]], [[0, 1e-9]]).num_empty == 2


@pytest.mark.parametrize(
    ("num_empty", "score", "expected"),
    [
        (0, "probability", ""),
        (5, "probability", ""),  # 5 of 100
        (6, "logit", "6 of 100 heatmaps are empty, 0 everywhere"),
        (6, "probability", "heatmap.score: logit"),
    ],
)
def test_the_note_suggests_logits_if_many_are_empty(num_empty, score, expected):
    summary = Summary("out", "abc")
    for chunk, empty in (("a", num_empty), ("b", 0)):
        report = ChunkReport(chunk, 50, {}, 1, {}, num_heatmaps=50, num_empty_heatmaps=empty)
        summary.add(report)
    note = summary.empty_heatmaps_note(score)
    assert expected in note and bool(note) == bool(expected)
    assert ("logit" in note) == ("logit" in expected)
    assert json.loads(json.dumps(summary.as_json()))["num_empty_heatmaps"] == num_empty
