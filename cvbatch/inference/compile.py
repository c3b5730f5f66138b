"""Compile one model of a job to a program. Imports TensorFlow: only the child process uses it."""

from __future__ import annotations

import hashlib
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cvbatch.config.models import (
    ADD_BACKGROUND,
    DetectionConfig,
    ModelConfig,
    SegmentationConfig,
)
from cvbatch.config.network_input import tiling_of
from cvbatch.core.errors import ModelError
from cvbatch.core.model_formats import format_of, short_name
from cvbatch.core.time_limit import time_limit
from cvbatch.core.types import ModelSpec
from cvbatch.inference.activation_check import Decision, decide
from cvbatch.inference.chain import compile_chain
from cvbatch.inference.engines import ENGINES, UnsupportedGraphError
from cvbatch.inference.foreign import ForeignNetwork, load_network
from cvbatch.inference.graph import (
    Network,
    ServingGraph,
    SharedGraph,
    input_size,
    preprocess,
    resolve,
)
from cvbatch.inference.input_scaling import scaling_of
from cvbatch.inference.litert import live_bytes
from cvbatch.inference.network_cost import NetworkCost, cost_of, images_that_fit
from cvbatch.inference.programs import IMAGENET, BuildRequest, BuiltOutput, BuiltProgram
from cvbatch.inference.sample_images import SampleImages, sample_pixels
from cvbatch.models import registry
from cvbatch.models.applications import IMAGENET_CLASSES
from cvbatch.models.frameworks import keras
from cvbatch.models.metadata import imagenet_classes
from cvbatch.models.model_files import download
from cvbatch.models.precision import with_precision
from cvbatch.storage.store import Storage

_LOAD_LIMIT_S = 600.0  # the largest network of the zoo takes less than a minute

RANDOM_SEED = 0  # seed of `weights: random`, so that the same job builds the same network


def build(
    storage: Storage, request: BuildRequest, samples: SampleImages | None = None
) -> BuiltProgram:
    """Build a model, check it on a few images and compile it for the requested engine.

    If LiteRT lacks an operation of the graph, the model is compiled for TensorFlow.

    Raises:
        ModelError: the model cannot be built, its outputs or classes do not fit its task, or it is
            not clear whether they are probabilities.
    """
    keras.utils.set_random_seed(RANDOM_SEED)
    model = _load(storage, request)
    scaling = scaling_of(model, request.config)
    config, request = scaling.config, scaling.applied_to(request)
    size = input_size(model, config)
    cost = cost_of(model, size)
    num_samples = images_that_fit(request, cost)
    pixels = sample_pixels(samples, storage, config.input_key(*size))[:num_samples]
    fixed_batch = model.input_shape[0]
    if isinstance(model, ForeignNetwork):
        fixed_batch = model.fix_batch(preprocess(pixels, model, config).numpy())
    has_images = samples is not None
    sections = [_prepare(model, s, pixels, checks_boxes=has_images) for s in request.sections]
    graph = SharedGraph([section.graph for section in sections])
    batch = fixed_batch or request.batch_size
    engine, payload, names, note = _compile(graph, request, (batch, *size))
    notes = [note, scaling.note, _resize_note(model, config)]
    notes += [s.decision.masks.reason for s in sections] + [_section_note(s) for s in sections]
    digest = weights_sha256(model)
    first, *others = [_built_output(section, size, digest) for section in sections]
    return BuiltProgram(
        spec=first.spec,
        engine=engine,
        names=names,
        batch_size=batch,
        bytes_per_image=max(
            _bytes_per_image(cost, size, request.precision),
            live_bytes(payload) // batch if engine == "litert" else 0,
        )
        + sum(section.graph.output_bytes for section in sections),  # arrays of the caller
        note="\n".join(filter(None, notes)),
        payload=payload,
        parameters=cost.parameters,
        multiply_adds=cost.multiply_adds,
        activation=first.activation,
        activation_reason=first.activation_reason,
        others=tuple(others),
        largest_layer=cost.largest_layer,
    )


class _Section(NamedTuple):
    """A section of the job with the graph that computes it."""

    request: BuildRequest
    classes: tuple[str, ...]
    decision: Decision
    graph: ServingGraph


