"""Prediction jobs on a real Ray: every image gives a row, and any execution the same bytes."""

import json
import os
import shutil

import numpy as np
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ConfigError, SinkError, SourceError
from cvbatch.core.progress import Listener
from cvbatch.predict.job import predict
from tests.support import jobs

pytestmark = [pytest.mark.ray, pytest.mark.keras]
COUNT = 20
LENGTH = 8000  # bytes: more than an image of these tests


class Recorder(Listener):
    """A listener that stores what it receives."""

    def __init__(self):
        self.lines, self.reports, self.pending = [], [], None

    def info(self, line):
        self.lines.append(line)

    def listed(self, num_names):
        self.num_names = num_names

    def started(self, num_chunks, num_images):
        self.pending = (num_chunks, num_images)

    def written(self, report, summary):
        self.reports.append(report)


def run(source, sink, models, listener=None, overrides=(), **options):
    values = jobs.job(source, sink, models)
    return predict(parse_job(values, overrides), listener or Recorder(), **options)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return jobs.write_files(tmp_path_factory.mktemp("archive"), jobs.archive_files(COUNT))


@pytest.fixture(scope="module")
def done(archive, keras_files, ray_session, tmp_path_factory):
    """The result of a run with two actors in fused mode."""
    sink = tmp_path_factory.mktemp("done") / "result"
    listener = Recorder()
    litert = ["run.engine=litert", "run.arrangement=fused", "run.gpus_per_actor=0"]
    summary = run(archive, sink, keras_files, listener, litert)
    assert summary.num_images == COUNT + 2
    assert listener.pending == (4, COUNT + 2)
    assert len(listener.reports) == 4
    return sink


@pytest.fixture
def sink(done, tmp_path):
    return jobs.carry_programs(done, tmp_path / "sink")


LITERT = ["run.engine=litert", "run.arrangement=fused", "run.gpus_per_actor=0"]


def test_every_image_gives_one_row(archive, done):
    ids = [row["image_id"] for row in jobs.rows(done)]
    assert ids == sorted(str(p.relative_to(archive)) for p in archive.rglob("*") if p.is_file())


def test_a_broken_image_gives_one_failed_row(done):
    failed = {r["image_id"]: r["error"]["kind"] for r in jobs.rows(done) if r["status"] == "failed"}
    assert failed == {"broken/text.jpg": "not_an_image", "broken/empty.png": "empty"}
    for row in jobs.rows(done):
        if row["status"] == "ok":
            assert row["labels"]
            assert row["mask"]["bytes"].startswith(b"\x89PNG")
            assert sum(area["area"] for area in row["mask_areas"]) == row["width"] * row["height"]
            assert len(row["heatmaps"]) == 1


def test_labels_equal_those_of_plain_keras(archive, done, keras_files):
    import keras

    from cvbatch.core.types import InputKey
    from cvbatch.images.decode import Limits, decode

    model = keras.models.load_model(keras_files / "nested_classifier.keras")
    key = InputKey(32, 32, "stretch")
    for row in jobs.rows(done)[2:6]:
        pixels = decode((archive / row["image_id"]).read_bytes(), [key], Limits()).pixels[key]
        scores = model(pixels[None].astype("float32")).numpy()[0]
        best = row["labels"][0]
        assert best["class_id"] == scores.argmax()
        np.testing.assert_allclose(best["score"], scores.max(), atol=1e-4)


def test_the_sink_stores_the_resolved_job_and_the_cost_of_its_networks(archive, done, keras_files):
    import keras

    state = json.loads((done / "_cvbatch" / "job.json").read_text())
    assert parse_job(state["job"]) == parse_job(jobs.job(archive, done, keras_files), LITERT)
    files = [model["model"] for model in state["job"]["models"]]
    counts = [keras.models.load_model(file, compile=False).count_params() for file in files]
    assert [network["parameters"] for network in state["networks"]] == counts
    assert all(network["multiply_adds"] > 0 for network in state["networks"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["run.actors=1", *LITERT],
        ["run.engine=litert", "run.arrangement=streaming"],
        ["run.engine=litert", "run.arrangement=streaming", "run.gpus_per_actor=0.5"],
    ],
    ids=["one actor", "streaming with a GPU", "streaming with half a GPU"],
)
def test_bytes_do_not_depend_on_execution_mode_or_actors(
    archive, done, keras_files, sink, overrides
):
    summary = run(archive, sink, keras_files, overrides=overrides)
    assert jobs.parts(sink) == jobs.parts(done)
    assert {kind: [row[0] for row in rows] for kind, rows in summary.examples.items()} == {
        "decode/empty": ["broken/empty.png"],
        "decode/not_an_image": ["broken/text.jpg"],
    }


