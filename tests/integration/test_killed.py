"""A job that is killed at any time and resumed writes the files of an uninterrupted job."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.faulty_proxy import CUT_UPLOAD, Fault, Proxy, Request, proxied
from tests.support.watched_job import WatchedJob

pytestmark = [pytest.mark.ray, pytest.mark.keras]

CHUNK_IMAGES = 3
NUM_CHUNKS = 40
SOAK_CHUNKS, SOAK_KILLS = 160, 25
ACTORS = 2
PACE_S = 0.03  # delay of each read and write, so that kills hit all phases
# Kind of kill → maximum number of chunks that it loses.
IN_FLIGHT = {"actor": 1, "put": 1, "driver": ACTORS, "node": ACTORS}
ENDS_THE_RUN = {"driver", "node"}


@dataclass(frozen=True)
class Setting:
    """One job over one archive; it can run several times with different sinks."""

    folder: Path
    models: Path
    num_chunks: int

    def job_file(self, sink: str) -> Path:
        source = self.folder / f"in-{self.num_chunks}"
        if not source.exists():
            count = CHUNK_IMAGES * self.num_chunks - len(jobs.BROKEN)
            jobs.write_files(source, jobs.archive_files(count))
        run = {"chunk_images": CHUNK_IMAGES, "actors": ACTORS, "batch_size": 4}
        values = jobs.job(source, sink, self.models, **run)
        values["models"] = values["models"][:1]
        name = sink.replace("/", "_").replace(":", "")
        return jobs.write_job(self.folder / f"{name}.yaml", values)


@pytest.fixture(scope="module")
def uninterrupted(keras_files, tmp_path_factory) -> Callable[[int], tuple[Setting, Path]]:
    """Return a function: number of chunks → the setting, and the sink of an uninterrupted job."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done: dict[int, tuple[Setting, Path]] = {}

    def run(num_chunks: int) -> tuple[Setting, Path]:
        if num_chunks not in done:
            setting = Setting(folder, keras_files, num_chunks)
            sink = folder / f"done-{num_chunks}"
            for _, other in done.values():
                jobs.carry_programs(other, sink)
            status, _, stderr = jobs.cvbatch("predict", "--config", setting.job_file(str(sink)))
            assert status == 0, stderr
            assert len(jobs.parts(sink)) == num_chunks
            done[num_chunks] = (setting, sink)
        return done[num_chunks]

    return run


@dataclass
class KilledJob:
    """Runs a job, kills its processes at random times, and resumes it until it is finished."""

    job_file: Path
    folder: Path  # local folder with the files of the sink
    rng: random.Random
    environment: Mapping[str, str] = field(default_factory=dict)
    proxy: Proxy | None = None  # in front of the sink; None for a local sink
    num_started: int = 0
    num_lost: int = 0  # chunks that the kills may have lost

    def run(self, kills: Iterable[str]) -> None:
        pending = deque(kills)
        with ExitStack() as stack:
            while True:
                done = self._parts()
                job = WatchedJob(self.job_file, PACE_S, **self.environment)
                stack.enter_context(job)
                self._kill_some(job, pending)
                status = job.ended()
                started = [start.chunk_id for start in job.started()]
                assert not done & set(started), "finished chunks were read again"
                self.num_started += len(started)
                if status == 0:
                    break
                assert status == -signal.SIGKILL, job.stderr()
                if self.rng.random() < 0.5:
                    job.kill_node()  # else Ray's processes are still there in the next run
        assert not pending, f"the job was finished before {pending}"

    def _parts(self) -> set[str]:
        """Return the ids of the finished chunks."""
        return {path.stem.removeprefix("part-") for path in self.folder.glob("part-*.parquet")}

    def _kill_some(self, job: WatchedJob, pending: deque[str]) -> None:
        """Make the pending kills in order, until one of them ends the run."""
        while pending:
            count = len(self._parts()) + self.rng.randint(1, 3)
            job.until(lambda count=count: len(self._parts()) >= count, f"{count} parts")
            time.sleep(self.rng.uniform(0, 2 * PACE_S))  # any phase of a chunk
            kind = pending.popleft()
            self.num_lost += IN_FLIGHT[kind]
            getattr(self, f"_kill_{kind}")(job)
            if kind in ENDS_THE_RUN:
                return

    def _kill_driver(self, job: WatchedJob) -> None:
        job.kill_driver()

    def _kill_node(self, job: WatchedJob) -> None:
        job.kill_node()

    def _kill_actor(self, job: WatchedJob) -> None:
        job.kill_actor(self.rng)

    def _kill_put(self, job: WatchedJob) -> None:
        if self.proxy is None:
            job.until(lambda: job.kill_writer(self.folder), "a partly written part")
            return
        intercepted: list[str] = []
        is_cut = self.rng.random() < 0.5

        def choose(request: Request) -> Fault | None:
            """At the first PUT of a part, kill the worker; the store receives half of it or all."""
            if intercepted or request.method != "PUT" or "/part-" not in request.path:
                return None
            intercepted.append(request.path)
            time.sleep(PACE_S)  # the body is sent
            job.kill_reader_of(Path(request.path).stem.removeprefix("part-"))
            return CUT_UPLOAD if is_cut else None

        self.proxy.choose = choose
        job.until(lambda: intercepted, "a partly sent part")


