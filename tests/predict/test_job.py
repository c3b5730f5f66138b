"""The laws of a result, shown on a real Ray: nothing lost, the same bytes however it was done."""

import json
import os
import shutil

import numpy as np
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ConfigError, SinkError, SourceError
from cvbatch.predict.job import predict
from tests.support import jobs

pytestmark = [pytest.mark.ray, pytest.mark.keras]
COUNT = 20
LENGTH = 8000  # bytes: more than an image of these tests


class Ear:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.lines, self.reports, self.todo = [], [], None

    def say(self, line):
        self.lines.append(line)

    def listed(self, num_names):
        self.num_names = num_names

    def begun(self, num_chunks, num_images):
        self.todo = (num_chunks, num_images)

    def written(self, report, summary):
        self.reports.append(report)


def run(source, sink, models, ear=None, overrides=(), **options):
    values = jobs.job(source, sink, models)
    return predict(parse_job(values, overrides), ear or Ear(), **options)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return jobs.write_files(tmp_path_factory.mktemp("archive"), jobs.archive_files(COUNT))


@pytest.fixture(scope="module")
def done(archive, keras_files, ray_session, tmp_path_factory):
    """The result of a plain run: two actors, fused."""
    sink = tmp_path_factory.mktemp("done") / "result"
    ear = Ear()
    litert = ["run.engine=litert", "run.arrangement=fused", "run.gpus_per_actor=0"]
    summary = run(archive, sink, keras_files, ear, litert)
    assert summary.num_images == COUNT + 2
    assert ear.todo == (4, COUNT + 2)
    assert len(ear.reports) == 4
    return sink


@pytest.fixture
def sink(done, tmp_path):
    return jobs.carry_programs(done, tmp_path / "sink")


LITERT = ["run.engine=litert", "run.arrangement=fused", "run.gpus_per_actor=0"]


def test_rows_out_are_images_in(archive, done):
    ids = [row["image_id"] for row in jobs.rows(done)]
    assert ids == sorted(str(p.relative_to(archive)) for p in archive.rglob("*") if p.is_file())


def test_a_broken_image_is_one_failed_row(done):
    failed = {r["image_id"]: r["error"]["kind"] for r in jobs.rows(done) if r["status"] == "failed"}
    assert failed == {"broken/text.jpg": "not_an_image", "broken/empty.png": "empty"}
    for row in jobs.rows(done):
        if row["status"] == "ok":
            assert row["labels"]
            assert row["mask"]["bytes"].startswith(b"\x89PNG")
            assert sum(area["area"] for area in row["mask_areas"]) == row["width"] * row["height"]
            assert len(row["heatmaps"]) == 1


def test_the_result_is_what_bare_keras_says(archive, done, keras_files):
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


def test_the_sink_keeps_the_resolved_job_and_what_its_networks_cost(archive, done, keras_files):
    import keras

    held = json.loads((done / "_cvbatch" / "job.json").read_text())
    assert parse_job(held["job"]) == parse_job(jobs.job(archive, done, keras_files), LITERT)
    files = [model["model"] for model in held["job"]["models"]]
    counts = [keras.models.load_model(file, compile=False).count_params() for file in files]
    assert [one["parameters"] for one in held["networks"]] == counts
    assert all(one["multiply_adds"] > 0 for one in held["networks"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["run.actors=1", *LITERT],
        ["run.engine=litert", "run.arrangement=streaming"],
        ["run.engine=litert", "run.arrangement=streaming", "run.gpus_per_actor=0.5"],
    ],
    ids=["one actor", "streaming with a GPU", "streaming with half a GPU"],
)
def test_the_same_bytes_on_any_wiring(archive, done, keras_files, sink, overrides):
    summary = run(archive, sink, keras_files, overrides=overrides)
    assert jobs.parts(sink) == jobs.parts(done)
    assert {kind: [one[0] for one in some] for kind, some in summary.examples.items()} == {
        "decode/empty": ["broken/empty.png"],
        "decode/not_an_image": ["broken/text.jpg"],
    }


def test_a_resumed_job_gives_the_same_bytes_and_leaves_done_chunks_alone(
    archive, done, keras_files, tmp_path
):
    sink = tmp_path / "sink"
    shutil.copytree(done, sink)
    lost, *kept = sorted(sink.glob("*.parquet"))
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in kept}
    ear = Ear()
    summary = run(archive, sink, keras_files, ear, LITERT)
    assert (summary.num_chunks, summary.num_chunks_before) == (1, 3)
    assert jobs.parts(sink) == jobs.parts(done)
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_a_finished_job_has_nothing_to_do(archive, done, keras_files, tmp_path):
    sink = tmp_path / "sink"
    shutil.copytree(done, sink)
    before = sorted(path for path in sink.rglob("*"))
    ear = Ear()
    summary = run(archive, sink, keras_files, ear, LITERT)
    assert (summary.num_chunks, summary.num_chunks_before, ear.reports) == (0, 4, [])
    assert sorted(path for path in sink.rglob("*")) == before


