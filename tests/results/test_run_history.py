"""Run history: summaries round trip, the last one first; damaged files are skipped."""

import json
from datetime import UTC, datetime

import pytest

from cvbatch.core.ignored import Ignored
from cvbatch.results import run_history
from cvbatch.storage.store import Storage

SUMMARY = {
    "num_images": 7,
    "num_failed": 2,
    "num_chunks": 3,
    "seconds": 1.5,
    "images_per_second": 9.0,
}


def test_a_sink_without_runs_has_no_history(tmp_path):
    assert list(run_history.latest(Storage(), str(tmp_path))) == []


def test_the_last_run_comes_first(tmp_path):
    began = datetime.now(UTC)
    for number in range(3):
        run_history.write_run(
            Storage(), str(tmp_path), {**SUMMARY, "num_images": number, "more": "ignored"}
        )
    runs = list(run_history.latest(Storage(), str(tmp_path)))
    assert [run.num_images for run in runs] == [2, 1, 0]
    assert began <= runs[-1].ended <= runs[0].ended <= datetime.now(UTC)
    expected = {**SUMMARY, "num_images": 2, "ended": runs[0].ended, "ignored": Ignored()}
    heatmaps = {"num_heatmaps": 0, "num_empty_heatmaps": 0}  # not in summaries of earlier versions
    assert runs[0]._asdict() == expected | heatmaps


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("99991231T235959.000000Z.json", "{"),
        ("99991231T235959.000000Z.json", "[]"),
        ("99991231T235959.000000Z.json", json.dumps({**SUMMARY, "seconds": None})),
        ("99991231T235959.000000Z.json", json.dumps({"num_images": 3})),
        ("notes.txt", json.dumps(SUMMARY)),
    ],
)
def test_files_that_are_not_summaries_are_skipped(tmp_path, name, text):
    run_history.write_run(Storage(), str(tmp_path), SUMMARY)
    (tmp_path / "_cvbatch" / "runs" / name).write_text(text)
    assert [run.num_failed for run in run_history.latest(Storage(), str(tmp_path))] == [2]


def test_a_run_states_what_it_did_not_read(tmp_path):
    known = {"ignored": {"video": 2, "junk": 1}, "ignored_examples": {"video": ["a.mov", "b.mov"]}}
    run_history.write_run(Storage(), str(tmp_path), SUMMARY)  # of an earlier version
    run_history.write_run(Storage(), str(tmp_path), SUMMARY | known)
    run_history.write_run(Storage(), str(tmp_path), SUMMARY | {"ignored": 3})  # damaged
    last, first = run_history.latest(Storage(), str(tmp_path))
    assert not first.ignored
    assert last.ignored.counts == known["ignored"]
    assert last.ignored.text == "video 2 (a.mov, b.mov), junk 1"
