"""The table of named networks (`ZOO`), and loading of networks and .keras files."""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from cvbatch.core.errors import ModelError
from cvbatch.core.suggestions import nearest, offer
from cvbatch.models import cost, detectors, segmenters
from cvbatch.models.applications import APPLICATIONS, IMAGENET_CLASSES, build_application
from cvbatch.models.classifiers import CLASSIFIERS, mini_xception
from cvbatch.models.file_safety import inspect_model_file
from cvbatch.models.metadata import DEMO_FILES
from cvbatch.models.onednn_workaround import avoid_onednn_bug
from cvbatch.models.weights import ENDINGS, LOAD_ERRORS, first_line, load_weights
from cvbatch.models.zoo_entry import ZooEntry

_FEW_WEIGHTS = 100_000  # that a file need not hold: states of random layers, say
_DEMO_ANCHORS = ((0.19, 0.19), (0.22, 0.28), (0.28, 0.22), (0.36, 0.36), (0.5, 0.5))


# Name → builder and defaults of every network that a job file can name.
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
    """Return the named network with random weights; it takes RGB 0..255 (or grey, where it says).

    image_size: (height, width) in pixels. Both this and the number of classes have a default
    in `ZOO`. options: further arguments of the network's own function, such as `width`.

    Raises:
        ModelError: no network has that name, or it cannot have that size, number of classes or
            option.
    """
    entry = find_entry(name)
    size = image_size or entry.image_size
    _check_size(name, entry, size)
    said = dict(options or {})
    count = said.pop("num_classes", None) or num_classes or entry.num_classes
    _check_options(name, entry, said)
    try:
        return avoid_onednn_bug(entry.build(count, size, **said))
    except (ValueError, TypeError) as error:
        told = f"{count} classes, image size {size[0]}×{size[1]} and options {said}"
        raise ModelError(f"{name} cannot be built with {told}: {first_line(error)}") from error


def find_entry(name: str) -> ZooEntry:
    """Return the entry of that name.

    Raises:
        ModelError: no network has that name; the message says which are nearest.
    """
    if name in ZOO:
        return ZOO[name]
    raise ModelError(
        f"no network is called {name!r}; {offer(name, ZOO)}; a file of your own must end in .keras"
    )


def _check_size(name: str, entry: ZooEntry, size: tuple[int, int]) -> None:
    """Refuse sides the network cannot have, with the rule and the nearest size it can have."""
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


def _check_options(name: str, entry: ZooEntry, said: Mapping[str, Any]) -> None:
    """Refuse an option that the network's function does not have."""
    parameters = list(inspect.signature(entry.build).parameters)[2:]
    for option in said:
        if option not in parameters:
            near = nearest(option, parameters, likeness=0.3)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            known = ", ".join(["num_classes", *parameters])
            raise ModelError(f"{name} has no build option {option!r}{hint}; it has {known}")