def test_new_images_only_are_processed(keras_files, done, tmp_path):
    source = jobs.write_files(tmp_path / "in", jobs.archive_files(8))
    sink = jobs.carry_programs(done, tmp_path / "sink")
    run(source, sink, keras_files, overrides=LITERT)
    before = jobs.parts(sink)
    more = jobs.archive_files(3, first=8)
    jobs.write_files(source, {name: more[name] for name in more if name not in jobs.BROKEN})
    ear = Ear()
    summary = run(source, sink, keras_files, ear, LITERT)
    assert summary.num_images == 3
    after = jobs.parts(sink)
    assert {name: after[name] for name in before} == before
    assert len(jobs.rows(sink)) == 8 + 2 + 3


def test_failed_rows_are_tried_again_when_asked(keras_files, done, tmp_path):
    files = jobs.archive_files(8) | dict.fromkeys(jobs.BROKEN, b"x" * LENGTH)
    source = jobs.write_files(tmp_path / "in", files)
    sink = jobs.carry_programs(done, tmp_path / "sink")
    run(source, sink, keras_files, overrides=LITERT)
    for name in jobs.BROKEN:  # the same files by size and time, which now can be read
        as_it_was = (source / name).stat().st_mtime_ns
        (source / name).write_bytes(jobs.encoded_image(99).ljust(LENGTH, b"\0"))
        os.utime(source / name, ns=(as_it_was, as_it_was))
    assert run(source, sink, keras_files, overrides=LITERT).num_chunks == 0
    ear = Ear()
    summary = run(source, sink, keras_files, ear, LITERT, retry_failed=True)
    assert summary.num_chunks == 1
    assert {row["status"] for row in jobs.rows(sink)} == {"ok"}
    assert len(jobs.rows(sink)) == 10


def test_another_job_is_refused_and_overwrites_only_when_told(archive, done, keras_files, tmp_path):
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
def test_other_sources_hold_the_same_images(archive, done, keras_files, sink, tmp_path, kind):
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
        told = ("status", "labels", "boxes", "mask", "mask_areas", "heatmaps", "width", "height")
        return sorted(json.dumps([row[n] for n in told], default=repr) for row in jobs.rows(folder))

    assert content(sink) == content(done)


def test_an_empty_or_missing_source_is_refused_and_nothing_is_written(keras_files, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(SourceError) as error:
            run(tmp_path / name, tmp_path / "sink", keras_files)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "sink").exists()


def test_more_actors_than_the_cluster_holds_are_refused(
    archive, keras_files, ray_session, tmp_path
):
    with pytest.raises(ConfigError, match="do not fit a cluster of 2 CPU"):
        run(archive, tmp_path / "sink", keras_files, overrides=["run.actors=64"])
    assert not (tmp_path / "sink").exists()


def test_a_gpu_engine_in_the_streaming_arrangement(archive, done, keras_files, tmp_path):
    """What runs on a cluster with GPUs: TensorFlow in actors that hold one; `auto` picks both."""
    ear = Ear()
    summary = run(archive, tmp_path / "sink", keras_files, ear)
    assert summary.num_images == COUNT + 2
    for mine, theirs in zip(jobs.rows(tmp_path / "sink"), jobs.rows(done), strict=True):
        assert mine["image_id"] == theirs["image_id"]
        assert mine["status"] == theirs["status"]
        if mine["status"] == "ok":
            assert mine["labels"][0]["class_id"] == theirs["labels"][0]["class_id"]
            assert mine["labels"][0]["score"] == pytest.approx(
                theirs["labels"][0]["score"], abs=1e-4
            )
            heat = [np.array(row["heatmaps"][0]["values"]) for row in (mine, theirs)]
            np.testing.assert_allclose(*heat, atol=1e-4)


def test_from_s3_to_s3(archive, done, keras_files, s3, tmp_path):
    """A process of its own: the shared Ray's workers were started without these credentials."""
    files = {str(p.relative_to(archive)): p.read_bytes() for p in archive.rglob("*") if p.is_file()}
    jobs.write_files(s3.bucket / "in", files)
    out = jobs.carry_programs(done, s3.bucket / "out")
    values = jobs.job(f"{s3.bucket_uri}/in", f"{s3.bucket_uri}/out", keras_files)
    path = jobs.write_job(tmp_path / "job.yaml", values)
    status, _, told = jobs.cvbatch("predict", "--config", path)
    assert status == 0, told
    assert jobs.parts(out).keys() == jobs.parts(done).keys()
    for mine, theirs in zip(jobs.rows(out), jobs.rows(done), strict=True):
        assert mine.pop("uri") == f"s3://bucket/in/{theirs['image_id']}"
        theirs.pop("uri")
        assert mine == theirs
    assert (
        jobs.cvbatch("predict", "--config", path)[2]
        .strip()
        .endswith("nothing to do, all 4 chunks are in s3://bucket/out")
    )
    # --overwrite removes and writes again, also here
    status, _, told = jobs.cvbatch(
        "predict", "--config", path, "--overwrite", "--set", "models.2.score_threshold=0.9"
    )
    assert status == 0, told
    assert jobs.parts(out).keys() == jobs.parts(done).keys()
    assert jobs.parts(out) != jobs.parts(done)
