"""Explanation jobs: results compared with Keras; resume, overwrite, refusals, the command."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from cvbatch.config.explain import parse_explanation
from cvbatch.core.errors import ConfigError, ModelError, RefusedError, SinkError, SourceError
from cvbatch.core.progress import Listener
from cvbatch.core.types import InputKey
from cvbatch.explain.image_grids import channel_grid, kernel_grid
from cvbatch.explain.job import explain
from cvbatch.images.decode import Limits, decode
from cvbatch.images.heatmaps import overlay
from tests.support import networks
from tests.support.jobs import (
    archive_files,
    cvbatch,
    encoded_image,
    write_files,
    write_job,
    write_tar,
)
from tests.support.lease_holder import lease_holder, tree

pytestmark = pytest.mark.keras
ROOT = Path(__file__).parents[2]
ALL = {
    "activations": {},
    "patterns": {"layers": ["act"], "filters": 5, "steps": 3, "batch_size": 4},
    "weights": {},
    "dream": {"layers": {"act": 1.0}, "octaves": 2, "steps": 2},
    "gradcam": {"top_k": 2},
}


def job(source, sink, model, **sections):
    values = {
        "model": {"task": "classification", "model": str(model)},
        "source": {"uri": str(source)},
        "sink": {"uri": str(sink)},
        "run": {"batch_size": 3, "chunk_images": 4, "max_failure_fraction": 0.5},
    }
    for section, fields in (sections or ALL).items():
        values[section] = {**values.get(section, {}), **fields}
    return values


def run(values, **options):
    return explain(parse_explanation(values), Listener(), **options)


def files(sink):
    """Return the bytes of all result files by name."""
    return {
        str(path.relative_to(sink)): path.read_bytes()
        for path in sorted(Path(sink).rglob("*"))
        if path.is_file() and "_cvbatch" not in path.parts
    }


def image_rows(sink):
    rows = ds.dataset(str(Path(sink) / "images"), format="parquet").to_table().to_pylist()
    return sorted(rows, key=lambda row: row["image_id"])


def read_picture(sink, name):
    return cv2.imread(str(Path(sink) / name), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("archive"), archive_files(7))


@pytest.fixture(scope="module")
def complete_sink(archive, keras_files, tmp_path_factory):
    """A sink with the results of all sections."""
    sink = tmp_path_factory.mktemp("explained")
    summary = run(job(archive, sink, keras_files / "nested_classifier.keras"))
    assert (summary.num_images, summary.num_failed, summary.is_new) == (9, 2, True)
    return sink


@pytest.fixture
def sink_copy(complete_sink, tmp_path):
    """A copy of the complete sink that a test may change; the fingerprint has no path."""
    shutil.copytree(complete_sink, tmp_path / "sink")
    return tmp_path / "sink"


def test_each_image_has_a_row_and_each_failed_image_an_error(complete_sink, archive):
    rows = image_rows(complete_sink)
    assert [row["image_id"] for row in rows] == sorted(
        str(path.relative_to(archive)) for path in archive.rglob("*") if path.is_file()
    )
    failed = {row["image_id"]: row["error"] for row in rows if row["status"] == "failed"}
    assert {name: error["kind"] for name, error in failed.items()} == {
        "broken/empty.png": "empty", "broken/text.jpg": "not_an_image",
    }  # fmt: skip
    assert all(row["activations"] is None for row in rows if row["status"] == "failed")


def test_arrays_equal_keras_and_pictures_equal_arrays(complete_sink, archive, keras_files):
    import keras

    model = keras.saving.load_model(keras_files / "nested_classifier.keras")
    inner = model.get_layer("inner")
    convolutions = [
        f"inner/{layer.name}" for layer in inner.layers if isinstance(layer, keras.layers.Conv2D)
    ]
    key = InputKey(32, 32, "stretch")
    ok_rows = [row for row in image_rows(complete_sink) if row["status"] == "ok"]
    assert len(ok_rows) == 7
    for row in ok_rows:
        data = (archive / row["image_id"]).read_bytes()
        pixels = decode(data, [key], Limits()).pixels[key]
        assert [activations["layer"] for activations in row["activations"]] == convolutions
        for activations in row["activations"]:
            layer = inner.get_layer(activations["layer"].split("/")[1])
            truncated = keras.Model(inner.inputs, layer.output)
            maps = np.asarray(truncated([pixels[None].astype("float32")]))[0]
            shape = activations["height"], activations["width"], activations["channels"]
            values = np.array(activations["values"], np.float32).reshape(shape)
            np.testing.assert_allclose(values, maps, atol=1e-4)
            picture = read_picture(complete_sink, activations["picture"])
            assert np.array_equal(picture, channel_grid(values))
        scores = np.asarray(model(pixels[None].astype("float32")))[0]
        for rank, heatmap in enumerate(row["heatmaps"]):
            assert heatmap["layer"] == "inner/act"
            np.testing.assert_allclose(heatmap["score"], np.sort(scores)[-1 - rank], atol=1e-5)
            values = np.array(heatmap["values"], np.float32)
            values = values.reshape(heatmap["height"], heatmap["width"])
            picture = read_picture(complete_sink, heatmap["picture"])[..., ::-1]
            assert np.array_equal(picture, overlay(pixels, values))
        dream = cv2.imdecode(np.frombuffer(row["dream"]["bytes"], np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(dream, read_picture(complete_sink, row["dream"]["path"]))
        assert dream.shape == (32, 32, 3)


def test_patterns_and_weights_have_one_table_per_layer(complete_sink, keras_files):
    import keras

    model = keras.saving.load_model(keras_files / "nested_classifier.keras")
    (patterns,) = sorted((complete_sink / "patterns").glob("*.parquet"))
    rows = pq.read_table(patterns).to_pylist()
    assert [row["filter"] for row in rows] == [0, 1, 2, 3, 4]
    assert {(row["height"], row["width"], row["channels"]) for row in rows} == {(16, 16, 3)}
    assert read_picture(complete_sink, rows[0]["picture"]).shape == (16, 5 * 16 + 4 * 5, 3)
    tables = sorted((complete_sink / "weights").glob("*.parquet"))
    layers = {pq.read_table(path)["layer"][0].as_py(): path for path in tables}
    inner = model.get_layer("inner")
    convolutions = [layer for layer in inner.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(layers) == len(convolutions) == 2
    for layer in convolutions:
        rows = pq.read_table(layers[f"inner/{layer.name}"]).to_pylist()
        kernels = np.asarray(layer.kernel)
        for filter_id, row in enumerate(rows):
            expected = kernels[..., filter_id].ravel()
            assert np.array_equal(np.array(row["values"], np.float32), expected)
        assert np.array_equal(read_picture(complete_sink, rows[0]["picture"]), kernel_grid(kernels))


def test_complete_job_does_nothing(sink_copy, archive, keras_files):
    (sink_copy / "_cvbatch" / "network.keras").unlink()  # a run that does work writes it again
    summary = run(job(archive, sink_copy, keras_files / "nested_classifier.keras"))
    assert not summary.is_new
    assert not (sink_copy / "_cvbatch" / "network.keras").exists()


def test_resume_writes_the_missing_files_with_the_same_bytes(sink_copy, archive, keras_files):
    before = files(sink_copy)
    state = sink_copy / "_cvbatch" / "explain.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "is_complete": False}))
    for folder in ("images", "patterns", "weights"):
        next((sink_copy / folder).glob("*.parquet")).unlink()
    shutil.rmtree(sink_copy / "pictures" / "patterns")
    existing = next((sink_copy / "images").glob("*.parquet"))
    mtime = existing.stat().st_mtime_ns
    summary = run(job(archive, sink_copy, keras_files / "nested_classifier.keras"))
    assert summary.is_new
    assert files(sink_copy) == before
    assert existing.stat().st_mtime_ns == mtime


@pytest.mark.soak
def test_new_images_are_added(archive, keras_files, tmp_path):
    source = shutil.copytree(archive, tmp_path / "source")
    sink = tmp_path / "sink"
    values = job(source, sink, keras_files / "nested_classifier.keras", gradcam={})
    run(values)
    before = files(sink)
    write_files(source, {"new.png": encoded_image(50)})
    assert run(values).num_images == 1
    assert len(image_rows(sink)) == 10
    assert before.items() <= files(sink).items()
    assert not run(values).is_new


def test_another_job_is_refused_without_overwrite(sink_copy, archive, keras_files):
    other = job(archive, sink_copy, keras_files / "nested_classifier.keras", weights={})
    before = files(sink_copy)
    with pytest.raises(SinkError, match="contains another explanation"):
        run(other)
    assert files(sink_copy) == before


@pytest.mark.soak
def test_sink_on_s3(s3, archive, keras_files, tmp_path):
    """Runs the command, because a Ray that other tests started has no access to this store."""
    sink = f"{s3.bucket_uri}/{tmp_path.name}"
    model = keras_files / "nested_classifier.keras"
    both = write_job(
        tmp_path / "both.yaml", job(archive, sink, model, gradcam={"top_k": 1}, weights={})
    )
    status, _, stderr = cvbatch("explain", "--config", both)
    assert (status, "9 pictures" in stderr) == (0, True), stderr
    status, _, stderr = cvbatch("explain", "--config", both)
    assert (status, "nothing to do" in stderr) == (0, True), stderr
    other = write_job(tmp_path / "other.yaml", job(archive, sink, model, weights={}))
    status, _, stderr = cvbatch("explain", "--config", other)
    assert (status, "contains another explanation" in stderr) == (2, True), stderr
    status, _, stderr = cvbatch("explain", "--config", other, "--overwrite")
    assert (status, "2 pictures" in stderr) == (0, True), stderr
    folders = {name.split("/")[0] for name in files(s3.bucket / tmp_path.name)}
    assert folders == {"pictures", "weights"}


def test_sink_in_use_is_refused_and_not_cleared(sink_copy, archive, keras_files):
    other = job(archive, sink_copy, keras_files / "nested_classifier.keras", weights={})
    with lease_holder(sink_copy) as process:
        before = tree(sink_copy)
        with pytest.raises(SinkError, match=rf"in use by .*process {process.pid}\)"):
            run(other, overwrite=True)
        assert tree(sink_copy) == before
        process.kill()
        process.wait()
        assert run(other, overwrite=True).num_pictures == 2
    assert sorted({name.split("/")[0] for name in files(sink_copy)}) == ["pictures", "weights"]


def test_overwrite_keeps_the_manifest_of_the_images(sink_copy, archive, keras_files):
    values = job(archive, sink_copy, keras_files / "nested_classifier.keras", gradcam={})
    before = sorted((sink_copy / "images").rglob("*/manifest/*"))
    assert before
    run(values, overwrite=True)
    assert sorted((sink_copy / "images").rglob("*/manifest/*")) == before
    assert not run(values).is_new


def test_state_of_version_0_1_0_without_counts_is_complete(sink_copy, archive, keras_files):
    path = sink_copy / "_cvbatch" / "explain.json"
    state = json.loads(path.read_text())
    del state["counted"]
    path.write_text(json.dumps(state))
    summary = run(job(archive, sink_copy, keras_files / "nested_classifier.keras"))
    assert (summary.is_new, summary.is_over_failure_limit) == (False, False)


@pytest.mark.parametrize("name", ["_cvbatch/job.json", "_cvbatch/training.json", "a.parquet"])
def test_sink_with_other_files_is_refused(tmp_path, archive, keras_files, name):
    write_files(tmp_path / "sink", {name: b"{}"})
    with pytest.raises(SinkError, match="use an"):
        run(job(archive, tmp_path / "sink", keras_files / "nested_classifier.keras"))


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"activations": {"layers": ["inner/conv"]}}, ModelError, "activations.layers: 'inner/c.*"
                                                                  "nearest are inner/conv2d"),
        ({"activations": {"layers": ["dense"]}}, ModelError, "'dense.*' has no outp|is no layer"),
        ({"weights": {"layers": ["act"]}}, ModelError, "is a LeakyReLU, which has no kernel"),
        ({"gradcam": {"classes": ["cat"]}}, ModelError, "'cat' is not among the model's classes"),
        ({"gradcam": {"layer": "acd"}}, ModelError, "'acd' is not in .*nearest is 'inner/act'"),
        ({"weights": {}, "run": {"workers": 99}}, ConfigError, "run.workers: 99 do not fit"),
    ],
)  # fmt: skip
def test_invalid_job_is_refused_before_anything_is_written(
    tmp_path, archive, keras_files, sections, error, message
):
    with pytest.raises(error, match=message):
        run(job(archive, tmp_path / "sink", keras_files / "nested_classifier.keras", **sections))
    assert not (tmp_path / "sink").exists()


def test_empty_source_is_refused(tmp_path, keras_files):
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="holds no image"):
        run(job(tmp_path / "none", tmp_path / "sink", keras_files / "nested_classifier.keras"))
    assert not (tmp_path / "sink").exists()


def test_model_without_convolutions_is_refused(tmp_path, archive):
    import keras

    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(),
                              keras.layers.Dense(2, "softmax")])  # fmt: skip
    model.save(tmp_path / "flat.keras")
    for section in ("weights", "patterns", "activations"):
        with pytest.raises(ModelError, match=rf"{section}.layers: .* has no convolution"):
            run(job(archive, tmp_path / "sink", tmp_path / "flat.keras", **{section: {}}))
    with pytest.raises(ModelError, match="feature map"):
        run(job(archive, tmp_path / "sink", tmp_path / "flat.keras", gradcam={}))


@pytest.mark.parametrize("task", ["segmentation", "detection", "localization"])
def test_other_tasks_have_heatmaps(tmp_path, archive, keras_files, task):
    model = {"segmentation": "segmenter", "detection": "detector", "localization": "localizer"}
    values = job(archive, tmp_path / "sink", keras_files / f"{model[task]}.keras",
                 gradcam={"top_k": 1})  # fmt: skip
    values["model"]["task"] = task
    summary = run(values)
    assert (summary.num_images, summary.num_pictures) == (9, 7)
    for row in image_rows(tmp_path / "sink"):
        for heatmap in row["heatmaps"] or []:
            assert (heatmap["box"] is not None) == (task == "detection")
            assert read_picture(tmp_path / "sink", heatmap["picture"]).ndim == 3


def test_infinite_activations_fail_their_image(tmp_path, archive):
    model = networks.plain_classifier(size=(16, 16))
    kernel, bias = model.get_layer("last").get_weights()
    model.get_layer("last").set_weights([kernel, np.full_like(bias, np.inf)])
    model.save(tmp_path / "inf.keras")
    values = job(archive, tmp_path / "sink", tmp_path / "inf.keras", activations={})
    summary = run(values)
    assert summary.failures["predict/not_finite"] == 7
    assert summary.is_over_failure_limit
    second = run(values)
    assert (second.is_new, second.is_over_failure_limit) == (False, True)
    assert second.as_json()["examples"] == {}
    example = summary.as_json()["examples"]["predict/not_finite"][0]
    assert set(example) == {"image_id", "message"}


def test_the_smoke_job(tmp_path):
    status, _, stderr = cvbatch(
        "explain", "--config", "jobs/examples/explain-smoke.yaml", "--set", f"sink.uri={tmp_path}",
        "--set", "patterns.filters=2", "--set", "dream.steps=1", cwd=ROOT,
    )  # fmt: skip
    assert status == 0, stderr
    counts = "12 images, 1 failed (decode/not_an_image 1)"
    assert stderr.splitlines()[-1] == f"cvbatch: done, 81 pictures into {tmp_path}, {counts}"


def test_invalid_option_is_reported_in_one_line(tmp_path, archive, keras_files):
    values = job(archive, tmp_path / "sink", keras_files / "nested_classifier.keras")
    path = write_job(tmp_path / "job.yaml", values)
    status, _, stderr = cvbatch("explain", "--config", path, "--set", "gradcam.box=[0,0,1,1]")
    assert status == RefusedError.exit_status
    assert "gradcam.box: a classification model scores the whole image" in stderr
    assert len(stderr.splitlines()) == 1


@pytest.mark.ray
def test_cluster_and_tar_give_the_same_arrays(
    ray_session, complete_sink, archive, tmp_path, keras_files
):
    names = {str(path.relative_to(archive)): path for path in archive.rglob("*") if path.is_file()}
    write_tar(tmp_path / "in" / "a.tar", {name: path.read_bytes() for name, path in names.items()})
    sections = {name: ALL[name] for name in ("activations", "gradcam", "patterns")}
    sink = tmp_path / "sink"
    values = job(tmp_path / "in", sink, keras_files / "nested_classifier.keras", **sections)
    assert run(values).num_images == 9
    cluster_rows = {row["image_id"].split("#")[1]: row for row in image_rows(sink)}
    for row in image_rows(complete_sink):
        cluster_row = cluster_rows[row["image_id"]]
        assert cluster_row["status"] == row["status"]
        for column in ("heatmaps", "activations"):
            for actual, expected in zip(cluster_row[column] or [], row[column] or [], strict=True):
                np.testing.assert_allclose(actual["values"], expected["values"], atol=1e-5)
                assert "a.tar/" in actual["picture"]
    actual, expected = (
        pq.read_table(next((folder / "patterns").glob("*")))["values"].to_pylist()
        for folder in (sink, complete_sink)
    )
    np.testing.assert_allclose(np.array(actual), np.array(expected), atol=1e-3)