def _prepare(
    model: Network, request: BuildRequest, pixels: np.ndarray, *, checks_boxes: bool
) -> _Section:
    """Check that the network fits a section of the job, on a few images."""
    config, classes = resolve_section(model, request)
    if isinstance(config, DetectionConfig):
        _check_keep_classes(config, classes)
    if isinstance(config, SegmentationConfig) and config.background == ADD_BACKGROUND:
        classes = ("background", *classes)
    decision = decide(model, config, pixels, checks_boxes=checks_boxes, num_classes=len(classes))
    graph = ServingGraph(model, config, decision.activation, decision.masks.values)
    return _Section(request, classes, decision, graph)


def _built_output(section: _Section, size: tuple[int, int], weights_digest: str) -> BuiltOutput:
    """Return what a program has of a section whose graph was traced."""
    decision = section.decision
    spec = _spec(section, size, weights_digest)
    return BuiltOutput(spec, decision.activation, decision.reason)


def _spec(section: _Section, size: tuple[int, int], weights_digest: str) -> ModelSpec:
    """Return the spec of a section whose graph was traced."""
    config = section.request.config
    tiling, key = tiling_of(config, *size), config.input_key(*size)
    return ModelSpec(
        name=short_name(config.model),
        task=config.task,
        classes=section.classes,
        input_height=size[0],
        input_width=size[1],
        resize=key.resize,
        weights_sha256=weights_digest,
        heatmap_layer=section.graph.heatmap_layer,
        dimension=section.graph.dimension,
        **(tiling._asdict() if tiling else {}),
        fraction=key.fraction,
        interpolation=key.interpolation,
        antialias=key.antialias,
    )


def _load(storage: Storage, request: BuildRequest) -> keras.Model | ForeignNetwork:
    if format_of(request.config.model).has_own_runtime:
        return load_network(storage, request)
    model = load(storage, request)
    return model if request.precision == "float32" else with_precision(model, request.precision)


def resolve_section(model: Network, request: BuildRequest) -> tuple[ModelConfig, tuple[str, ...]]:
    """Return the section with its detector and class names, and the names of all outputs.

    Raises:
        ModelError: as `resolve` and `class_names`.
    """
    config, names = request.config, request.identity.classes
    if names is not None:
        config = config.model_copy(update={"classes": list(names)})
    config, count = resolve(model, config, None if names is None else len(names))
    return config, class_names(request, count)


def load(storage: Storage, request: BuildRequest) -> keras.Model:
    """Load a .keras file, or build a zoo network with the job's classes and image size.

    Raises:
        ModelError: the model cannot be loaded, its file changed since it was hashed, or its head
            would be untrained without `weights: random`.
    """
    config, sections = request.config, request.sections
    # A zoo network is built for the first class names; `class_names` refuses another number.
    names = (section.identity.classes for section in sections)
    count = next((len(classes) for classes in names if classes is not None), None)
    options = {"num_classes": count, **(config.build or {})}
    if any(getattr(section.config, "multi_label", False) for section in sections):
        options = {"multi_label": True} | options
    if not registry.is_head_trained(config.model, config.weights, options["num_classes"]):
        raise ModelError(
            f"weights: imagenet would leave the head of {config.model!r} untrained for these "
            "classes, so predictions would be meaningless; fine-tune the network and set model to "
            "the .keras file, or set weights: random to use untrained weights"
        )
    with (
        tempfile.TemporaryDirectory(prefix="cvbatch-model-") as folder,
        time_limit(_LOAD_LIMIT_S, f"loading {config.model}"),  # damaged files may hang HDF5
    ):
        return registry.load_model(
            config.model,
            config.weights,
            # the file that is loaded must be the one that was hashed, even if it was overwritten
            local_file=lambda uri: download(storage, uri, Path(folder), request.identity.sha256),
            image_size=config.image_size,
            options=options,
            trust=config.trust,
            memory_bytes=request.memory_bytes,
        )


