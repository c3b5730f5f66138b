"""Archives that change between runs, concurrent runs in one sink, and the failure limit."""

import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from cvbatch.cli import last_lines
from cvbatch.config.loader import parse_job
from cvbatch.core.errors import SinkError
from cvbatch.predict.dry_run import estimate
from cvbatch.predict.job import predict
from cvbatch.predict.summary import Summary
from cvbatch.storage import lease
from tests.support import jobs
from tests.support.lease_holder import FAR
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.keras]
LITERT = ["run.engine=litert", "run.arrangement=fused", "run.gpus_per_actor=0"]
COUNT = 10  # images, and two broken files: two chunks


class Interrupted(jobs.RecordingListener):
    """Interrupts a run after the manifest is committed, before a file is written."""

    def started(self, num_chunks, num_images):
        raise KeyboardInterrupt


def values(source, sink, models, **run):
    job = jobs.job(source, sink, models, **run)
    return {**job, "models": job["models"][:1]}


def run(source, sink, models, listener=None, overrides=(), **options):
    job = parse_job(values(source, sink, models), [*LITERT, *overrides])
    return predict(job, listener or jobs.RecordingListener(), **options)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return jobs.write_files(tmp_path_factory.mktemp("archive"), jobs.archive_files(COUNT))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """One path for the source of all these tests: a symlink to the current archive."""
    return tmp_path_factory.mktemp("source") / "now"


def point(source, folder):
    source.unlink(missing_ok=True)
    source.symlink_to(folder)


@pytest.fixture(scope="module")
def done(archive, source, keras_files, ray_session, tmp_path_factory):
    sink = tmp_path_factory.mktemp("done") / "result"
    point(source, archive)
    summary = run(source, sink, keras_files)
    assert (summary.num_chunks, summary.num_new) == (2, COUNT + 2)
    return sink


@pytest.fixture
def sink(archive, source, done, tmp_path):
    """A finished result, whose source the test then changes."""
    point(source, shutil.copytree(archive, tmp_path / "in"))  # with modification times
    return shutil.copytree(done, tmp_path / "out")


def by_id(sink):
    return {row["image_id"]: row for row in jobs.rows(sink)}


def revisions(sink):
    footers = [
        pq.read_metadata(path).metadata[b"cvbatch"] for path in sorted(sink.glob("*.parquet"))
    ]
    return [json.loads(footer).get("revision", 0) for footer in footers]


def names(source):
    return sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())


# --- an archive that changes ---------------------------------------------------------------------


def test_changed_images_are_replaced_new_ones_added_and_removed_ones_stay(
    source, sink, keras_files, tmp_path
):
    before, bytes_before = by_id(sink), jobs.parts(sink)
    assert revisions(sink) == [0, 0]
    first, *_, last = [name for name in names(source) if name not in jobs.BROKEN]
    in_first_chunk = {row["image_id"] for row in pq.read_table(_part_of(sink, first)).to_pylist()}
    assert last not in in_first_chunk
    (source / first).write_bytes(jobs.encoded_image(77))
    (source / last).unlink()
    (source / "set-9").mkdir()
    (source / "set-9" / "new.jpg").write_bytes(jobs.encoded_image(78))

    listener = jobs.RecordingListener()
    summary = run(source, sink, keras_files, listener)
    assert (summary.num_new, summary.num_changed, summary.num_removed) == (1, 1, 1)
    assert (summary.num_chunks, summary.num_images) == (2, len(in_first_chunk) + 1)
    assert any("1 new, 1 changed, 1 removed files" in line for line in listener.lines)
    last_line, status = last_lines.prediction_result(summary)
    assert status == 0
    assert "; 1 file changed, processed again; 1 file removed from the source, rows" in last_line

    after, new_sink = by_id(sink), tmp_path / "new"
    run(source, jobs.carry_programs(sink, new_sink), keras_files)
    recomputed = by_id(new_sink)
    assert set(after) == set(before) | {"set-9/new.jpg"}
    assert sum(len(pq.read_table(path)) for path in sink.glob("*.parquet")) == len(after)
    assert {name: after[name] for name in recomputed} == recomputed
    assert after[first] != before[first]
    assert after[last] == before[last]
    assert sorted(revisions(sink)) == [0, 0, 1]
    untouched = {name for name in bytes_before if jobs.parts(sink)[name] == bytes_before[name]}
    assert untouched == {_part_of(sink, last).name}

    again = run(source, sink, keras_files)
    assert (again.num_chunks, again.num_changed, again.num_removed) == (0, 0, 1)
    last_line, status = last_lines.prediction_result(again)
    assert status == 0 and "nothing to do" in last_line
    assert last_line.endswith("; 1 file removed from the source, rows kept")

    listener, bytes_after = jobs.RecordingListener(), jobs.parts(sink)
    (sink / lease.LEASE_PATH).write_bytes(FAR.to_json())
    dry = estimate(parse_job(values(source, sink, keras_files), LITERT), listener)
    assert (dry.num_new, dry.num_changed, dry.num_removed) == (0, 0, 1)
    assert any("in use by a run on far.example (process 7)" in line for line in listener.lines)
    assert jobs.parts(sink) == bytes_after


