"""Runs are told as they were kept, the last one first; what is damaged is not among them."""

import json
from datetime import UTC, datetime

import pytest

from cvbatch.results import run_history
from cvbatch.storage.store import Storage

DID = {"num_images": 7, "num_failed": 2, "num_chunks": 3, "seconds": 1.5, "images_per_second": 9.0}


def test_a_sink_without_runs_tells_of_none(tmp_path):
    assert list(run_history.latest(Storage(), str(tmp_path))) == []


def test_the_last_run_comes_first(tmp_path):
    began = datetime.now(UTC)
    for number in range(3):
        run_history.write_run(
            Storage(), str(tmp_path), {**DID, "num_images": number, "more": "of it"}
        )
    found = list(run_history.latest(Storage(), str(tmp_path)))
    assert [run.num_images for run in found] == [2, 1, 0]
    assert began <= found[-1].ended <= found[0].ended <= datetime.now(UTC)
    assert found[0]._asdict() == {**DID, "num_images": 2, "ended": found[0].ended}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("99991231T235959.000000Z.json", "{"),
        ("99991231T235959.000000Z.json", "[]"),
        ("99991231T235959.000000Z.json", json.dumps({**DID, "seconds": None})),
        ("99991231T235959.000000Z.json", json.dumps({"num_images": 3})),
        ("notes.txt", json.dumps(DID)),
    ],
)
def test_what_is_no_summary_hides_no_other(tmp_path, name, text):
    run_history.write_run(Storage(), str(tmp_path), DID)
    (tmp_path / "_cvbatch" / "runs" / name).write_text(text)
    assert [run.num_failed for run in run_history.latest(Storage(), str(tmp_path))] == [2]
