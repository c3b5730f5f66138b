"""With --log json every line on stderr is one JSON object, also lines printed by other code."""

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

REQUIRED_KEYS = {"time", "level", "event", "message", "run"}


def parse_events(text):
    events = [json.loads(line) for line in text.splitlines()]
    for event in events:
        assert event.keys() >= REQUIRED_KEYS
        assert datetime.fromisoformat(event["time"]).tzinfo is not None
    return events


def written_by(write):
    stream = io.StringIO()
    write(JsonLog(stream, "r"))
    return parse_events(stream.getvalue())


def test_empty_text_writes_nothing_by():
    assert written_by(lambda log: log.write("")) == []
    assert written_by(lambda log: log.write("\n \n")) == []


def test_run_ids_are_unique_and_sort_by_time():
    ids = [new_run_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert [run_id[:16] for run_id in ids] == sorted(run_id[:16] for run_id in ids)


def test_nan_and_infinity_become_null():
    values = {"a": 1, "b": 0.5, "c": float("nan"), "d": {"e": float("inf")}}
    (event,) = written_by(lambda log: log.write_event("chunk", "hello", **values))
    assert (event["event"], event["message"], event["run"]) == ("chunk", "hello", "r")
    assert {name: event[name] for name in "abcd"} == {"a": 1, "b": 0.5, "c": None, "d": {"e": None}}


def test_text_printed_in_pieces_is_one_object_per_line():
    def write(log):
        for piece in ('Trace "back', '" (most\n', "\n  File é\nlast"):
            print(piece, end="", file=log)
        log.write("\n")

    assert [event["message"] for event in written_by(write)] == [
        'Trace "back" (most',
        "  File é",
        "last",
    ]


def test_secrets_are_redacted_in_messages_values_and_printed_text(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "made-up-and-secret")

    def write(log):
        log.write_event(
            "note", "key made-up-and-secret", where={"uri": "s3://a:made-up-and-secret@b/c"}
        )
        print("made-up-and-secret", file=log)

    assert "made-up-and-secret" not in json.dumps(written_by(write))


def test_log_records_are_events_until_the_block_ends(capsys):
    with log_format("json", "r"):
        logging.getLogger("some.where").warning("look out %d", 3)
        print("half a line", end="", file=sys.stderr)
    print("after", file=sys.stderr)
    *lines, last = capsys.readouterr().err.splitlines()
    warning, rest = parse_events("\n".join(lines))
    assert (warning["event"], warning["level"], warning["message"]) == (
        "log", "warning", "look out 3",
    )  # fmt: skip
    assert warning["logger"] == "some.where"
    assert (rest["message"], last) == ("half a line", "after")


def test_an_invalid_job_is_reported_in_the_last_event(tmp_path, capsys):
    path = jobs.write_job(tmp_path / "job.yaml", {"sink": {"uri": "x"}})
    status = main(["predict", "--config", str(path), "--log", "json"])
    *_, end = parse_events(capsys.readouterr().err)
    assert (status, end["event"], end["status"], end["level"]) == (2, "end", 2, "error")
    assert end["message"].startswith("cvbatch")


def test_a_traceback_is_events():
    code = (
        "from cvbatch.core.json_log import log_format\n"
        "with log_format('json', 'r'):\n    raise KeyError(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert parse_events(done.stderr)[-1]["message"] == "KeyError: 1"


NOISE = """
import ctypes, logging, os, subprocess, sys, warnings
from cvbatch.cli import main
from cvbatch.core.json_log import CommandResult

def noisy(arguments):
    libc = ctypes.CDLL(None)
    for descriptor in (1, 2):
        os.write(descriptor, b"from C++ \\xff\\n")
        libc.dprintf(descriptor, b"from C\\rand again\\n")
        subprocess.run(f"echo from a child >&{descriptor}; printf unfinished", shell=True)
    print("text on stdout")
    print("text on stderr", file=sys.stderr)
    logging.getLogger("ray").warning("a node was lost")
    warnings.warn("careful")
    print('{"summary": 1}')
    if sys.argv[1] == "fails":
        raise KeyError("unexpected")
    import atexit
    atexit.register(os.write, 2, b"at the end\\n")
    return CommandResult("cvbatch: done", 0)

main._COMMANDS["report"] = noisy
sys.exit(main.main(["report", "x", "--log", "json"]))
"""


@pytest.mark.process
@pytest.mark.parametrize("outcome", ["done", "fails"])
def test_every_line_is_json_also_of_cpp_code_and_children(outcome):
    command = [sys.executable, "-c", NOISE, outcome]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"summary": 1}]
    events = parse_events(done.stderr)
    messages = [event["message"] for event in events]
    for text in ("from C++ \ufffd", "from C", "and again", "from a child"):
        assert sum(text == message.removeprefix("unfinished") for message in messages) == 2, text
    for text in ("text on stdout", "text on stderr", "a node was lost"):
        assert text in messages
    assert any("careful" in message for message in messages)
    if outcome == "done":
        assert (messages[-1], done.returncode) == ("cvbatch: done", 0)
    else:  # an unfinished line is completed after the traceback
        assert (messages[-2:], done.returncode) == (["KeyError: 'unexpected'", "unfinished"], 1)