def _compile(
    graph: SharedGraph, request: BuildRequest, size: tuple[int, int, int]
) -> tuple[str, bytes, tuple[str, ...], str]:
    """Return engine, payload, output names, and a note for the user; "" without a note.

    Args:
        size: batch, height and width of the input.
    """
    model = graph.graphs[0].model
    if isinstance(model, ForeignNetwork):
        note = f"model {request.config.model} runs on CPUs" if request.engine != "litert" else ""
        return "chain", *compile_chain(graph, model, size), note
    try:
        payload, names = ENGINES[request.engine].compile(graph, *size)
    except UnsupportedGraphError as error:
        payload, names = ENGINES["tensorflow"].compile(graph, *size)
        note = (
            f"model {request.config.model} runs in TensorFlow, which is slower and needs more "
            f"memory: {request.engine} lacks {error}"
        )
        return "tensorflow", payload, names, note
    return request.engine, payload, names, ""


def _resize_note(model: Network, config: ModelConfig) -> str:
    """Return a note if a KerasHub preset has another resize than the job; else ""."""
    expected = getattr(model, "expected_resize", "")
    mode = config.input_key(1, 1).resize
    if expected in ("", mode):
        return ""
    return (
        f"model {config.model}: KerasHub prepares its images with resize: {expected}, and the job "
        f"with {mode}; set resize: {expected} for the same predictions"
    )


def _section_note(section: _Section) -> str:
    """Return where the network has its embedding, or that its classes lack names; else ""."""
    config, graph = section.request.config, section.graph
    if graph.vector_source:
        size = f"{graph.dimension:,} numbers"
        return f"model {config.model}: the embedding is {graph.vector_source}, {size}"
    is_named = section.request.identity.classes is not None or config.weights == IMAGENET
    if is_named or len(section.classes) != IMAGENET_CLASSES:
        return ""
    return (
        f"model {config.model} has 1,000 outputs without names, and labels are numbers; set "
        "classes: imagenet if they are ImageNet's classes"
    )


def _bytes_per_image(cost: NetworkCost, image_size: tuple[int, int], precision: str) -> int:
    """Return a lower bound of the memory that a program needs for one image of its batch.

    It is the uint8 pixels of the image, and the largest feature maps of one layer.
    """
    maps = cost.map_bytes if precision == "float32" else cost.map_bytes // 2
    return 3 * math.prod(image_size) + maps


def class_names(request: BuildRequest, count: int | None) -> tuple[str, ...]:
    """Return the class names of a model, in the order of its outputs.

    Args:
        request: its identity has the names of the job or of the model file, if there are any.
        count: number of classes of the model's outputs; None: not known. Without names they are
            ImageNet's for `weights: imagenet`, else the class ids as text.

    Raises:
        ModelError: the number of names is not `count`, or neither is known.
    """
    names = request.identity.classes
    if names is None:
        if count is None:
            raise ModelError(
                f"model {request.config.model!r} returns class ids, which do not tell how many "
                "classes it has; set classes to their names, a list or a file of one name a line"
            )
        # A network with ImageNet's weights has ImageNet's head: `load` refuses an untrained one.
        is_imagenet = request.config.weights == IMAGENET and count == IMAGENET_CLASSES
        return imagenet_classes() if is_imagenet else tuple(str(i) for i in range(count))
    if count is not None and len(names) != count:
        raise ModelError(
            f"classes of model {request.config.model!r}: {len(names)} names for {count} outputs; "
            "give one name for each output, in the order of the outputs"
        )
    return names


def _check_keep_classes(config: DetectionConfig, classes: tuple[str, ...]) -> None:
    unknown = [name for name in config.keep_classes or () if name not in classes]
    if unknown:
        raise ModelError(
            f"keep_classes: the model has no class {', '.join(unknown)}; its classes are "
            f"{', '.join(classes[:20])}"
        )


def weights_sha256(model: keras.Model | ForeignNetwork) -> str:
    """Return the SHA-256 (hex) of dtype, shape and values of all weights, or of the file."""
    if isinstance(model, ForeignNetwork):
        return model.sha256
    digest = hashlib.sha256()
    for variable in model.weights:
        array = np.ascontiguousarray(variable.numpy())
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
