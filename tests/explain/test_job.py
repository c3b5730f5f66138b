"""An explanation's files hold what the network computes, once, whatever stops it midway."""

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


class Heard:
    """A listener that keeps what was said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)

    def listed(self, num_names):
        pass

    def begun(self, num_chunks, num_images):
        pass

    def written(self, report, summary):
        pass


def job(source, sink, model, **said):
    values = {
        "model": {"task": "classification", "model": str(model)},
        "source": {"uri": str(source)},
        "sink": {"uri": str(sink)},
        "run": {"batch_size": 3, "chunk_images": 4, "max_failure_fraction": 0.5},
    }
    for section, inside in (said or ALL).items():
        values[section] = {**values.get(section, {}), **inside}
    return values


def run(values, **options):
    return explain(parse_explanation(values), Heard(), **options)


def files(sink):
    """Return every file that is a result, by name."""
    return {
        str(path.relative_to(sink)): path.read_bytes()
        for path in sorted(Path(sink).rglob("*"))
        if path.is_file() and "_cvbatch" not in path.parts
    }


def image_rows(sink):
    found = ds.dataset(str(Path(sink) / "images"), format="parquet").to_table().to_pylist()
    return sorted(found, key=lambda row: row["image_id"])


def picture(sink, name):
    return cv2.imread(str(Path(sink) / name), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("archive"), archive_files(7))


@pytest.fixture(scope="module")
def done(archive, keras_files, tmp_path_factory):
    """A sink with all sections, computed once."""
    sink = tmp_path_factory.mktemp("explained")
    summary = run(job(archive, sink, keras_files / "nested_classifier.keras"))
    assert (summary.num_images, summary.num_failed, summary.is_new) == (9, 2, True)
    return sink


@pytest.fixture
def copied(done, tmp_path):
    """The same sink, for a test that damages it; its fingerprint does not say where it lies."""
    shutil.copytree(done, tmp_path / "sink")
    return tmp_path / "sink"


def test_every_image_is_a_row_and_a_broken_one_has_its_error(done, archive):
    rows = image_rows(done)
    assert [row["image_id"] for row in rows] == sorted(
        str(path.relative_to(archive)) for path in archive.rglob("*") if path.is_file()
    )
    failed = {row["image_id"]: row["error"] for row in rows if row["status"] == "failed"}
    assert {name: error["kind"] for name, error in failed.items()} == {
        "broken/empty.png": "empty", "broken/text.jpg": "not_an_image",
    }  # fmt: skip
    assert all(row["activations"] is None for row in rows if row["status"] == "failed")


def test_arrays_are_the_networks_own_and_pictures_show_them(done, archive, keras_files):
    import keras

    model = keras.saving.load_model(keras_files / "nested_classifier.keras")
    inner = model.get_layer("inner")
    convolutions = [
        f"inner/{layer.name}" for layer in inner.layers if isinstance(layer, keras.layers.Conv2D)
    ]
    key = InputKey(32, 32, "stretch")
    ok = [row for row in image_rows(done) if row["status"] == "ok"]
    assert len(ok) == 7
    for row in ok:
        data = (archive / row["image_id"]).read_bytes()
        pixels = decode(data, [key], Limits()).pixels[key]
        assert [one["layer"] for one in row["activations"]] == convolutions
        for one in row["activations"]:
            layer = inner.get_layer(one["layer"].split("/")[1])
            cut = keras.Model(inner.inputs, layer.output)
            maps = np.asarray(cut([pixels[None].astype("float32")]))[0]
            shape = one["height"], one["width"], one["channels"]
            values = np.array(one["values"], np.float32).reshape(shape)
            np.testing.assert_allclose(values, maps, atol=1e-4)
            assert np.array_equal(picture(done, one["picture"]), channel_grid(values))
        scores = np.asarray(model(pixels[None].astype("float32")))[0]
        for rank, one in enumerate(row["heatmaps"]):
            assert one["layer"] == "inner/act"
            np.testing.assert_allclose(one["score"], np.sort(scores)[-1 - rank], atol=1e-5)
            heat = np.array(one["values"], np.float32).reshape(one["height"], one["width"])
            drawn = picture(done, one["picture"])[..., ::-1]
            assert np.array_equal(drawn, overlay(pixels, heat))
        dreamt = cv2.imdecode(np.frombuffer(row["dream"]["bytes"], np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(dreamt, picture(done, row["dream"]["path"]))
        assert dreamt.shape == (32, 32, 3)


def test_filters_are_in_tables_of_their_own(done, keras_files):
    import keras

    model = keras.saving.load_model(keras_files / "nested_classifier.keras")
    (patterns,) = sorted((done / "patterns").glob("*.parquet"))
    rows = pq.read_table(patterns).to_pylist()
    assert [row["filter"] for row in rows] == [0, 1, 2, 3, 4]
    assert {(row["height"], row["width"], row["channels"]) for row in rows} == {(16, 16, 3)}
    assert picture(done, rows[0]["picture"]).shape == (16, 5 * 16 + 4 * 5, 3)
    tables = sorted((done / "weights").glob("*.parquet"))
    layers = {pq.read_table(path)["layer"][0].as_py(): path for path in tables}
    inner = model.get_layer("inner")
    convolutions = [x for x in inner.layers if isinstance(x, keras.layers.Conv2D)]
    assert len(layers) == len(convolutions) == 2
    for layer in convolutions:
        rows = pq.read_table(layers[f"inner/{layer.name}"]).to_pylist()
        kernels = np.asarray(layer.kernel)
        for number, row in enumerate(rows):
            assert np.array_equal(np.array(row["values"], np.float32), kernels[..., number].ravel())
        assert np.array_equal(picture(done, rows[0]["picture"]), kernel_grid(kernels))


def test_a_finished_job_does_nothing(copied, archive, keras_files):
    (copied / "_cvbatch" / "network.keras").unlink()  # it would have to be written again
    summary = run(job(archive, copied, keras_files / "nested_classifier.keras"))
    assert not summary.is_new
    assert not (copied / "_cvbatch" / "network.keras").exists()


def test_what_is_missing_is_done_again_to_the_byte(copied, archive, keras_files):
    before = files(copied)
    state = copied / "_cvbatch" / "explain.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "is_complete": False}))
    for folder in ("images", "patterns", "weights"):
        next((copied / folder).glob("*.parquet")).unlink()
    shutil.rmtree(copied / "pictures" / "patterns")
    kept = next((copied / "images").glob("*.parquet"))
    stamp = kept.stat().st_mtime_ns
    summary = run(job(archive, copied, keras_files / "nested_classifier.keras"))
    assert summary.is_new
    assert files(copied) == before
    assert kept.stat().st_mtime_ns == stamp


def test_new_images_are_added(archive, keras_files, tmp_path):
    more = shutil.copytree(archive, tmp_path / "more")
    sink = tmp_path / "sink"
    values = job(more, sink, keras_files / "nested_classifier.keras", gradcam={})
    run(values)
    before = files(sink)
    write_files(more, {"new.png": encoded_image(50)})
    assert run(values).num_images == 1
    assert len(image_rows(sink)) == 10
    assert before.items() <= files(sink).items()
    assert not run(values).is_new


def test_another_job_is_refused_unless_it_may_overwrite(copied, archive, keras_files):
    other = job(archive, copied, keras_files / "nested_classifier.keras", weights={})
    before = files(copied)
    with pytest.raises(SinkError, match="contains another explanation"):
        run(other)
    assert files(copied) == before
    summary = run(other, overwrite=True)
    assert summary.num_pictures == 2
    assert sorted({name.split("/")[0] for name in files(copied)}) == ["pictures", "weights"]


@pytest.mark.soak
def test_a_sink_in_a_store(s3, archive, keras_files, tmp_path):
    """By the command: a Ray that other tests have started does not know this store."""
    sink = f"{s3.bucket_uri}/{tmp_path.name}"
    model = keras_files / "nested_classifier.keras"
    both = write_job(
        tmp_path / "both.yaml", job(archive, sink, model, gradcam={"top_k": 1}, weights={})
    )
    status, _, told = cvbatch("explain", "--config", both)
    assert (status, "9 pictures" in told) == (0, True), told
    status, _, told = cvbatch("explain", "--config", both)
    assert (status, "nothing to do" in told) == (0, True), told
    other = write_job(tmp_path / "other.yaml", job(archive, sink, model, weights={}))
    status, _, told = cvbatch("explain", "--config", other)
    assert (status, "contains another explanation" in told) == (2, True), told
    status, _, told = cvbatch("explain", "--config", other, "--overwrite")
    assert (status, "2 pictures" in told) == (0, True), told
    left = {name.split("/")[0] for name in files(s3.bucket / tmp_path.name)}
    assert left == {"pictures", "weights"}


def test_a_sink_in_use_is_refused_and_not_cleared(copied, archive, keras_files):
    other = job(archive, copied, keras_files / "nested_classifier.keras", weights={})
    with lease_holder(copied) as process:
        before = tree(copied)
        with pytest.raises(SinkError, match=rf"in use by .*process {process.pid}\)"):
            run(other, overwrite=True)
        assert tree(copied) == before
        process.kill()
        process.wait()
        assert run(other, overwrite=True).num_pictures == 2


def test_the_plan_of_the_images_survives_when_they_are_overwritten(copied, archive, keras_files):
    values = job(archive, copied, keras_files / "nested_classifier.keras", gradcam={})
    before = sorted((copied / "images").rglob("*/manifest/*"))
    assert before
    run(values, overwrite=True)
    assert sorted((copied / "images").rglob("*/manifest/*")) == before
    assert not run(values).is_new


def test_a_state_of_version_0_1_0_that_counts_no_failures_is_complete(copied, archive, keras_files):
    path = copied / "_cvbatch" / "explain.json"
    state = json.loads(path.read_text())
    del state["counted"]
    path.write_text(json.dumps(state))
    summary = run(job(archive, copied, keras_files / "nested_classifier.keras"))
    assert (summary.is_new, summary.is_over_failure_limit) == (False, False)


@pytest.mark.parametrize("name", ["_cvbatch/job.json", "_cvbatch/training.json", "a.parquet"])
def test_the_sink_of_something_else_is_refused(tmp_path, archive, keras_files, name):
    write_files(tmp_path / "sink", {name: b"{}"})
    with pytest.raises(SinkError, match="use an"):
        run(job(archive, tmp_path / "sink", keras_files / "nested_classifier.keras"))


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({"activations": {"layers": ["inner/conv"]}}, ModelError, "activations.layers: 'inner/c.*"
                                                                  "nearest are inner/conv2d"),
        ({"activations": {"layers": ["dense"]}}, ModelError, "'dense.*' gives no map|is no layer"),
        ({"weights": {"layers": ["act"]}}, ModelError, "is a LeakyReLU, which has no kernels"),
        ({"gradcam": {"classes": ["cat"]}}, ModelError, "'cat' is not among the model's classes"),
        ({"gradcam": {"layer": "acd"}}, ModelError, "'acd' is no layer .*nearest are inner/act"),
        ({"weights": {}, "run": {"workers": 99}}, ConfigError, "run.workers: 99 do not fit"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path, archive, keras_files, said, error, message
):
    with pytest.raises(error, match=message):
        run(job(archive, tmp_path / "sink", keras_files / "nested_classifier.keras", **said))
    assert not (tmp_path / "sink").exists()


def test_an_empty_source_is_refused(tmp_path, keras_files):
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="holds no image"):
        run(job(tmp_path / "none", tmp_path / "sink", keras_files / "nested_classifier.keras"))
    assert not (tmp_path / "sink").exists()


def test_a_model_without_convolutions_is_refused(tmp_path, archive):
    import keras

    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(),
                              keras.layers.Dense(2, "softmax")])  # fmt: skip
    model.save(tmp_path / "flat.keras")
    for said in ({"weights": {}}, {"patterns": {}}, {"activations": {}}):
        with pytest.raises(ModelError, match="has no convolution"):
            run(job(archive, tmp_path / "sink", tmp_path / "flat.keras", **said))
    with pytest.raises(ModelError, match="feature map"):
        run(job(archive, tmp_path / "sink", tmp_path / "flat.keras", gradcam={}))


@pytest.mark.parametrize("task", ["segmentation", "detection", "localization"])
def test_every_task_says_why(tmp_path, archive, keras_files, task):
    model = {"segmentation": "segmenter", "detection": "detector", "localization": "localizer"}
    values = job(archive, tmp_path / "sink", keras_files / f"{model[task]}.keras",
                 gradcam={"top_k": 1})  # fmt: skip
    values["model"]["task"] = task
    summary = run(values)
    assert (summary.num_images, summary.num_pictures) == (9, 7)
    for row in image_rows(tmp_path / "sink"):
        for one in row["heatmaps"] or []:
            assert (one["box"] is not None) == (task == "detection")
            assert picture(tmp_path / "sink", one["picture"]).ndim == 3


def test_numbers_that_are_not_finite_fail_their_image(tmp_path, archive):
    model = networks.plain_classifier(size=(16, 16))
    kernel, bias = model.get_layer("last").get_weights()
    model.get_layer("last").set_weights([kernel, np.full_like(bias, np.inf)])
    model.save(tmp_path / "nan.keras")
    summary = run(job(archive, tmp_path / "sink", tmp_path / "nan.keras", activations={}))
    assert summary.failures["predict/not_finite"] == 7
    assert summary.is_over_failure_limit
    again = run(job(archive, tmp_path / "sink", tmp_path / "nan.keras", activations={}))
    assert (again.is_new, again.is_over_failure_limit) == (False, True)  # until it is mended
    assert again.as_json()["examples"] == {}
    shown = summary.as_json()["examples"]["predict/not_finite"][0]
    assert set(shown) == {"image_id", "message"}


@pytest.mark.ray
def test_a_cluster_says_the_same_of_a_tar(ray_session, done, archive, tmp_path, keras_files):
    names = {str(path.relative_to(archive)): path for path in archive.rglob("*") if path.is_file()}
    write_tar(tmp_path / "in" / "a.tar", {name: path.read_bytes() for name, path in names.items()})
    said = {name: ALL[name] for name in ("activations", "gradcam", "patterns")}
    sink = tmp_path / "sink"
    values = job(tmp_path / "in", sink, keras_files / "nested_classifier.keras", **said)
    values["gradcam"] = ALL["gradcam"]
    assert run(values).num_images == 9
    theirs = {row["image_id"].split("#")[1]: row for row in image_rows(sink)}
    for row in image_rows(done):
        other = theirs[row["image_id"]]
        assert other["status"] == row["status"]
        for column in ("heatmaps", "activations"):
            for mine, their in zip(row[column] or [], other[column] or [], strict=True):
                np.testing.assert_allclose(their["values"], mine["values"], atol=1e-5)
                assert "a.tar/" in their["picture"]
    mine, their = (
        pq.read_table(next((place / "patterns").glob("*")))["values"].to_pylist()
        for place in (done, sink)
    )
    np.testing.assert_allclose(np.array(their), np.array(mine), atol=1e-3)


def test_the_smoke_job(tmp_path):
    code, _, told = cvbatch(
        "explain", "--config", "jobs/examples/explain-smoke.yaml", "--set", f"sink.uri={tmp_path}",
        "--set", "patterns.filters=2", "--set", "dream.steps=1", cwd=ROOT,
    )  # fmt: skip
    assert code == 0, told
    done = f"cvbatch: done, 81 pictures into {tmp_path}, 12 images, 1 failed"
    assert told.splitlines()[-1] == f"{done} (decode/not_an_image 1)"


def test_the_command_refuses_in_one_line(tmp_path, archive, keras_files):
    values = job(archive, tmp_path / "sink", keras_files / "nested_classifier.keras")
    path = write_job(tmp_path / "job.yaml", values)
    word = "gradcam.box=[0,0,1,1]"
    code, _, told = cvbatch("explain", "--config", path, "--set", word)
    assert code == RefusedError.exit_status
    assert "gradcam.box: a classification model scores the whole image" in told
    assert len(told.splitlines()) == 1
