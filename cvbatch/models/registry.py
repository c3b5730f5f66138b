"""Table of named networks (`ZOO`); build a network by name, or load it from a .keras file."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cvbatch.config.base import NAMED_WEIGHTS
from cvbatch.core.errors import ModelError
from cvbatch.core.model_formats import format_of, own_weights_error
from cvbatch.core.suggestions import closest_names
from cvbatch.models import cost, detectors, segmenters
from cvbatch.models.applications import APPLICATIONS, IMAGENET_CLASSES, build_application
from cvbatch.models.classifiers import CLASSIFIERS, mini_xception
from cvbatch.models.frameworks import keras
from cvbatch.models.keras_files import load_file as load_file  # here all layers are registered
from cvbatch.models.metadata import DEMO_FILES
from cvbatch.models.model_folders import load_folder
from cvbatch.models.onednn_workaround import avoid_onednn_bug
from cvbatch.models.weights import WEIGHTS_SUFFIXES, check_memory, first_line, load_weights
from cvbatch.models.zoo_entry import ZooEntry
from cvbatch.models.zoo_table import unknown_network

_DEMO_ANCHORS = ((0.19, 0.19), (0.22, 0.28), (0.28, 0.22), (0.36, 0.36), (0.5, 0.5))


# Name in a job file → builder and defaults.
ZOO: dict[str, ZooEntry] = {
    **CLASSIFIERS,
    "encoder_decoder": ZooEntry(segmenters.encoder_decoder, "segmentation", 3, (200, 200), 8),
    **{
        build.__name__: ZooEntry(build, "segmentation", 21, (224, 224), minimum=(32, 32))
        for build in (segmenters.fcn32s, segmenters.fcn16s, segmenters.fcn8s)
    },
    "localizer": ZooEntry(detectors.localizer, "localization", 20, (224, 224), minimum=(32, 32)),
    "sliding_fcn": ZooEntry(
        detectors.sliding_fcn, "detection", 20, (448, 448), 32, minimum=(224, 224)
    ),
    "yolo": ZooEntry(detectors.yolo, "detection", 20, (416, 416), detectors.YOLO_STRIDE),
    "demo_classifier": ZooEntry(
        functools.partial(mini_xception, width=16, num_blocks=4),
        "classification", 5, (96, 96),
    ),
    "demo_segmenter": ZooEntry(
        functools.partial(segmenters.encoder_decoder, width=20),
        "segmentation", 6, (128, 128), 8,
    ),
    "demo_detector": ZooEntry(
        functools.partial(detectors.yolo, anchors=_DEMO_ANCHORS, width=12),
        "detection", 5, (160, 160), detectors.YOLO_STRIDE,
    ),
    **{
        name: ZooEntry.classifier(
            functools.partial(build_application, name),
            IMAGENET_CLASSES, application.side, application.minimum,
        )
        for name, application in APPLICATIONS.items()
    },
}  # fmt: skip


def build(
    name: str,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> keras.Model:
    """Build a named network with random weights; its input is RGB (or grey) 0..255.

    Args:
        name: a key of `ZOO`.
        num_classes: None: the default in `ZOO`.
        image_size: (height, width) in pixels. None: the default in `ZOO`.
        options: other arguments of the network's builder, such as `width`. `num_classes` in it
            replaces the argument.

    Raises:
        ModelError: the name is unknown, or the network does not support the image size, the number
            of classes or an option.
    """
    entry = find_entry(name)
    size = image_size or entry.image_size
    _check_size(name, entry, size)
    arguments = dict(options or {})
    count = arguments.pop("num_classes", None) or num_classes or entry.num_classes
    _check_options(name, entry, arguments)
    try:
        return avoid_onednn_bug(entry.build(count, size, **arguments))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{name} cannot be built with {count} classes, image size {size[0]}×{size[1]} and "
            f"options {arguments}: {first_line(error)}"
        ) from error


def find_entry(name: str) -> ZooEntry:
    """Return the entry of a named network.

    Raises:
        ModelError: the name is unknown; the message suggests known names.
    """
    if name in ZOO:
        return ZOO[name]
    raise unknown_network(name)


def _check_size(name: str, entry: ZooEntry, size: tuple[int, int]) -> None:
    """Raise ModelError with the rule and the nearest allowed size if a size is not allowed."""
    multiple = entry.multiple_of
    fits = [
        side >= least and side % multiple == 0
        for side, least in zip(size, entry.minimum, strict=True)
    ]
    if all(fits):
        return
    rules = [f"multiples of {multiple}"] if multiple > 1 else []
    if max(entry.minimum) > multiple:
        rules.append(f"at least {entry.minimum[0]}×{entry.minimum[1]}")
    near = [
        max(-(-least // multiple), round(side / multiple)) * multiple
        for side, least in zip(size, entry.minimum, strict=True)
    ]
    raise ModelError(
        f"image size {size[0]}×{size[1]} (height×width) of {name}: both sides must be "
        f"{' and '.join(rules)}; the nearest is {near[0]}×{near[1]}"
    )


def _check_options(name: str, entry: ZooEntry, options: Mapping[str, Any]) -> None:
    """Raise ModelError for an option that the network's builder does not have."""
    parameters = list(inspect.signature(entry.build).parameters)[2:]
    for option in options:
        if option not in parameters:
            near = closest_names(option, parameters, cutoff=0.3)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            known = ", ".join(["num_classes", *parameters])
            raise ModelError(f"{name} has no build option {option!r}{hint}; it has {known}")


