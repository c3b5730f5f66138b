"""Run recorded outputs of a detector through checks, program and post-processing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cvbatch.config.loader import parse_job
from cvbatch.core.types import ImageBatch, InputKey, ModelSpec

FIXTURES = Path(__file__).parents[1] / "fixtures" / "detectors"


def parse_detector(**fields):
    model = {"task": "detection", "model": "a.keras", **fields}
    job = {"source": {"uri": "in"}, "sink": {"uri": "out"}, "models": [model]}
    return parse_job(job).models[0]


def replaying_network(outputs, size):
    """Return a Keras model whose outputs for an image are row p of the arrays, p its first pixel.

    `outputs` is a dict or a list of arrays (IMAGES, ...).
    """
    import keras
    from keras import ops

    arrays = outputs if isinstance(outputs, dict) else dict(enumerate(outputs))
    count = len(next(iter(arrays.values())))
    image = keras.Input((*size, 3))
    row = ops.cast(ops.minimum(image[:, 0, 0, 0], count - 1), "int32")
    tensors = {n: ops.take(ops.convert_to_tensor(a), row, axis=0) for n, a in arrays.items()}
    return keras.Model(image, tensors if isinstance(outputs, dict) else list(tensors.values()))


def numbered_images(count, size):
    """Return images (count, H, W, 3) whose pixels are their position."""
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(pixels, (count, *size, 3)).copy()


def detect(model, classes, *, engine="litert", original=None, **fields):
    """Return rows (K, 6) x_min, y_min, x_max, y_max, score, class id of each image, best first.

    The network is resolved, checked on its images and compiled as in a job.
    """
    from cvbatch.inference.predictor import LoadedModel, Predictor

    config = parse_detector(**fields)
    count, size = 2, config.image_size or model.input_shape[1:3]
    program = compiled(model, config, classes, engine)
    spec = ModelSpec("net", "detection", tuple(classes), *size, config.resize, "0" * 64)
    height, width = original or size
    batch = ImageBatch(
        "chunk", ["0", "1"], ["", ""], np.full(count, width, np.int32),
        np.full(count, height, np.int32), {}, {spec.input_key: numbered_images(count, size)},
    )  # fmt: skip
    assert spec.input_key == InputKey(*size, config.resize)
    predictions = Predictor([LoadedModel(config, spec, program, count)])(batch)
    boxes = predictions.models[0].boxes
    if boxes is None:
        return predictions.failures
    columns = [boxes.xyxy, boxes.score[:, None], boxes.class_id[:, None]]
    rows = np.concatenate(columns, axis=1)
    return [rows[boxes.image_index == i] for i in range(count)]


def compiled(model, config, classes, engine="litert"):
    """Return the program of a detector for two images, resolved and checked as in a job."""
    from cvbatch.inference.activation_check import decide
    from cvbatch.inference.engines import ENGINES
    from cvbatch.inference.graph import ServingGraph, resolve

    size = config.image_size or model.input_shape[1:3]
    resolved, _ = resolve(model, config, len(classes))
    images = numbered_images(2, size)
    decision = decide(model, resolved, images, checks_boxes=True, num_classes=len(classes))
    graph = ServingGraph(model, resolved, decision.activation)
    payload, names = ENGINES[engine].compile(graph, 2, *size)
    return ENGINES[engine].load(payload, names, 1)


def reference(name):
    """Return the rows of the original library, from tests/fixtures/detectors."""
    images = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    return [np.array(rows, np.float32).reshape(-1, 6) for rows in images]


def assert_same_boxes(found, expected, size, atol=1e-4):
    """Compare rows, after boxes are clipped to the image of (height, width) `size`."""
    assert len(found) == len(expected)
    for rows, other in zip(found, expected, strict=True):
        assert len(other) > 3
        clipped = np.clip(other[:, :4], 0, [size[1], size[0]] * 2)
        np.testing.assert_allclose(rows[:, :4], clipped, rtol=1e-5, atol=atol)
        np.testing.assert_allclose(rows[:, 4:], other[:, 4:], atol=1e-4)
