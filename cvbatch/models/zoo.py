"""One table says which networks there are, so that a job file can name them."""

from __future__ import annotations

import difflib
import functools
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras

from cvbatch.errors import ModelError
from cvbatch.models import classifiers, detectors, segmenters
from cvbatch.models.applications import APPLICATIONS, IMAGENET_CLASSES, build_application
from cvbatch.models.card import DEMO_FILES
from cvbatch.types import Task

# What Keras and the libraries under it raise on a file that is damaged or of another network.
_LOAD_ERRORS = (ValueError, TypeError, KeyError, AttributeError, OSError, zipfile.BadZipFile)
_DEMO_ANCHORS = ((0.19, 0.19), (0.22, 0.28), (0.28, 0.22), (0.36, 0.36), (0.5, 0.5))


@dataclass(frozen=True)
class ZooEntry:
    """A network that can be named."""

    build: Callable[[int, tuple[int, int]], keras.Model]  # num_classes, image_size → model
    task: Task
    num_classes: int  # where nothing else is said
    image_size: tuple[int, int]  # height, width in pixels, where nothing else is said
    multiple_of: int = 1  # what both sides must be


ZOO: dict[str, ZooEntry] = {
    "mini_xception": ZooEntry(classifiers.mini_xception, "classification", 1, (180, 180)),
    "encoder_decoder": ZooEntry(segmenters.encoder_decoder, "segmentation", 3, (200, 200), 8),
    "yolo": ZooEntry(detectors.yolo, "detection", 20, (416, 416), detectors.STRIDE),
    "demo_classifier": ZooEntry(
        functools.partial(classifiers.mini_xception, width=16, num_blocks=4),
        "classification", 5, (96, 96),
    ),
    "demo_segmenter": ZooEntry(
        functools.partial(segmenters.encoder_decoder, width=20),
        "segmentation", 6, (128, 128), 8,
    ),
    "demo_detector": ZooEntry(
        functools.partial(detectors.yolo, anchors=_DEMO_ANCHORS, width=12),
        "detection", 5, (160, 160), detectors.STRIDE,
    ),
    **{
        name: ZooEntry(
            functools.partial(build_application, name, weights=None),
            "classification", IMAGENET_CLASSES, (application.side, application.side),
        )
        for name, application in APPLICATIONS.items()
    },
}  # fmt: skip


def build(
    name: str, num_classes: int | None = None, image_size: tuple[int, int] | None = None
) -> keras.Model:
    """Return the named network with random weights; it takes RGB 0..255.

    image_size: (height, width) in pixels. Both this and the number of classes have a default
    in `ZOO`.

    Raises:
        ModelError: no network has that name, or it cannot have that size or number of classes.
    """
    entry = find(name)
    height, width = image_size or entry.image_size
    if (
        min(height, width) < entry.multiple_of
        or height % entry.multiple_of + width % entry.multiple_of
    ):
        raise ModelError(
            f"image size {height}×{width} of {name}: both sides must be multiples of "
            f"{entry.multiple_of}; choose for example {entry.image_size[0]}×{entry.image_size[1]}"
        )
    return entry.build(num_classes or entry.num_classes, (height, width))


def find(name: str) -> ZooEntry:
    """Return the entry of that name.

    Raises:
        ModelError: no network has that name; the message says which are nearest.
    """
    if name in ZOO:
        return ZOO[name]
    by_lower = {known.lower(): known for known in ZOO}
    near = [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, 3, 0.5)]
    nearest = f"nearest are {', '.join(near)}" if near else f"there are {', '.join(ZOO)}"
    raise ModelError(
        f"no network is called {name!r}; {nearest}; a file of your own must end in .keras"
    )


def load_model(
    model: str, weights: str | None, *, local_file: Callable[[str], Path]
) -> keras.Model:
    """Return the network a job file names, with its weights, in safe mode.

    model: a name in `ZOO`, or the path or URI of a .keras file. weights: None for a .keras
    file; otherwise "imagenet", "demo" (shipped with the package), "random", or the path or URI
    of a .weights.h5, .h5 or .keras file. local_file: returns a local path, with the same
    ending, for a path or URI.

    Raises:
        ModelError: the name, the file, or the two together are wrong.
    """
    if model.endswith(".keras"):
        if weights is not None:
            raise ModelError(
                f"weights {weights!r} for {model}: a .keras file holds its own; leave weights out"
            )
        return load_file(model, local_file(model))
    find(model)
    if weights is None:
        raise ModelError(
            f"model {model!r} is given no weights; say weights: imagenet, demo, a file, or, if "
            "an untrained network is wanted, random"
        )
    if weights == "random":
        return build(model)
    if weights == "demo":
        return _load_demo(model)
    if weights == "imagenet":
        return _load_imagenet(model)
    return _with_weights(model, weights, local_file)


def load_file(model: str, path: Path) -> keras.Model:
    """Return the network of a .keras file at `path`, which the user knows as `model`.

    Raises:
        ModelError: it is not a .keras file, or needs code that safe mode refuses.
    """
    try:
        loaded: keras.Model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except _LOAD_ERRORS as error:
        if "Lambda" in str(error) or "safe_mode" in str(error):
            raise ModelError(
                f"{model} holds a Lambda layer, which could run any code and is refused; build "
                "it again from Keras' own layers, or from one registered with "
                "keras.saving.register_keras_serializable"
            ) from error
        raise ModelError(
            f"{model} cannot be loaded as a .keras file of Keras {keras.__version__} "
            f"({_first_line(error)}); save it again with model.save('NAME.keras')"
        ) from error
    return loaded


def _load_demo(model: str) -> keras.Model:
    if model not in DEMO_FILES:
        raise ModelError(
            f"weights: demo for {model!r}: they exist for {', '.join(DEMO_FILES)} only; name a "
            "weights file"
        )
    return load_file(model, DEMO_FILES[model])


def _load_imagenet(model: str) -> keras.Model:
    if model not in APPLICATIONS:
        raise ModelError(
            f"weights: imagenet for {model!r}: Keras has them for its own networks only, such "
            "as MobileNetV2; name a weights file"
        )
    return build_application(model, IMAGENET_CLASSES, ZOO[model].image_size, weights="imagenet")


def _with_weights(model: str, weights: str, local_file: Callable[[str], Path]) -> keras.Model:
    if not weights.endswith((".h5", ".keras")):
        raise ModelError(
            f"weights {weights!r} of {model}: must be imagenet, demo, random, or a file ending "
            "in .weights.h5, .h5 or .keras"
        )
    network = build(model)
    try:
        with warnings.catch_warnings():
            # Keras only warns where layers keep their random weights.
            warnings.filterwarnings("error", "Skipping nested container", UserWarning)
            network.load_weights(local_file(weights))
    except (*_LOAD_ERRORS, UserWarning) as error:
        raise ModelError(
            f"weights {weights} do not fit {model} as the zoo builds it, {network.output_shape} "
            f"({_first_line(error)}); save the whole model and name that .keras file as model"
        ) from error
    return network


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
