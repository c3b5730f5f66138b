"""A job told to stop does so within seconds, whatever it is at, and leaves no process behind."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.support import jobs
from tests.support.watched_job import LOOK_S, WatchedJob, until

pytestmark = [pytest.mark.ray, pytest.mark.keras]

LIMIT_S = 10.0
GOES_ON = "cvbatch: stopped; run the same command again to go on"
TERMINATE = (signal.SIGTERM, False)
CTRL_C = (signal.SIGINT, True)  # a terminal sends it to all processes in the foreground


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return jobs.write_files(tmp_path_factory.mktemp("archive"), jobs.archive_files(28))


@pytest.fixture(scope="module")
def job_of(archive, keras_files, tmp_path_factory):
    """A function: where the sink lies → the job file."""

    def write(sink):
        values = jobs.job(archive, sink, keras_files, chunk_images=1)
        values["models"] = values["models"][:1]
        return jobs.write_job(sink.parent / "job.yaml", values)

    return write


@pytest.fixture(scope="module")
def done(job_of, tmp_path_factory):
    sink = tmp_path_factory.mktemp("done") / "sink"
    status, _, told = jobs.cvbatch("predict", "--config", job_of(sink))
    assert status == 0, told
    return sink


def stop(job, number, to_group):
    """Send the signal; see that the job ends in time, says how to go on, and is wholly gone."""
    job.family()
    job.send(number, to_group)
    sent = time.monotonic()
    status = job.ended(4 * LIMIT_S)
    seconds = time.monotonic() - sent
    assert status == 1, job.told()
    assert job.told().strip().splitlines()[-1] == GOES_ON
    assert "Traceback" not in job.told()
    assert seconds < LIMIT_S
    while (left := job.family()) and time.monotonic() < sent + LIMIT_S:
        time.sleep(LOOK_S)
    assert [process.cmdline() for process in left] == []


@pytest.mark.parametrize(
    "how", [TERMINATE, pytest.param(CTRL_C, marks=pytest.mark.soak)], ids=["SIGTERM", "Ctrl-C"]
)
def test_while_models_build(job_of, tmp_path, how):
    sink = tmp_path / "sink"
    with WatchedJob(job_of(sink), WATCHED_SLOW_MODULE="cvbatch.inference.compile") as job:
        job.until(job.started, "a process that builds")
        stop(job, *how)
    assert not sink.exists()


@pytest.mark.parametrize(
    "how", [pytest.param(TERMINATE, marks=pytest.mark.soak), CTRL_C], ids=["SIGTERM", "Ctrl-C"]
)
def test_midway(job_of, done, tmp_path, how):
    sink = jobs.carry_programs(done, tmp_path / "sink")
    path = job_of(sink)
    with WatchedJob(path, pace_s=0.2) as job:
        job.until(lambda: len(jobs.parts(sink)) >= 2, "2 parts")
        stop(job, *how)
    written = jobs.parts(sink)
    assert 2 <= len(written) < 30
    status, _, told = jobs.cvbatch("predict", "--config", path)
    assert status == 0, told
    assert jobs.parts(sink) == jobs.parts(done)
    assert {name: jobs.parts(sink)[name] for name in written} == written


def test_a_driver_killed_while_models_build_leaves_no_process(job_of, tmp_path):
    with WatchedJob(
        job_of(tmp_path / "sink"), WATCHED_SLOW_MODULE="cvbatch.inference.compile"
    ) as job:
        (builder,) = job.until(job.started, "a process that builds")
        job.kill_driver()
        until(lambda: not is_in(job, builder.pid), "the end of the process that builds", LIMIT_S)


def is_in(job, pid):
    return pid in {process.pid for process in job.family()}


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(12))
def test_at_any_moment_of_the_start(job_of, done, tmp_path, seed):
    """Ray starts, is joined, gives actors: in its own code it has handlers of its own."""
    chance = random.Random(seed)
    sink = jobs.carry_programs(done, tmp_path / "sink")
    with WatchedJob(job_of(sink), pace_s=1.0) as job:
        job.until(lambda: "listed" in job.told(), "the listing")
        time.sleep(chance.uniform(0, float(os.environ.get("STOP_WITHIN_S", "8"))))
        stop(job, *chance.choice([TERMINATE, CTRL_C]))