def _part_of(sink, image_id):
    (path,) = [
        path
        for path in sink.glob("*.parquet")
        if image_id in pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()
    ]
    return path


def test_a_run_interrupted_between_the_manifest_and_the_files_is_resumed(
    source, sink, keras_files, tmp_path
):
    before = jobs.parts(sink)
    (source / names(source)[-1]).write_bytes(jobs.encoded_image(77))
    uninterrupted = shutil.copytree(sink, tmp_path / "uninterrupted")
    run(source, uninterrupted, keras_files)
    with pytest.raises(KeyboardInterrupt):
        run(source, sink, keras_files, Interrupted())
    assert jobs.parts(sink) == before  # every row exists once
    assert not (sink / lease.LEASE_PATH).exists()
    assert run(source, sink, keras_files).num_chunks == 1
    assert jobs.parts(sink) == jobs.parts(uninterrupted) != before


def test_a_removed_image_of_a_reprocessed_chunk_is_a_failed_row(source, sink, keras_files):
    *_, removed, changed = names(source)
    content, stat = (source / removed).read_bytes(), (source / removed).stat()
    (source / removed).unlink()
    (source / changed).write_bytes(jobs.encoded_image(77))
    summary = run(source, sink, keras_files)
    assert by_id(sink)[removed]["error"]["kind"] == "missing"
    assert summary.examples["read/missing"][0][0] == removed
    (source / removed).write_bytes(content)  # restored unchanged
    os.utime(source / removed, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    assert run(source, sink, keras_files).num_chunks == 1
    assert by_id(sink)[removed]["status"] == "ok"


def test_retry_failed_and_overwrite_use_the_latest_revision_of_chunks(source, sink, keras_files):
    (source / names(source)[-1]).write_bytes(jobs.encoded_image(77))
    run(source, sink, keras_files)
    revised = jobs.parts(sink)
    assert sorted(revisions(sink)) == [0, 1]
    retried = run(source, sink, keras_files, retry_failed=True)
    assert retried.num_chunks == 1  # the chunk with the two broken files
    assert jobs.parts(sink) == revised
    other = ["source.max_pixels=1000000"]
    with pytest.raises(SinkError, match="another prediction"):
        run(source, sink, keras_files, overrides=other)
    assert run(source, sink, keras_files, overrides=other, overwrite=True).num_chunks == 2
    assert sorted(revisions(sink)) == [0, 1]
    assert run(source, sink, keras_files, overrides=other).num_chunks == 0
    metadata = [pq.read_metadata(path).metadata[b"cvbatch"] for path in sink.glob("*.parquet")]
    assert len({json.loads(footer)["fingerprint"] for footer in metadata}) == 1


def test_a_rewritten_parquet_file_has_its_current_rows(done, keras_files, tmp_path):
    files = {f"{i}.jpg": jobs.encoded_image(i) for i in range(11)}
    sink = jobs.carry_programs(done, tmp_path / "out")
    source = tmp_path / "shards"
    jobs.write_parquet(source / "b.parquet", {"b.jpg": jobs.encoded_image(50)})

    def rewritten(count):
        jobs.write_parquet(source / "a.parquet", dict(list(files.items())[:count]), 6)
        return run(source, sink, keras_files)

    rewritten(11)
    assert len(jobs.parts(sink)) == 2
    short = rewritten(3)
    assert (short.num_changed, short.num_chunks) == (1, 2)
    assert sorted(by_id(sink)) == [*(f"a.parquet#{i}" for i in range(3)), "b.parquet#0"]
    assert rewritten(3).num_chunks == 1  # rewritten with the same rows
    (source / "a.parquet").unlink()
    rows = pq.read_table(source / "b.parquet")
    pq.write_table(rows.slice(0, 0), source / "b.parquet")
    emptied = run(source, sink, keras_files)
    assert (emptied.num_changed, emptied.num_removed) == (1, 1)
    assert sorted(by_id(sink)) == [f"a.parquet#{i}" for i in range(3)]


# --- concurrent runs ------------------------------------------------------------------------------


@pytest.fixture
def command(done, keras_files, ray_session, tmp_path):
    """A job of twelve chunks as a subprocess, on the session's Ray."""
    import ray

    source = jobs.write_files(tmp_path / "in", jobs.archive_files(COUNT))
    sink = jobs.carry_programs(done, tmp_path / "out")
    job = values(source, sink, keras_files, chunk_images=1, actors=1)
    job["run"] |= {"engine": "litert", "arrangement": "fused", "gpus_per_actor": 0}
    path = jobs.write_job(tmp_path / "job.yaml", job)
    address = ray.get_runtime_context().gcs_address
    return Command(path, sink, {**os.environ, "RAY_ADDRESS": address})


SLOW = """
import time
from cvbatch.storage import lease
from cvbatch.predict.summary import Summary

def add(summary, report, add=Summary.add):
    time.sleep(1)
    add(summary, report)

lease.HEARTBEAT_S, Summary.add = 0.5, add
"""
NO_LEASE = """
import os, time
from pathlib import Path
from cvbatch.storage.sink import Sink

def acquire(sink):  # both plan all chunks before one of them starts
    folder = Path(__file__).parent
    (folder / f"{os.getpid()}.ready").touch()
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.ready"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)

Sink.__enter__, Sink.acquire = (lambda sink: sink), acquire
"""


def patched(folder, code):
    """Return the environment of a process that runs `code` when it starts."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


class Command:
    def __init__(self, path, sink, env):
        self.path, self.sink, self.env = path, sink, env
        self.arguments = [sys.executable, "-m", "cvbatch", "predict", "--config", str(path)]

    def start(self, **env):
        return subprocess.Popen(
            self.arguments, stderr=subprocess.PIPE, text=True, env=self.env | env
        )

    def end(self, **env):
        with self.start(**env) as process:
            stderr = process.stderr.read()
        return process.returncode, stderr.strip().splitlines()


def test_a_second_run_is_refused_and_a_run_after_a_kill_resumes_at_once(command, tmp_path):
    with command.start(**patched(tmp_path / "slow", SLOW)) as first:
        until(lambda: jobs.parts(command.sink), "a chunk")
        status, lines = command.end()
        assert status == 2, lines
        assert f"(process {first.pid})" in lines[-1]
        assert first.poll() is None
        first.kill()
    assert json.loads((command.sink / lease.LEASE_PATH).read_text())["pid"] == first.pid
    written = jobs.parts(command.sink)
    status, lines = command.end()
    assert status == 0, lines
    assert not any("waiting up to" in line for line in lines)
    assert not (command.sink / lease.LEASE_PATH).exists()
    after = jobs.parts(command.sink)
    assert len(after) == COUNT + 2
    assert {name: after[name] for name in written} == written


def taken_over(sink, tmp_path, process):
    """Replace the lease; return whether the run has ended. A heartbeat may write it once more."""
    (tmp_path / "far").write_bytes(FAR.to_json())
    (tmp_path / "far").replace(sink / lease.LEASE_PATH)  # atomic
    return process.poll() is not None


def test_a_run_whose_lease_was_taken_stops(command, tmp_path):
    with command.start(**patched(tmp_path / "slow", SLOW)) as process:
        until(lambda: jobs.parts(command.sink), "a chunk")
        until(lambda: taken_over(command.sink, tmp_path, process), "the end of the run")
        lines = process.stderr.read().strip().splitlines()
    assert process.returncode == 1
    assert "taken over by a run on far.example" in lines[-1]
    assert json.loads((command.sink / lease.LEASE_PATH).read_text())["token"] == FAR.token


def test_without_a_lease_two_concurrent_runs_write_the_same_bytes(command, tmp_path):
    """The lease is disabled in both processes: deterministic results keep the sink correct."""
    env = patched(tmp_path / "no lease", NO_LEASE)
    with command.start(**env) as first, command.start(**env) as second:
        for process in (first, second):
            stderr = process.stderr.read()
            assert process.wait() == 0, stderr
    summaries = (command.sink / "_cvbatch" / "runs").iterdir()
    assert [json.loads(path.read_text())["num_images"] for path in summaries] == [COUNT + 2] * 2
    both = jobs.parts(command.sink)
    shutil.move(command.sink, tmp_path / "both")
    jobs.carry_programs(tmp_path / "both", command.sink)
    status, lines = command.end()
    assert status == 0, lines
    assert both == jobs.parts(command.sink)


# --- failure limit --------------------------------------------------------------------------------


@pytest.fixture
def bad_archive(tmp_path):
    """300 files that are no images, followed by 20 images."""
    files = {f"a/{i:03d}.jpg": f"not an image {i}".encode() for i in range(300)}
    files |= {f"b/{i:03d}.jpg": jobs.encoded_image(i) for i in range(20)}
    return jobs.write_files(tmp_path / "in", files)


def test_a_run_over_the_failure_limit_stops_early_and_can_be_resumed(
    bad_archive, done, keras_files, tmp_path
):
    sink = jobs.carry_programs(done, tmp_path / "out")
    strict = ["run.chunk_images=40", "run.max_failure_fraction=0.5", "run.actors=1"]
    summary = run(bad_archive, sink, keras_files, overrides=strict)
    assert (
        summary.num_images == summary.num_failed == 200
    )  # more than 160 are too many, but it checks from 200 on
    assert (summary.num_planned, summary.num_chunks, summary.num_chunks_left) == (320, 5, 3)
    assert len(jobs.rows(sink)) == 200
    last_line, status = last_lines.prediction_result(summary)
    assert status == 3
    for text in ("stopped early", "200 of 200", "all 320", "decode/not_an_image 200", "3 chunks"):
        assert text in last_line
    examples = summary.as_json()["examples"]["decode/not_an_image"]
    assert [example["image_id"] for example in examples] == ["a/000.jpg", "a/001.jpg", "a/002.jpg"]
    assert all(example["message"] for example in examples)
    summaries = sorted((sink / "_cvbatch" / "runs").iterdir())
    assert json.loads(summaries[-1].read_text())["num_chunks_left"] == 3

    lenient = ["run.chunk_images=40", "run.max_failure_fraction=1.0"]
    rest = run(bad_archive, sink, keras_files, overrides=lenient)
    assert (rest.num_chunks, rest.num_chunks_left, rest.num_failed) == (3, 0, 100)
    assert len(jobs.rows(sink)) == 320


@pytest.mark.parametrize(
    ("processed", "failed", "planned", "is_over"),
    [
        (0, 0, 0, False),
        (199, 199, 1000, False),
        (200, 10, 1000, False),
        (200, 11, 1000, True),
        (500, 500, 0, False),  # for tars the number is unknown
    ],
)
def test_when_a_run_exceeds_the_failure_limit(processed, failed, planned, is_over):
    summary = Summary("out", "f", num_planned=planned, num_images=processed, num_failed=failed)
    assert summary.must_stop(0.01) is is_over
