"""Heatmap evaluation of real predictions, by a network whose weights are set by hand."""

import json
import shutil

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from cvbatch.config.evaluate import parse_evaluation
from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ConfigError, ModelError, SourceError
from cvbatch.core.types import InputKey, Tiling
from cvbatch.evaluate.heatmap_job import input_keys, load_heatmap_source, sample_images
from cvbatch.evaluate.job import evaluate
from cvbatch.evaluate.join import predictions_only
from cvbatch.predict.job import predict
from cvbatch.results.result import Result
from cvbatch.storage.store import Storage
from tests.support.evaluations import write_result, write_truth
from tests.support.jobs import RecordingListener, carry_programs, cvbatch, write_files, write_job
from tests.support.networks import segmenter

SIZE = (48, 48)
CLASSES = ("leaf", "poppy")
COUNT = 40
FILES = (
    "metrics.json", "metrics.parquet", "heatmap_boxes.parquet", "unmatched.parquet",
    "insertion_deletion.png", "insertion_deletion.svg",
)  # fmt: skip


def network(path, gain=1.0):
    """Save a classifier of green and red objects, with weights set by hand."""
    import keras
    from keras import layers

    image = keras.Input((*SIZE, 3))
    colours = layers.Conv2D(2, 1, activation="relu", name="colours")
    x = layers.AveragePooling2D(6)(colours(image))
    x = layers.GlobalAveragePooling2D()(layers.ReLU(name="grid")(x))
    head = layers.Dense(2, activation="softmax", name="head")
    model = keras.Model(image, head(x))
    colours.set_weights([np.array([[[[-1, 1], [1, -1], [0, 0]]]]) / 255, np.full(2, -0.2)])
    head.set_weights([np.eye(2) * 40 * gain, np.zeros(2)])
    model.save(path)
    return path


def scenes():
    """Return JPEGs by name, and the box and class of the object in each.

    They are so large that their decoding depends on all models of the job.
    """
    files, boxes = {}, {}
    for i in range(COUNT):
        rng = np.random.default_rng(i)
        image = rng.integers(100, 130, (*SIZE, 1), np.uint8).repeat(3, 2)
        side = int(rng.integers(10, 19))
        top, left = rng.integers(0, 48 - side, 2).tolist()
        image[top : top + side, left : left + side] = (20, 20, 210) if i % 2 else (20, 210, 20)
        large = image.repeat(4, 0).repeat(4, 1)
        files[f"{i:02d}.jpg"] = cv2.imencode(".jpg", large)[1].tobytes()
        box = 4 * left, 4 * top, 4 * (left + side), 4 * (top + side)
        boxes[f"{i:02d}.jpg"] = (*box, i % 2, 0)
    return files, boxes


