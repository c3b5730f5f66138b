"""Builds and compiles one model of a job; only the compiling process imports it."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from pathlib import Path

import keras
import numpy as np

from cvbatch.config.models import ClassificationConfig, DetectionConfig, tiling_of
from cvbatch.core.errors import ModelError
from cvbatch.core.types import ModelSpec
from cvbatch.inference.engines import ENGINES, UnsupportedGraphError
from cvbatch.inference.graph import ServingGraph, input_size, num_classes
from cvbatch.inference.programs import BuildRequest, BuiltProgram
from cvbatch.models import cost, registry
from cvbatch.models.applications import IMAGENET_CLASSES, keras_cache
from cvbatch.models.model_files import download
from cvbatch.models.precision import with_precision
from cvbatch.storage.store import Storage

RANDOM_SEED = 0  # of `weights: random`: the same job is the same network


def build(storage: Storage, request: BuildRequest) -> BuiltProgram:
    """Return the request's model compiled for its engine, or for TensorFlow where it must.

    Raises:
        ModelError: the model cannot be built, or does not fit its task.
    """
    config = request.config
    keras.utils.set_random_seed(RANDOM_SEED)
    model = load(storage, request)
    if request.precision != "float32":
        model = with_precision(model, request.precision)
    height, width = input_size(model, config)
    tiling = tiling_of(config, height, width)
    count = num_classes(model, config)
    classes = class_names(request, count)
    if isinstance(config, DetectionConfig):
        _check_kept(config, classes)
    graph = ServingGraph(model, config)
    engine, payload, names, note = _compile(graph, request, height, width)
    spec = ModelSpec(
        name=Path(config.model).stem if config.model.endswith(".keras") else config.model,
        task=config.task,
        classes=classes,
        input_height=height,
        input_width=width,
        resize=config.resize,
        weights_sha256=weights_sha256(model),
        heatmap_layer=graph.heatmap_layer,
        **(tiling._asdict() if tiling else {}),
    )
    costs = _costs(model, (height, width))
    held = _bytes_per_image(costs, (height, width), request.precision)
    return BuiltProgram(
        spec,
        engine,
        names,
        request.batch_size,
        held,
        note,
        payload,
        costs.parameters if costs else None,
        costs.multiply_adds if costs and not costs.is_at_least else None,
    )


def load(storage: Storage, request: BuildRequest) -> keras.Model:
    """Return the request's network; a zoo name is built to the job's classes and image size."""
    config, said = request.config, request.identity.classes
    count = None if said is None else len(said)
    options = dict(config.build or {})
    if isinstance(config, ClassificationConfig) and config.multi_label:
        options = {"multi_label": True} | options
    if not registry.is_head_trained(config.model, config.weights, count):
        raise ModelError(
            f"weights: imagenet leave the head of {config.model!r} untrained for these classes, so "
            "its predictions would mean nothing; fine-tune it and name the .keras file, or say "
            "weights: random if that is meant"
        )
    with tempfile.TemporaryDirectory(prefix="cvbatch-model-") as folder:
        return registry.load_model(
            config.model,
            config.weights,
            # what is loaded is what was hashed, whoever writes to the file meanwhile
            local_file=lambda uri: download(storage, uri, Path(folder), request.identity.sha256),
            num_classes=count,
            image_size=config.image_size,
            options=options,
        )


def _compile(
    graph: ServingGraph, request: BuildRequest, height: int, width: int
) -> tuple[str, bytes, tuple[str, ...], str]:
    """Return the engine that took the graph, payload, output names, and a note for the user."""
    batch = request.batch_size
    try:
        payload, names = ENGINES[request.engine].compile(graph, batch, height, width)
    except UnsupportedGraphError as error:
        payload, names = ENGINES["tensorflow"].compile(graph, batch, height, width)
        note = (
            f"model {request.config.model} runs in TensorFlow, slower and larger: "
            f"{request.engine} lacks {error}"
        )
        return "tensorflow", payload, names, note
    return request.engine, payload, names, ""


def _costs(model: keras.Model, image_size: tuple[int, int]) -> cost.Cost | None:
    """Return what the model costs for an image; None where it is no graph of layers."""
    try:
        return cost.compute_cost(model, image_size)
    except ModelError:
        return None


def _bytes_per_image(costs: cost.Cost | None, image_size: tuple[int, int], precision: str) -> int:
    """Return what a program of a model holds for one image of its batch, at the least.

    The image's pixels as bytes, and the layer's maps that take most. Of a model that is no graph
    of layers only the pixels are certain.
    """
    maps = costs.working_bytes if costs else 0
    return 3 * math.prod(image_size) + (maps if precision == "float32" else maps // 2)


def weights_sha256(model: keras.Model) -> str:
    """Return the SHA-256 over every weight's type, shape and values, in order."""
    digest = hashlib.sha256()
    for variable in model.weights:
        array = np.ascontiguousarray(variable.numpy())
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def class_names(request: BuildRequest, count: int) -> tuple[str, ...]:
    """Return the names of a model's classes. Raises ModelError where they are not `count`."""
    said = request.identity.classes
    if said is None:
        return _imagenet_names(count) or tuple(str(i) for i in range(count))
    if len(said) != count:
        raise ModelError(
            f"classes of model {request.config.model!r}: {len(said)} names for {count} outputs; "
            "give one name for each, in the order of the outputs"
        )
    return said


def _imagenet_names(count: int) -> tuple[str, ...] | None:
    """Return Keras' own ImageNet names where its index file is in Keras' cache."""
    index = keras_cache() / "imagenet_class_index.json"
    if count != IMAGENET_CLASSES or not index.is_file():
        return None
    named = json.loads(index.read_text(encoding="utf-8"))
    return tuple(str(named[str(i)][1]) for i in range(count))


def _check_kept(config: DetectionConfig, classes: tuple[str, ...]) -> None:
    unknown = [name for name in config.keep_classes or () if name not in classes]
    if unknown:
        raise ModelError(
            f"keep_classes: {', '.join(unknown)} not among the model's classes; they are "
            f"{', '.join(classes[:20])}"
        )
