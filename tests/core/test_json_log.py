"""With --log json every line on stderr is one JSON object, whoever wrote it."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from datetime import datetime

import pytest

from cvbatch.cli.main import main
from cvbatch.core.json_log import JsonLog, log_format, new_run_id
from tests.support import jobs

ALWAYS = {"time", "level", "event", "message", "run"}


def objects(told):
    found = [json.loads(line) for line in told.splitlines()]
    for one in found:
        assert one.keys() >= ALWAYS
        assert datetime.fromisoformat(one["time"]).tzinfo is not None
    return found


def written(fill):
    stream = io.StringIO()
    fill(JsonLog(stream, "r"))
    return objects(stream.getvalue())


def test_nothing_said_is_nothing_written():
    assert written(lambda log: log.write("")) == []
    assert written(lambda log: log.write("\n \n")) == []


def test_ids_of_runs_differ_and_sort_by_time():
    ids = [new_run_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert [one[:16] for one in ids] == sorted(one[:16] for one in ids)


def test_numbers_stay_numbers_and_what_json_lacks_is_null():
    values = {"a": 1, "b": 0.5, "c": float("nan"), "d": {"e": float("inf")}}
    (said,) = written(lambda log: log.write_event("chunk", "hello", **values))
    assert (said["event"], said["message"], said["run"]) == ("chunk", "hello", "r")
    assert {name: said[name] for name in "abcd"} == {"a": 1, "b": 0.5, "c": None, "d": {"e": None}}


def test_what_is_printed_in_pieces_is_an_object_a_line():
    def fill(log):
        for piece in ('Trace "back', '" (most\n', "\n  File é\nlast"):
            print(piece, end="", file=log)
        log.write("\n")

    assert [one["message"] for one in written(fill)] == ['Trace "back" (most', "  File é", "last"]


def test_secrets_are_hidden_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "made-up-and-secret")

    def fill(log):
        log.write_event(
            "note", "key made-up-and-secret", where={"uri": "s3://a:made-up-and-secret@b/c"}
        )
        print("made-up-and-secret", file=log)

    assert "made-up-and-secret" not in json.dumps(written(fill))


def test_pythons_log_is_events_while_the_block_lasts(capsys):
    with log_format("json", "r"):
        logging.getLogger("some.where").warning("look out %d", 3)
        print("half a line", end="", file=sys.stderr)
    print("after", file=sys.stderr)
    *lines, last = capsys.readouterr().err.splitlines()
    warning, rest = objects("\n".join(lines))
    assert (warning["event"], warning["level"], warning["message"]) == (
        "log", "warning", "look out 3",
    )  # fmt: skip
    assert warning["logger"] == "some.where"
    assert (rest["message"], last) == ("half a line", "after")


def test_a_refusal_is_the_last_object(tmp_path, capsys):
    path = jobs.write_job(tmp_path / "job.yaml", {"sink": {"uri": "x"}})
    status = main(["predict", "--config", str(path), "--log", "json"])
    *_, end = objects(capsys.readouterr().err)
    assert (status, end["event"], end["status"], end["level"]) == (2, "end", 2, "error")
    assert end["message"].startswith("cvbatch: ")


def test_a_crash_is_objects_too():
    code = (
        "from cvbatch.core.json_log import logging_as\n"
        "with logging_as('json', 'r'):\n    raise KeyError(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert objects(done.stderr)[-1]["message"] == "KeyError: 1"


@pytest.mark.ray
@pytest.mark.keras
def test_a_job_tells_of_its_chunks(keras_files, tmp_path):
    source = jobs.write_files(tmp_path / "in", jobs.archive_files(6))
    values = jobs.job(source, tmp_path / "sink", keras_files, max_failure_fraction=0.1)
    del values["models"][1:]
    path = jobs.write_job(tmp_path / "job.yaml", values)
    status, said, told = jobs.cvbatch("predict", "--config", path, "--log", "json", "--json")
    assert status == 3, told
    events, summary = objects(told), json.loads(said)
    assert {event["run"] for event in events} == {summary["run"]}
    (begun,) = [event for event in events if event["event"] == "begun"]
    chunks = [event for event in events if event["event"] == "chunk"]
    assert (begun["chunks"], begun["images"]) == (len(chunks), 8) == (2, 8)
    names = {f"part-{event['chunk']}.parquet" for event in chunks}
    assert names == set(jobs.parts(tmp_path / "sink"))
    assert [event["chunks_left"] for event in chunks] == [1, 0]
    for name, whole in (("images", 8), ("failed", 2), ("bytes", summary["num_bytes"])):
        assert sum(event[name] for event in chunks) == whole
    sizes = [one.stat().st_size for one in source.rglob("*") if one.is_file()]
    assert sum(event["bytes_read"] for event in chunks) == summary["num_bytes_read"] == sum(sizes)
    for stage, seconds in summary["stage_seconds"].items():
        assert sum(event["seconds"][stage] for event in chunks) == pytest.approx(seconds)
        assert seconds > 0
    assert (events[-1]["event"], events[-1]["status"]) == ("end", 3)
    assert "decode/empty 1" in events[-1]["message"]