def prediction(folder, model, sink, chunk_images=15):
    return {
        "source": {"uri": str(folder / "in")},
        "sink": {"uri": str(sink)},
        "models": [
            {"task": "classification", "model": str(model), "classes": list(CLASSES),
             "heatmap": {"layer": "grid"}},
            {"task": "segmentation", "model": str(folder / "masks.keras")},
        ],
        "run": {
            "batch_size": 8, "chunk_images": chunk_images, "max_failure_fraction": 0.5,
            "engine": "litert", "arrangement": "fused", "gpus_per_actor": 0,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A folder with images `in`, one of them broken, their result `out`, and `truth`."""
    folder = tmp_path_factory.mktemp("heatmaps")
    files, boxes = scenes()
    write_files(folder / "in", files | {"broken.png": b"text"})
    model = network(folder / "net.keras")
    segmenter(size=(96, 96)).save(folder / "masks.keras")
    predict(parse_job(prediction(folder, model, folder / "out")), RecordingListener())
    rows = {name: {"labels": [(box[4], 1.0)], "boxes": [box]} for name, box in boxes.items()}
    write_truth(folder / "truth", rows, {"labels": CLASSES, "boxes": CLASSES}, shard_images=9)
    return folder


def run(folder, sink, listener=None, result="out", truth="truth", workers=1, **options):
    heatmaps = {"sample": 12, "steps": 8, **options.pop("heatmaps", {})}
    job = {
        "predictions": {"uri": str(folder / result)},
        "sink": {"uri": str(sink)},
        "evaluation": {"bootstrap": 20, "heatmaps": heatmaps, **options},
        "run": {"workers": workers},
    }
    if truth:
        job["truth"] = {"uri": str(folder / truth)}
    return evaluate(parse_evaluation(job), listener or RecordingListener())


def metrics(sink):
    return json.loads((sink / "metrics.json").read_text())


def copy_archive(archive, folder):
    """Copy result and labels, so that a test may change them; the job has the original URIs."""
    shutil.copytree(archive / "out", folder / "out")
    shutil.copytree(archive / "truth", folder / "truth")
    return folder


def change_job(folder, **changes):
    path = folder / "out" / "_cvbatch" / "job.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**state, **changes}.items() if v is not None}))
    return state


@pytest.mark.keras
@pytest.mark.ray
def test_heatmaps_of_a_colour_network_are_faithful(archive, tmp_path):
    summary = run(archive, tmp_path / "eval", heatmaps={"sample": 200})
    document = metrics(tmp_path / "eval")
    assert document["images"]["heatmaps_judged"] == COUNT and document["images"]["failed"] == 0
    overall = {name: row["value"] for name, row in document["tasks"]["heatmap"]["overall"].items()}
    assert overall["pointing_game"] == 1.0 > 0.5 > overall["random_pointing_game"]
    assert overall["insertion_auc"] > overall["random_insertion_auc"] + 0.03
    assert overall["deletion_auc"] < overall["random_deletion_auc"] - 0.1
    assert overall["box_iou"] > 0.4 > 0.2 > overall["random_box_iou"]
    assert set(document["tasks"]["heatmap"]["classes"]) == set(CLASSES)
    assert document["tasks"]["classification"]["overall"]["accuracy"]["value"] == 1.0
    curves = document["tasks"]["heatmap"]["curves"]
    assert curves["share"] == [i / 8 for i in range(9)]
    scores = [
        row["heatmaps"][0]["score"]
        for path in (archive / "out").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
        if row["status"] == "ok"
    ]
    for name in ("insertion", "random_insertion"):
        assert curves[name][-1] == pytest.approx(np.mean(scores), abs=1e-6)
    for name in ("deletion", "random_deletion"):
        assert curves[name][0] == pytest.approx(np.mean(scores), abs=1e-6)
    boxes = pq.read_table(tmp_path / "eval" / "heatmap_boxes.parquet").to_pylist()
    assert np.mean([row["iou"] for row in boxes]) == pytest.approx(overall["box_iou"])
    assert {row["metric"] for row in summary.figures if row["task"] == "heatmap"} == set(overall)


@pytest.mark.keras
@pytest.mark.ray
def test_metrics_depend_neither_on_chunks_nor_on_workers(archive, tmp_path, monkeypatch):
    carry_programs(archive / "out", tmp_path / "finer")
    job = prediction(archive, archive / "net.keras", tmp_path / "finer", chunk_images=3)
    predict(parse_job(job), RecordingListener())
    sinks = [tmp_path / name for name in ("one", "tasks", "chunks", "processes")]
    job = {
        "predictions": {"uri": str(archive / "out")},
        "truth": {"uri": str(archive / "truth")},
        "sink": {"uri": str(sinks[0])},
        "evaluation": {"bootstrap": 20, "heatmaps": {"sample": 34, "steps": 8}},
    }
    config = write_job(tmp_path / "job.yaml", job)
    status, stdout, stderr = cvbatch("evaluate", "--config", config)
    assert status == 0, stderr
    assert "heatmap" in stdout and "random_pointing_game" in stdout
    assert stderr.splitlines()[-1].startswith("cvbatch: done, 40 images compared into")
    assert "XNNPACK" not in stderr
    run(archive, sinks[1], heatmaps={"sample": 34}, workers=2)
    with monkeypatch.context() as patch:  # as without Ray
        patch.setattr("cvbatch.distributed.parallel_map.joins_a_cluster", lambda: False)
        run(archive, sinks[3], heatmaps={"sample": 34}, workers=2)
    shutil.copytree(archive / "truth", tmp_path / "truth")
    run(tmp_path, sinks[2], result="finer", heatmaps={"sample": 34})
    for name in FILES:
        assert len({(sink / name).read_bytes() for sink in sinks}) == 1, name


@pytest.mark.keras
@pytest.mark.ray
def test_without_truth_or_stored_program_the_network_is_compiled_again(archive, tmp_path):
    copy_archive(archive, tmp_path)
    shutil.rmtree(tmp_path / "out" / "_cvbatch" / "programs")
    before = sorted((tmp_path / "out").rglob("*"))
    run(archive, tmp_path / "labelled")
    summary = run(tmp_path, tmp_path / "unlabelled", truth=None)
    assert (summary.joined_by, summary.images["images"]) == ("", 12)
    assert sorted((tmp_path / "out").rglob("*")) == before
    labelled = metrics(tmp_path / "labelled")["tasks"]
    unlabelled = metrics(tmp_path / "unlabelled")["tasks"]
    assert list(unlabelled) == ["heatmap"]
    assert set(unlabelled["heatmap"]["overall"]) == {
        "insertion_auc", "random_insertion_auc", "deletion_auc", "random_deletion_auc",
    }  # fmt: skip
    assert unlabelled["heatmap"]["curves"] == labelled["heatmap"]["curves"]
    rows = pq.read_table(tmp_path / "unlabelled" / "heatmap_boxes.parquet").to_pylist()
    assert len(rows) == 12 and {row["iou"] for row in rows} == {None}


@pytest.mark.keras
@pytest.mark.ray
def test_a_sample_is_a_subset_of_a_larger_one_and_depends_on_the_seed(archive):
    result = Result(Storage(), str(archive / "out"))
    source, parts = load_heatmap_source(result), predictions_only(result).parts

    def sample(count, seed):
        config = parse_evaluation(
            {"predictions": {"uri": "p"}, "sink": {"uri": "s"},
             "evaluation": {"heatmaps": {"sample": count}}}
        ).evaluation.heatmaps  # fmt: skip
        groups = sample_images(source, parts, config, seed)
        assert all(sum(len(part.part_row) for part in group) <= 16 for group in groups)
        return {
            (part.part_uri, row)
            for group in groups
            for part in group
            for row in part.part_row.tolist()
        }

    assert len(sample(1000, 0)) == COUNT
    assert sample(5, 0) < sample(17, 0) and len(sample(17, 0)) == 17
    assert sample(17, 0) != sample(17, 1)


@pytest.mark.keras
@pytest.mark.ray
def test_missing_images_are_reported_and_a_sample_without_images_is_refused(archive, tmp_path):
    files, _ = scenes()
    source = write_files(tmp_path / "in", files)
    carry_programs(archive / "out", tmp_path / "out")
    shutil.copy(archive / "masks.keras", tmp_path)
    predict(
        parse_job(prediction(tmp_path, archive / "net.keras", tmp_path / "out")),
        RecordingListener(),
    )
    shutil.copytree(archive / "truth", tmp_path / "truth")
    (source / "03.jpg").unlink()
    (source / "04.jpg").write_bytes(files["05.jpg"])
    listener = RecordingListener()
    summary = run(tmp_path, tmp_path / "eval", listener, heatmaps={"sample": 40})
    assert summary.images["heatmaps_judged"] == 38
    assert summary.images["heatmaps_left_out"] == 2
    assert "2 sampled images cannot be evaluated" in "\n".join(listener.lines)
    assert "03.jpg (missing), 04.jpg (changed)" in "\n".join(listener.lines)
    unmatched = pq.read_table(tmp_path / "eval" / "unmatched.parquet").to_pylist()
    assert [(row["image_id"], row["side"], row["reason"]) for row in unmatched] == [
        ("03.jpg", "originals", "missing"),
        ("04.jpg", "originals", "changed"),
    ]
    shutil.rmtree(source)
    with pytest.raises(SourceError, match=r"none of 12 sampled images can be evaluated, such as '"):
        run(tmp_path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_input_keys_of_all_models():
    models = [
        {"task": "classification", "model": "a.keras", "resize": "crop"},
        {"task": "segmentation", "model": "b.keras", "tiles": {"overlap": 8}},
        {"task": "detection", "model": "c.keras", "resize": "crop"},
        {"task": "embedding", "model": "d.keras"},
    ]
    job = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": models})
    sizes = [(48, 32), (64, 80), (48, 32), (24, 24)]
    metadata = [
        {"task": model["task"], "input_size": list(size)}
        for model, size in zip(models, sizes, strict=True)
    ]
    assert input_keys(job, metadata) == (
        InputKey(48, 32, "crop"),
        InputKey(64, 80, "stretch", Tiling(64, 80, 8, 8)),
        InputKey(24, 24, "stretch"),
    )


def test_a_result_without_heatmaps_is_refused(tmp_path):
    rows = {f"{i}": {"labels": [(0, 0.5)]} for i in range(2)}
    write_result(tmp_path / "out", rows, {"labels": CLASSES})
    with pytest.raises(SourceError, match="has no heatmaps; predict with heatmap:"):
        run(tmp_path, tmp_path / "eval", truth=None)
    assert not (tmp_path / "eval").exists()


@pytest.mark.keras
@pytest.mark.ray
def test_a_missing_or_different_network_is_refused(archive, tmp_path):
    copy_archive(archive, tmp_path)
    state = change_job(tmp_path, job=None)
    cases = {
        "does not contain the job": (SourceError, None),
        "is not valid in this version .models.0.*top_q": (SourceError, {"top_q": 3}),
        "gone.keras": (ModelError, {"model": str(tmp_path / "gone.keras")}),
        "its weights differ": (ModelError, {"model": str(network(tmp_path / "other.keras", 2.0))}),
    }
    for message, (kind, change) in cases.items():
        model = {**state["job"]["models"][0], **(change or {})}
        change_job(tmp_path, job=change and {**state["job"], "models": [model]})
        with pytest.raises(kind, match=message) as caught:
            run(tmp_path, tmp_path / "eval")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "eval").exists()


@pytest.mark.keras
@pytest.mark.ray
def test_classes_of_boxes_match_by_name_and_map(archive, tmp_path):
    _, boxes = scenes()
    plants = {name: {"boxes": [(*box[:4], 0, 0)]} for name, box in boxes.items()}
    write_truth(tmp_path / "truth", plants, {"boxes": ("plant",)})
    shutil.copytree(archive / "out", tmp_path / "out")
    with pytest.raises(
        ConfigError, match=r"such as 'leaf', is a class of the truth's boxes, such as"
    ):
        run(tmp_path, tmp_path / "eval")
    with pytest.raises(
        ConfigError, match=r"heatmaps.class_map: 'tree' is no true class; use one of plant"
    ):
        run(tmp_path, tmp_path / "eval", heatmaps={"class_map": {"leaf": "tree"}})
    assert not (tmp_path / "eval").exists()
    run(tmp_path, tmp_path / "eval", heatmaps={"class_map": {"leaf": "plant", "poppy": None}})
    heatmap = metrics(tmp_path / "eval")["tasks"]["heatmap"]
    assert heatmap["classes"]["leaf"]["pointing_game"]["value"] == 1.0
    assert heatmap["classes"]["poppy"]["pointing_game"]["value"] is None


@pytest.mark.keras
@pytest.mark.ray
def test_an_overwritten_sink_has_no_files_of_heatmaps(archive, tmp_path):
    run(archive, tmp_path / "eval")
    job = {
        "predictions": {"uri": str(archive / "out")},
        "truth": {"uri": str(archive / "truth")},
        "sink": {"uri": str(tmp_path / "eval")},
    }
    evaluate(parse_evaluation(job), RecordingListener(), overwrite=True)
    names = {path.name for path in (tmp_path / "eval").iterdir()}
    assert "metrics.json" in names
    assert not any(name.startswith(("heatmap_boxes", "insertion_deletion")) for name in names)
    assert "heatmap" not in metrics(tmp_path / "eval")["tasks"]