def test_a_resumed_job_gives_the_same_bytes_and_does_not_rewrite_done_chunks(
    archive, done, keras_files, tmp_path
):
    sink = tmp_path / "sink"
    shutil.copytree(done, sink)
    lost, *others = sorted(sink.glob("*.parquet"))
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in others}
    listener = Recorder()
    summary = run(archive, sink, keras_files, listener, LITERT)
    assert (summary.num_chunks, summary.num_chunks_before) == (1, 3)
    assert jobs.parts(sink) == jobs.parts(done)
    assert {path: path.stat().st_mtime_ns for path in others} == before


def test_a_finished_job_has_nothing_to_do(archive, done, keras_files, tmp_path):
    sink = tmp_path / "sink"
    shutil.copytree(done, sink)
    before = sorted(path for path in sink.rglob("*"))
    listener = Recorder()
    summary = run(archive, sink, keras_files, listener, LITERT)
    assert (summary.num_chunks, summary.num_chunks_before, listener.reports) == (0, 4, [])
    assert sorted(path for path in sink.rglob("*")) == before


def test_new_images_only_are_processed(keras_files, done, tmp_path):
    source = jobs.write_files(tmp_path / "in", jobs.archive_files(8))
    sink = jobs.carry_programs(done, tmp_path / "sink")
    run(source, sink, keras_files, overrides=LITERT)
    before = jobs.parts(sink)
    more = jobs.archive_files(3, first=8)
    jobs.write_files(source, {name: more[name] for name in more if name not in jobs.BROKEN})
    listener = Recorder()
    summary = run(source, sink, keras_files, listener, LITERT)
    assert summary.num_images == 3
    after = jobs.parts(sink)
    assert {name: after[name] for name in before} == before
    assert len(jobs.rows(sink)) == 8 + 2 + 3


def test_retry_failed_processes_chunks_with_failed_rows(keras_files, done, tmp_path):
    files = jobs.archive_files(8) | dict.fromkeys(jobs.BROKEN, b"x" * LENGTH)
    source = jobs.write_files(tmp_path / "in", files)
    sink = jobs.carry_programs(done, tmp_path / "sink")
    run(source, sink, keras_files, overrides=LITERT)
    for name in jobs.BROKEN:  # same size and time, but decodable now
        mtime_ns = (source / name).stat().st_mtime_ns
        (source / name).write_bytes(jobs.encoded_image(99).ljust(LENGTH, b"\0"))
        os.utime(source / name, ns=(mtime_ns, mtime_ns))
    assert run(source, sink, keras_files, overrides=LITERT).num_chunks == 0
    listener = Recorder()
    summary = run(source, sink, keras_files, listener, LITERT, retry_failed=True)
    assert summary.num_chunks == 1
    assert {row["status"] for row in jobs.rows(sink)} == {"ok"}
    assert len(jobs.rows(sink)) == 10