def load_model(
    model: str,
    weights: str | None,
    *,
    local_file: Callable[[str], Path],
    image_size: tuple[int, int] | None = None,
    options: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
    memory_bytes: int | None = None,
) -> keras.Model:
    """Return the network that a job file names, with its weights, in Keras' safe mode.

    Args:
        model: a key of `ZOO`, or the path or URI of a .keras or .h5 file or of a folder.
        weights: None for a file or folder. Otherwise "imagenet" (of the network, or of its backbone
            only: see `is_head_trained`), "demo" (shipped with the package), "random", or the path
            or URI of a .weights.h5, .h5 or .keras file.
        local_file: returns a local path with the same suffix for a path or URI; of a folder a
            private copy.
        image_size, options: as in `build`; ignored for a file.
        trust: modules whose classes the network of a file may contain.
        memory_bytes: available for the weights; None: unknown.

    Raises:
        ModelError: the name is unknown, a file is missing, damaged or unsafe, model and weights do
            not match, or the weights do not fit in memory.
    """
    if format_of(model).key != "zoo":
        if weights is not None:
            raise ModelError(own_weights_error("weights", model))
        path = local_file(model)
        if format_of(model).is_folder:
            return load_folder(model, path, image_size)
        return load_file(model, path, trust, memory_bytes)
    _check_weights(model, weights)
    if weights == "demo":
        return _load_demo(model)
    if weights == "imagenet":
        return build(model, None, image_size, _imagenet_option(model) | dict(options or {}))
    if memory_bytes is not None:
        with cost.skip_weight_allocation():
            network = build(model, None, image_size, options)
        count = sum(math.prod(weight.shape) for weight in network.weights)
        check_memory(model, cost.FLOAT32_BYTES * count, memory_bytes)
    network = build(model, None, image_size, options)
    if weights not in (None, "random"):
        load_weights(network, model, weights, local_file(weights))
    return network


def _check_weights(model: str, weights: str | None) -> None:
    """Raise ModelError if a built-in network cannot have these weights."""
    find_entry(model)
    if weights is None:
        raise ModelError(
            f"model {model!r} has no weights; set weights to imagenet, demo or a file, or to "
            "random for an untrained network"
        )
    if weights not in NAMED_WEIGHTS and not weights.endswith(WEIGHTS_SUFFIXES):
        raise ModelError(
            f"weights {weights!r} of {model}: must be imagenet, demo, random, or a file that ends "
            "in .weights.h5, .h5 or .keras"
        )


def is_head_trained(model: str, weights: str | None, num_classes: int | None) -> bool:
    """Return whether `load_model` returns a network without untrained layers that nobody requested.

    With "imagenet" weights only the classifiers of keras.applications with ImageNet's classes have
    a trained head; others have a random head on a trained backbone. "random" weights are requested
    explicitly and count as trained.
    """
    return weights != "imagenet" or (
        model in APPLICATIONS and num_classes in (None, IMAGENET_CLASSES)
    )


def _imagenet_option(model: str) -> dict[str, str]:
    """Return the option with which the network's builder loads ImageNet weights."""
    parameters = inspect.signature(ZOO[model].build).parameters
    for option in ("weights", "backbone_weights"):
        if option in parameters:
            return {option: "imagenet"}
    raise ModelError(
        f"weights: imagenet for {model!r}: ImageNet weights exist for networks of "
        "keras.applications, such as MobileNetV2, and for networks with such a backbone, such as "
        "fcn8s; set weights to a weights file"
    )


def _load_demo(model: str) -> keras.Model:
    if model not in DEMO_FILES:
        raise ModelError(
            f"weights: demo for {model!r}: demo weights exist for {', '.join(DEMO_FILES)} only; "
            "set weights to a weights file"
        )
    return load_file(model, DEMO_FILES[model])