@pytest.mark.process
@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--log", "json", "--bogus"],
        ["predict", "--log=json", "--set"],
        ["evaluate", "--log", "json", "--config", "nowhere.yaml"],
        ["import", "folders", "nowhere", "sink", "--log", "json"],
        ["export", "coco", "nowhere", "sink", "--log", "json"],
        ["report", "nowhere", "--log", "json"],
        ["nonsense", "--log", "json"],
    ],
)
def test_wrong_usage_and_refusals_are_the_last_event(arguments, tmp_path):
    status, stdout, stderr = jobs.cvbatch(*arguments, cwd=tmp_path)
    end = parse_events(stderr)[-1]
    assert (status, stdout) == (2, "")
    assert (end["event"], end["level"], end["status"]) == ("end", "error", 2)
    assert end["message"].startswith("cvbatch")


@pytest.mark.ray
@pytest.mark.keras
def test_a_job_writes_an_event_per_chunk(keras_files, tmp_path):
    source = jobs.write_files(tmp_path / "in", jobs.archive_files(6))
    values = jobs.job(source, tmp_path / "sink", keras_files, max_failure_fraction=0.1)
    del values["models"][1:]
    path = jobs.write_job(tmp_path / "job.yaml", values)
    status, stdout, stderr = jobs.cvbatch("predict", "--config", path, "--log", "json", "--json")
    assert status == 3, stderr
    events, summary = parse_events(stderr), json.loads(stdout)
    assert {event["run"] for event in events} == {summary["run"]}
    (begun,) = [event for event in events if event["event"] == "begun"]
    chunks = [event for event in events if event["event"] == "chunk"]
    assert (begun["chunks"], begun["images"]) == (len(chunks), 8) == (2, 8)
    names = {f"part-{event['chunk']}.parquet" for event in chunks}
    assert names == set(jobs.parts(tmp_path / "sink"))
    assert [event["chunks_left"] for event in chunks] == [1, 0]
    for name, total in (("images", 8), ("failed", 2), ("bytes", summary["num_bytes"])):
        assert sum(event[name] for event in chunks) == total
    sizes = [path.stat().st_size for path in source.rglob("*") if path.is_file()]
    assert sum(event["bytes_read"] for event in chunks) == summary["num_bytes_read"] == sum(sizes)
    for stage, seconds in summary["stage_seconds"].items():
        assert sum(event["seconds"][stage] for event in chunks) == pytest.approx(seconds)
        assert seconds > 0
    assert (events[-1]["event"], events[-1]["status"]) == ("end", 3)
    assert "decode/empty 1" in events[-1]["message"]