def test_another_job_is_refused_unless_overwrite_is_set(archive, done, keras_files, tmp_path):
    sink = tmp_path / "sink"
    shutil.copytree(done, sink)
    other = [*LITERT, "models.2.iou_threshold=0.1"]
    with pytest.raises(SinkError, match="contains another prediction"):
        run(archive, sink, keras_files, overrides=other)
    assert jobs.parts(sink) == jobs.parts(done)
    summary = run(archive, sink, keras_files, overrides=other, overwrite=True)
    assert summary.num_chunks == 4
    assert jobs.parts(sink).keys() == jobs.parts(done).keys()
    assert jobs.parts(sink) != jobs.parts(done)


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "manifest"])
def test_other_input_formats_give_the_same_rows(archive, done, keras_files, sink, tmp_path, kind):
    files = {str(p.relative_to(archive)): p.read_bytes() for p in archive.rglob("*") if p.is_file()}
    source = tmp_path / "in"
    if kind == "parquet":
        jobs.write_parquet(source / "shard.parquet", files)
    elif kind == "webdataset":
        jobs.write_tar(source / "shard.tar", files)
    else:
        source.mkdir()
        (source / "list.txt").write_text("\n".join(str(archive / name) for name in files))
        source = source / "list.txt"
    overrides = [*LITERT, f"source.format={kind}"]
    run(source, sink, keras_files, overrides=overrides)

    def content(folder):
        columns = ("status", "labels", "boxes", "mask", "mask_areas", "heatmaps", "width", "height")
        return sorted(
            json.dumps([row[n] for n in columns], default=repr) for row in jobs.rows(folder)
        )

    assert content(sink) == content(done)


def test_an_empty_or_missing_source_is_refused_and_nothing_is_written(keras_files, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(SourceError) as error:
            run(tmp_path / name, tmp_path / "sink", keras_files)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "sink").exists()


def test_more_actors_than_fit_the_cluster_are_refused(archive, keras_files, ray_session, tmp_path):
    with pytest.raises(ConfigError, match="do not fit a cluster of 2 CPU"):
        run(archive, tmp_path / "sink", keras_files, overrides=["run.actors=64"])
    assert not (tmp_path / "sink").exists()


def test_tensorflow_in_streaming_mode(archive, done, keras_files, tmp_path):
    """`auto` chooses both on a cluster with GPUs: each actor has one."""
    listener = Recorder()
    summary = run(archive, tmp_path / "sink", keras_files, listener)
    assert summary.num_images == COUNT + 2
    for row, expected in zip(jobs.rows(tmp_path / "sink"), jobs.rows(done), strict=True):
        assert row["image_id"] == expected["image_id"]
        assert row["status"] == expected["status"]
        if row["status"] == "ok":
            assert row["labels"][0]["class_id"] == expected["labels"][0]["class_id"]
            assert row["labels"][0]["score"] == pytest.approx(
                expected["labels"][0]["score"], abs=1e-4
            )
            heat = [np.array(r["heatmaps"][0]["values"]) for r in (row, expected)]
            np.testing.assert_allclose(*heat, atol=1e-4)


def test_from_s3_to_s3(archive, done, keras_files, s3, tmp_path):
    """In a process with its own Ray: the workers of the shared one have no credentials."""
    files = {str(p.relative_to(archive)): p.read_bytes() for p in archive.rglob("*") if p.is_file()}
    jobs.write_files(s3.bucket / "in", files)
    out = jobs.carry_programs(done, s3.bucket / "out")
    values = jobs.job(f"{s3.bucket_uri}/in", f"{s3.bucket_uri}/out", keras_files)
    path = jobs.write_job(tmp_path / "job.yaml", values)
    status, _, stderr = jobs.cvbatch("predict", "--config", path)
    assert status == 0, stderr
    assert jobs.parts(out).keys() == jobs.parts(done).keys()
    for row, expected in zip(jobs.rows(out), jobs.rows(done), strict=True):
        assert row.pop("uri") == f"s3://bucket/in/{expected['image_id']}"
        expected.pop("uri")
        assert row == expected
    assert (
        jobs.cvbatch("predict", "--config", path)[2]
        .strip()
        .endswith("nothing to do, all 4 chunks are in s3://bucket/out")
    )
    # --overwrite also works in an object store
    status, _, stderr = jobs.cvbatch(
        "predict", "--config", path, "--overwrite", "--set", "models.2.score_threshold=0.9"
    )
    assert status == 0, stderr
    assert jobs.parts(out).keys() == jobs.parts(done).keys()
    assert jobs.parts(out) != jobs.parts(done)