def stray(names: Iterable[str]) -> list[str]:
    """Return the names of files that do not belong into a sink."""
    return [
        name
        for name in names
        if name.endswith(".tmp") or not name.startswith(("part-", "_cvbatch/"))
    ]


def names_below(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def check(killed: KilledJob, sink: Path, done: Path, num_chunks: int) -> None:
    assert jobs.parts(sink) == jobs.parts(done)
    assert num_chunks <= killed.num_started <= num_chunks + killed.num_lost
    last = max((sink / "_cvbatch" / "runs").iterdir())
    summary = json.loads(last.read_text())
    assert summary["num_chunks"] + summary["num_chunks_before"] == num_chunks


def local(setting: Setting, done: Path, sink: Path, kills: list[str], seed: int) -> None:
    jobs.carry_programs(done, sink)
    killed = KilledJob(setting.job_file(str(sink)), sink, random.Random(seed))
    killed.run(kills)
    check(killed, sink, done, setting.num_chunks)
    assert stray(names_below(sink)) == []


def in_s3(setting: Setting, done: Path, s3, name: str, kills: list[str], seed: int) -> None:
    sink = jobs.carry_programs(done, s3.bucket / name)
    uri = f"{s3.bucket_uri}/{name}"
    with proxied(s3.endpoint) as proxy:
        environment = {"AWS_ENDPOINT_URL_S3": proxy.endpoint}
        job_file = setting.job_file(uri)
        killed = KilledJob(job_file, sink, random.Random(seed), environment, proxy)
        killed.run(kills)
    check(killed, sink, done, setting.num_chunks)
    assert stray(Storage().list_names(uri)) == []


def test_temporary_and_unknown_files_are_stray():
    assert stray([]) == []
    assert stray(["part-1.parquet", "_cvbatch/job.json"]) == []
    unknown = [".part-1.parquet-x.tmp", "_cvbatch/.job.json-x.tmp", "core"]
    assert stray(unknown) == unknown


def test_a_killed_and_resumed_job_writes_the_same_files(uninterrupted, tmp_path):
    setting, done = uninterrupted(NUM_CHUNKS)
    local(setting, done, tmp_path / "sink", ["actor", "put", "driver", "put"], seed=1)


def test_killed_during_an_upload(uninterrupted, s3):
    setting, done = uninterrupted(NUM_CHUNKS)
    in_s3(setting, done, s3, "killed-short", ["put", "node"], seed=2)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [int(os.environ.get("KILL_SEED", "3"))])
def test_killed_25_times(uninterrupted, tmp_path, seed):
    setting, done = uninterrupted(SOAK_CHUNKS)
    local(setting, done, tmp_path / "sink", random_kills(seed), seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [int(os.environ.get("KILL_SEED", "4"))])
def test_killed_25_times_in_a_store(uninterrupted, s3, seed):
    setting, done = uninterrupted(SOAK_CHUNKS)
    in_s3(setting, done, s3, "killed-soak", random_kills(seed), seed)


def random_kills(seed: int) -> list[str]:
    """Return kinds of kills in random order, each about equally often."""
    kinds = [kind for kind in IN_FLIGHT for _ in range(SOAK_KILLS)][:: len(IN_FLIGHT)]
    random.Random(seed).shuffle(kinds)
    return kinds