def load_model(
    model: str,
    weights: str | None,
    *,
    local_file: Callable[[str], Path],
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> keras.Model:
    """Return the network a job file names, with its weights, in safe mode.

    model: a name in `ZOO`, or the path or URI of a .keras file. weights: None for a .keras
    file; otherwise "imagenet" (of the whole network, or of its backbone alone: see
    `is_head_trained`), "demo" (shipped with the package), "random", or the path or URI
    of a .weights.h5, .h5 or .keras file. local_file: returns a local path, with the same
    ending, for a path or URI. The others are `build`'s and go with a name only.

    Raises:
        ModelError: the name, the file, or the two together are wrong.
    """
    if model.endswith(".keras"):
        if weights is not None:
            raise ModelError(
                f"weights {weights!r} for {model}: a .keras file holds its own; leave weights out"
            )
        return load_file(model, local_file(model))
    find_entry(model)
    if weights is None:
        raise ModelError(
            f"model {model!r} is given no weights; say weights: imagenet, demo, a file, or, if "
            "an untrained network is wanted, random"
        )
    if weights == "demo":
        return _load_demo(model)
    if weights == "imagenet":
        return build(model, num_classes, image_size, _imagenet_option(model) | dict(options or {}))
    if weights != "random" and not weights.endswith(ENDINGS):
        raise ModelError(
            f"weights {weights!r} of {model}: must be imagenet, demo, random, or a file ending "
            "in .weights.h5, .h5 or .keras"
        )
    network = build(model, num_classes, image_size, options)
    if weights != "random":
        load_weights(network, model, weights, local_file(weights))
    return network


def is_head_trained(model: str, weights: str | None, num_classes: int | None) -> bool:
    """Say whether every layer of what `load_model` returns has seen training.

    ImageNet's weights leave a head of other classes, and all that is not a classifier of
    keras.applications, with a random head on a trained backbone. Untrained on purpose
    (`weights: random`) counts as trained.
    """
    return weights != "imagenet" or (
        model in APPLICATIONS and num_classes in (None, IMAGENET_CLASSES)
    )


def load_file(model: str, path: Path) -> keras.Model:
    """Return the network of a .keras file at `path`, which the user knows as `model`.

    Raises:
        ModelError: it is not a .keras file, needs code that is not run, or claims more weights
            than it holds.
    """
    try:
        _check_claim(model, path, inspect_model_file(path, model))
        loaded: keras.Model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except LOAD_ERRORS as error:
        raise ModelError(_refusal(model, path, error)) from error
    return avoid_onednn_bug(loaded)


def _check_claim(model: str, path: Path, held_bytes: int) -> None:
    """Raise ModelError where a file's network has more weights than the file can hold.

    Keras would make all of them, at random, before it looks for those in the file.
    """
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    with cost.skip_weight_allocation():
        network = keras.saving.deserialize_keras_object({**config, "compile_config": None})
    needed = sum(math.prod(weight.shape) for weight in network.weights)
    if needed > held_bytes + _FEW_WEIGHTS:
        raise ModelError(
            f"{model} is refused: its layers have {needed} weights, and the file holds "
            f"{held_bytes} bytes of them: a bomb, or damaged"
        )


def _refusal(model: str, path: Path, error: BaseException) -> str:
    """Return in one sentence why a .keras file is not loaded."""
    text = str(error)
    if not path.is_file():
        return f"model file {model} does not exist; check the path"
    if not zipfile.is_zipfile(path):
        return (
            f"{model} cannot be loaded: it is not a .keras file (a zip archive that Keras 3 "
            "writes), or is cut short; copy it again, or save it with model.save('NAME.keras')"
        )
    if "Lambda" in text or "safe_mode" in text:
        return (
            f"{model} holds a Lambda layer, which could run any code and is refused; build "
            "it again from Keras' own layers, or from one registered with "
            "keras.saving.register_keras_serializable"
        )
    unknown = re.search(r"Could not (?:locate|deserialize) (?:class|function)? ?'([^']+)'", text)
    if unknown:
        return (
            f"{model} needs the class {unknown[1]!r}, which is neither Keras' nor cvbatch's: code "
            "from outside is not run; build the network again from Keras' own layers"
        )
    return (
        f"{model} cannot be loaded as a .keras file of Keras {keras.__version__} "
        f"({first_line(error)}); save it again with model.save('NAME.keras')"
    )


def _imagenet_option(model: str) -> dict[str, str]:
    """Return what makes the network's function load ImageNet's weights."""
    parameters = inspect.signature(ZOO[model].build).parameters
    for option in ("weights", "backbone_weights"):
        if option in parameters:
            return {option: "imagenet"}
    raise ModelError(
        f"weights: imagenet for {model!r}: Keras has them for its own networks only, such "
        "as MobileNetV2, and for what is built on them, such as fcn8s; name a weights file"
    )


def _load_demo(model: str) -> keras.Model:
    if model not in DEMO_FILES:
        raise ModelError(
            f"weights: demo for {model!r}: they exist for {', '.join(DEMO_FILES)} only; name a "
            "weights file"
        )
    return load_file(model, DEMO_FILES[model])
