"""A job killed anywhere and run again gives the files of one that was left in peace."""

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
PACE_S = 0.03  # of source and disk, so that there are moments to be killed at
IN_FLIGHT = {"actor": 1, "put": 1, "driver": ACTORS, "node": ACTORS}  # chunks lost at most
ENDS_THE_RUN = {"driver", "node"}


@dataclass(frozen=True)
class Setting:
    """One job over one archive, as often as wanted: the sinks differ."""

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
def peaceful(keras_files, tmp_path_factory) -> Callable[[int], tuple[Setting, Path]]:
    """A function: number of chunks → the setting, and the sink of a job nobody disturbed."""
    folder = tmp_path_factory.mktemp("peaceful")
    done: dict[int, tuple[Setting, Path]] = {}

    def run(num_chunks: int) -> tuple[Setting, Path]:
        if num_chunks not in done:
            setting = Setting(folder, keras_files, num_chunks)
            sink = folder / f"done-{num_chunks}"
            for _, other in done.values():
                jobs.carry_programs(other, sink)
            status, _, told = jobs.cvbatch("predict", "--config", setting.job_file(str(sink)))
            assert status == 0, told
            assert len(jobs.parts(sink)) == num_chunks
            done[num_chunks] = (setting, sink)
        return done[num_chunks]

    return run


@dataclass
class Torment:
    """Runs a job, kills what it is told to at random moments, and runs it again to its end."""

    job_file: Path
    folder: Path  # where the sink's files lie on this machine
    chance: random.Random
    environment: Mapping[str, str] = field(default_factory=dict)
    proxy: Proxy | None = None  # in front of the sink; None where that is a folder
    num_begun: int = 0
    num_lost: int = 0  # chunks that the kills may have cost

    def run(self, kills: Iterable[str]) -> None:
        left = deque(kills)
        with ExitStack() as stack:
            while True:
                done = self._parts()
                job = WatchedJob(self.job_file, PACE_S, **self.environment)
                stack.enter_context(job)
                self._kill_some(job, left)
                status = job.ended()
                begun = [one.chunk_id for one in job.started()]
                assert not done & set(begun), "chunks that were done were read again"
                self.num_begun += len(begun)
                if status == 0:
                    break
                assert status == -signal.SIGKILL, job.told()
                if self.chance.random() < 0.5:
                    job.kill_node()  # what outlives its driver; or else it meets the next run
        assert not left, f"the job was done before {left}"

    def _parts(self) -> set[str]:
        """Return the ids of the chunks whose files are there."""
        return {path.stem.removeprefix("part-") for path in self.folder.glob("part-*.parquet")}

    def _kill_some(self, job: WatchedJob, left: deque[str]) -> None:
        """Kill what comes first, and next, until that ends the run."""
        while left:
            enough = len(self._parts()) + self.chance.randint(1, 3)
            job.until(lambda enough=enough: len(self._parts()) >= enough, f"{enough} parts")
            time.sleep(self.chance.uniform(0, 2 * PACE_S))  # any moment of a chunk's way
            kind = left.popleft()
            self.num_lost += IN_FLIGHT[kind]
            getattr(self, f"_kill_{kind}")(job)
            if kind in ENDS_THE_RUN:
                return

    def _kill_driver(self, job: WatchedJob) -> None:
        job.kill_driver()

    def _kill_node(self, job: WatchedJob) -> None:
        job.kill_node()

    def _kill_actor(self, job: WatchedJob) -> None:
        job.kill_actor(self.chance)

    def _kill_put(self, job: WatchedJob) -> None:
        if self.proxy is None:
            job.until(lambda: job.kill_writer(self.folder), "a part half written")
            return
        caught: list[str] = []
        is_cut = self.chance.random() < 0.5

        def choose(request: Request) -> Fault | None:
            """At the first part that is put: half of it reaches the store, or all; then death."""
            if caught or request.method != "PUT" or "/part-" not in request.path:
                return None
            caught.append(request.path)
            time.sleep(PACE_S)  # its body comes
            job.kill_reader_of(Path(request.path).stem.removeprefix("part-"))
            return CUT_UPLOAD if is_cut else None

        self.proxy.choose = choose
        job.until(lambda: caught, "a part half sent")


def stray(names: Iterable[str]) -> list[str]:
    """Return the names in a sink that are none of its own."""
    return [
        name
        for name in names
        if name.endswith(".tmp") or not name.startswith(("part-", "_cvbatch/"))
    ]


def names_below(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def check(torment: Torment, sink: Path, done: Path, num_chunks: int) -> None:
    assert jobs.parts(sink) == jobs.parts(done)
    assert num_chunks <= torment.num_begun <= num_chunks + torment.num_lost
    last = max((sink / "_cvbatch" / "runs").iterdir())
    summary = json.loads(last.read_text())
    assert summary["num_chunks"] + summary["num_chunks_before"] == num_chunks


def local(setting: Setting, done: Path, sink: Path, kills: list[str], seed: int) -> None:
    jobs.carry_programs(done, sink)
    torment = Torment(setting.job_file(str(sink)), sink, random.Random(seed))
    torment.run(kills)
    check(torment, sink, done, setting.num_chunks)
    assert stray(names_below(sink)) == []


def in_s3(setting: Setting, done: Path, s3, name: str, kills: list[str], seed: int) -> None:
    sink = jobs.carry_programs(done, s3.bucket / name)
    uri = f"{s3.bucket_uri}/{name}"
    with proxied(s3.endpoint) as proxy:
        environment = {"AWS_ENDPOINT_URL_S3": proxy.endpoint}
        job_file = setting.job_file(uri)
        torment = Torment(job_file, sink, random.Random(seed), environment, proxy)
        torment.run(kills)
    check(torment, sink, done, setting.num_chunks)
    assert stray(Storage().list_names(uri)) == []


def test_nothing_is_stray_in_nothing_and_temporary_files_are():
    assert stray([]) == []
    assert stray(["part-1.parquet", "_cvbatch/job.json"]) == []
    strange = [".part-1.parquet-x.tmp", "_cvbatch/.job.json-x.tmp", "core"]
    assert stray(strange) == strange


def test_killed_and_run_again_it_is_as_if_nothing_had_been(peaceful, tmp_path):
    setting, done = peaceful(NUM_CHUNKS)
    local(setting, done, tmp_path / "sink", ["actor", "put", "driver", "put"], seed=1)


def test_killed_while_it_sends_to_a_store(peaceful, s3):
    setting, done = peaceful(NUM_CHUNKS)
    in_s3(setting, done, s3, "killed-short", ["put", "node"], seed=2)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [int(os.environ.get("KILL_SEED", "3"))])
def test_killed_25_times(peaceful, tmp_path, seed):
    setting, done = peaceful(SOAK_CHUNKS)
    local(setting, done, tmp_path / "sink", chosen(seed), seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [int(os.environ.get("KILL_SEED", "4"))])
def test_killed_25_times_in_a_store(peaceful, s3, seed):
    setting, done = peaceful(SOAK_CHUNKS)
    in_s3(setting, done, s3, "killed-soak", chosen(seed), seed)


def chosen(seed: int) -> list[str]:
    """Return what is killed: each kind about as often, in any order."""
    kinds = [kind for kind in IN_FLIGHT for _ in range(SOAK_KILLS)][:: len(IN_FLIGHT)]
    random.Random(seed).shuffle(kinds)
    return kinds
