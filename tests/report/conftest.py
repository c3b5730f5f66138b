"""A small prediction, evaluation and training with untrusted names, and their reports."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from cvbatch.config.evaluate import parse_evaluation
from cvbatch.evaluate.job import evaluate
from cvbatch.explain import tables
from cvbatch.report.job import write_comparison, write_report
from cvbatch.train import history
from tests.support import jobs
from tests.support.datasets import picture
from tests.support.evaluations import write_truth
from tests.support.results import FAILED_ROW, SIZE, random_row, write_predictions

SCRIPT = "<script>document.title='executed'</script>"
CLASSES = ("background", SCRIPT, 'dög "q" & <b>co</b>')
NAMES = [f"set/i {n:02d}.png" for n in range(13)]
HOSTILE = "set/<img src=x onerror=alert(1)>'\"&.png"
EXACT = "set/as labelled.png"


@pytest.fixture(scope="session")
def result(tmp_path_factory):
    """A result with every column: one image agrees with its labels, two images failed."""
    folder = tmp_path_factory.mktemp("page")
    names = [*NAMES, HOSTILE, EXACT]
    files = {name: picture(*SIZE, seed=n) for n, name in enumerate(names)}
    jobs.write_files(folder / "images", files | jobs.BROKEN)
    predictions = {name: random_row(n + 1, CLASSES) for n, name in enumerate(names)}
    options = {"classification": {"heatmap": {"layer": "auto"}}}
    out = write_predictions(
        folder / "result", folder / "images", predictions, classes=CLASSES, **options
    )
    runs = out / "_cvbatch" / "runs"
    runs.mkdir()
    run = {"num_images": 17, "num_failed": 2, "num_chunks": 5, "seconds": 3.5}
    ignored = {"ignored": {"raw_photograph": 3}, "ignored_examples": {"raw_photograph": [HOSTILE]}}
    heatmaps = {"num_heatmaps": 15, "num_empty_heatmaps": 4}
    summary = json.dumps({**run, "images_per_second": 6.25, **ignored, **heatmaps})
    (runs / "20260102T030405.000006Z.json").write_text(summary)
    job = {"source": {"uri": [f"{folder}/images"]}, "sink": {"uri": str(out)}, "note": SCRIPT}
    costs = [(1234, 56_789), (4321, None), (None, None)]
    networks = [{"parameters": p, "multiply_adds": m} for p, m in costs]
    state = {"schema_version": 1, "fingerprint": "abc", "job": job, "networks": networks}
    (out / "_cvbatch" / "job.json").write_text(json.dumps(state))
    return out


@pytest.fixture(scope="session")
def truth(result):
    """Labels, boxes and masks: one image as predicted, all others different."""
    rows = {row["image_id"]: row for row in jobs.rows(result) if row["status"] == "ok"}
    sides = ("x_min", "y_min", "x_max", "y_max")
    labels = {}
    for name in rows:
        row = rows[name]
        boxes = [
            (*(box[side] for side in sides), box["class_id"], 0.0)
            for box in row["boxes"]
            if box["score"] >= 0.5
        ]
        is_exact = name == EXACT
        labels[name] = {
            "labels": [(row["labels"][0]["class_id"] if is_exact else 0, 1.0)],
            "boxes": boxes if is_exact else [(1, 2, 30, 20, 2, 0.0)],
            "mask": decoded(row) if is_exact else np.full(SIZE, 2, np.uint8),
        }
    classes = {"labels": CLASSES, "boxes": CLASSES, "mask": CLASSES}
    return write_truth(result.parent / "truth", labels, classes)


def decoded(row):
    from cvbatch.images.masks import decode_png

    return decode_png(row["mask"]["bytes"])


@pytest.fixture(scope="session")
def evaluation(result, truth):
    """The evaluation of the result."""
    sink = result.parent / "evaluation"
    job = {
        "predictions": {"uri": str(result)},
        "truth": {"uri": str(truth)},
        "sink": {"uri": str(sink)},
        "evaluation": {"bootstrap": 10},
        "run": {"workers": 1},
    }
    evaluate(parse_evaluation(job), jobs.RecordingListener())
    return sink


@pytest.fixture(scope="session")
def training(tmp_path_factory):
    """The sink of a training of six epochs in two phases, without its network."""
    folder = tmp_path_factory.mktemp("training")
    rows = [
        {"epoch": n + 1, "step": 10 * n, "phase": "head" if n < 2 else "all", "seconds": 1.5,
         "waited_seconds": 0.25, "learning_rate": 0.1, "loss": 1 / (n + 1),
         "accuracy": None if n == 3 else n / 10}
        for n in range(6)
    ]  # fmt: skip
    (folder / "history.parquet").write_bytes(history.to_parquet(rows))
    (folder / "metrics.json").write_text('{"validation": {"accuracy": 0.5}, "test": {}}')
    (folder / "config.yaml").write_text("source:\n  uri: labels/\n")
    (folder / "_cvbatch").mkdir()
    notes = ["best epoch: 5 of 6, accuracy 0.5"]
    state = {"done": {"best_epoch": 5, "images": {"train": 80, "validation": 20}, "notes": notes}}
    (folder / "_cvbatch" / "training.json").write_text(json.dumps(state))
    return folder


@pytest.fixture(scope="session")
def other_result(result):
    """Another result over the same images: other classes and boxes, one image failed."""
    names = [*NAMES, HOSTILE, EXACT]
    predictions = {name: random_row(n + 1, CLASSES) for n, name in enumerate(names)}
    for number, name in enumerate(names[:4]):
        predictions[name] = random_row(number + 20, CLASSES)
        predictions[name]["labels"].reverse()
    predictions[NAMES[5]] = FAILED_ROW
    options = {"classification": {"heatmap": {"layer": "auto"}}}
    return write_predictions(
        result.parent / "other", result.parent / "images", predictions, classes=CLASSES, **options
    )


@pytest.fixture(scope="session")
def explanation(tmp_path_factory):
    """The sink of an explanation of one image and one layer, without its network."""
    folder = tmp_path_factory.mktemp("explanation")
    paths = {
        "gradcam": f"pictures/gradcam/{HOSTILE}/002.png",
        "dream": f"pictures/dream/{HOSTILE}.png",
        "activations": f"pictures/activations/{HOSTILE}/conv.png",
        "weights": "pictures/weights/conv.png",
    }
    jobs.write_files(folder, {path: picture(*SIZE) for path in paths.values()})
    heatmap = {"model": "m", "layer": "conv", "class_id": 1, "label": SCRIPT, "score": 0.75}
    heatmap |= {"height": 1, "width": 1, "values": [1.0], "box": None, "picture": paths["gradcam"]}
    layer = {"layer": "conv", "height": 1, "width": 1, "channels": 1, "values": [1.0]}
    failed = {"stage": "decode", "kind": "truncated", "message": SCRIPT}
    rows = [
        {"image_id": HOSTILE, "uri": "u", "width": 60, "height": 40, "status": "ok",
         "activations": [{**layer, "picture": paths["activations"]}], "heatmaps": [heatmap],
         "dream": {"bytes": b"", "path": paths["dream"]}},
        {"image_id": "broken", "uri": "v", "status": "failed", "error": failed},
    ]  # fmt: skip
    schema = tables.images_schema(("activations", "gradcam", "dream"))
    (folder / "images").mkdir()
    jobs.pq.write_table(pa.Table.from_pylist(rows, schema), folder / "images" / "part-0.parquet")
    filters = tables.filter_rows("conv", np.zeros((3, 1, 1, 1), np.float32), paths["weights"])
    (folder / "weights").mkdir()
    jobs.pq.write_table(filters, folder / "weights" / "conv.parquet")
    state = {"is_complete": True, "job": {"model": {"model": SCRIPT, "task": "classification"}}}
    (folder / "_cvbatch").mkdir()
    (folder / "_cvbatch" / "explain.json").write_text(json.dumps(state))
    return folder


@pytest.fixture(scope="session")
def pages(result, other_result, truth, evaluation, training, explanation, tmp_path_factory):
    """kind → path of its report."""
    folder = tmp_path_factory.mktemp("pages")
    sources = {"prediction": result, "evaluation": evaluation, "training": training}
    sources["explanation"] = explanation
    for kind, source in sources.items():
        labels = [str(truth)] if kind == "prediction" else []
        write_report(str(source), str(folder / f"{kind}.html"), None, labels)
    write_comparison(str(result), str(other_result), str(folder / "comparison.html"))
    return {kind: folder / f"{kind}.html" for kind in (*sources, "comparison")}
