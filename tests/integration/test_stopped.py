"""SIGTERM and Ctrl-C stop a job within seconds in any phase, and no process remains."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest

from tests.support import jobs
from tests.support.waiting import until
from tests.support.watched_job import POLL_INTERVAL_S, WatchedJob

pytestmark = [pytest.mark.ray, pytest.mark.keras]

LIMIT_S = 10.0
LAST_LINE = "cvbatch: interrupted; run the same command to resume"
TERMINATE = (signal.SIGTERM, False)
CTRL_C = (signal.SIGINT, True)  # a terminal sends it to the foreground process group


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return jobs.write_files(tmp_path_factory.mktemp("archive"), jobs.archive_files(28))


@pytest.fixture(scope="module")
def job_of(archive, keras_files, tmp_path_factory):
    """Return a function that writes the job file for a sink."""

    def write(sink):
        values = jobs.job(archive, sink, keras_files, chunk_images=1)
        values["models"] = values["models"][:1]
        return jobs.write_job(sink.parent / "job.yaml", values)

    return write


@pytest.fixture(scope="module")
def done(job_of, tmp_path_factory):
    sink = tmp_path_factory.mktemp("done") / "sink"
    status, _, stderr = jobs.cvbatch("predict", "--config", job_of(sink))
    assert status == 0, stderr
    return sink


def stop(job, number, to_group):
    """Send the signal; check that the job ends in time with all its processes."""
    job.family()
    job.send(number, to_group)
    sent = time.monotonic()
    status = job.ended(4 * LIMIT_S)
    seconds = time.monotonic() - sent
    assert status == 1, job.stderr()
    assert job.stderr().strip().splitlines()[-1] == LAST_LINE
    assert "Traceback" not in job.stderr()
    assert seconds < LIMIT_S
    while (remaining := job.family()) and time.monotonic() < sent + LIMIT_S:
        time.sleep(POLL_INTERVAL_S)
    assert [process.cmdline() for process in remaining] == []


@pytest.mark.parametrize(
    "stop_signal",
    [TERMINATE, pytest.param(CTRL_C, marks=pytest.mark.soak)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_while_models_build(job_of, tmp_path, stop_signal):
    sink = tmp_path / "sink"
    with WatchedJob(job_of(sink), WATCHED_SLOW_MODULE="cvbatch.inference.compile") as job:
        job.until(job.started, "a process that builds")
        stop(job, *stop_signal)
    assert not sink.exists()


@pytest.mark.parametrize(
    "stop_signal",
    [pytest.param(TERMINATE, marks=pytest.mark.soak), CTRL_C],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_while_chunks_are_written(job_of, done, tmp_path, stop_signal):
    sink = jobs.carry_programs(done, tmp_path / "sink")
    path = job_of(sink)
    with WatchedJob(path, pace_s=0.2) as job:
        job.until(lambda: len(jobs.parts(sink)) >= 2, "2 parts")
        stop(job, *stop_signal)
    written = jobs.parts(sink)
    assert 2 <= len(written) < 30
    status, _, stderr = jobs.cvbatch("predict", "--config", path)
    assert status == 0, stderr
    assert jobs.parts(sink) == jobs.parts(done)
    assert {name: jobs.parts(sink)[name] for name in written} == written


def test_a_killed_driver_leaves_no_process_that_builds_models(job_of, tmp_path):
    with WatchedJob(
        job_of(tmp_path / "sink"), WATCHED_SLOW_MODULE="cvbatch.inference.compile"
    ) as job:
        (builder,) = job.until(job.started, "a process that builds")
        job.kill_driver()
        until(lambda: not is_in(job, builder.pid), "the end of the process that builds", LIMIT_S)


@pytest.mark.soak
@pytest.mark.parametrize("log", ["text", "json"])
def test_a_lost_worker_is_one_line_of_the_job_and_none_of_ray(job_of, done, tmp_path, log):
    sink = jobs.carry_programs(done, tmp_path / "sink")
    with WatchedJob(job_of(sink), pace_s=0.2, options=["--log", log]) as job:
        job.until(lambda: len(jobs.parts(sink)) >= 2, "2 parts")
        job.kill_actor(random.Random(0))
        assert job.ended() == 0, job.stderr()
        lines, stdout = job.stderr().splitlines(), job.stdout()
    assert jobs.parts(sink) == jobs.parts(done)
    if log == "json":
        events = [json.loads(line) for line in lines]
        (summary,) = map(json.loads, stdout.splitlines())
        assert summary["num_images"] == 30
        assert "printed" not in {event["event"] for event in events}
        lines = [event["message"] for event in events]
    else:
        assert stdout == ""
    assert sum("a worker died, its chunk is processed again" in line for line in lines) == 1
    assert "raylet" not in "".join(lines)


def is_in(job, pid):
    return pid in {process.pid for process in job.family()}


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(12))
def test_at_random_times_during_the_start(job_of, done, tmp_path, seed):
    """While Ray starts and creates actors, its own signal handlers are installed."""
    rng = random.Random(seed)
    sink = jobs.carry_programs(done, tmp_path / "sink")
    with WatchedJob(job_of(sink), pace_s=1.0) as job:
        job.until(lambda: "listing" in job.stderr(), "the listing")
        time.sleep(rng.uniform(0, float(os.environ.get("STOP_WITHIN_S", "8"))))
        stop(job, *rng.choice([TERMINATE, CTRL_C]))
