"""Load weights from a file into a network; an error names the first layer that does not match."""

from __future__ import annotations

import math
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cvbatch.core.errors import ModelError
from cvbatch.models.file_safety import WEIGHTS_MEMBER, UnsafeFileError, inspect_model_file
from cvbatch.models.frameworks import keras
from cvbatch.models.hdf5 import h5py

# Raised by Keras, h5py and zipfile for a file that is damaged or of another network.
LOAD_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OSError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
WEIGHTS_SUFFIXES = (".h5", ".keras")  # ".h5" includes ".weights.h5"

_NUM_OTHER_WEIGHTS = 100_000  # that a file need not contain, such as random states
_WORD_STARTS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])")

Shapes = list[tuple[int, ...]]


class _LayerShapes(NamedTuple):
    """Shapes of the weights of one layer, of a network or in a file."""

    name: str
    shapes: Shapes


def load_weights(network: keras.Model, name: str, weights: str, path: Path) -> None:
    """Load the weights of an untrusted file into a network.

    Args:
        network: changed in place.
        name: network as the user named it, for messages.
        weights: file as the user named it, for messages.
        path: local file with the suffix .weights.h5, .h5 (format of Keras 2) or .keras.

    Raises:
        ModelError: the file cannot be read, is not safe to read, or is of another network; the
            message names the first layer that differs.
    """
    try:
        inspect_model_file(path, weights)
        with warnings.catch_warnings():
            # If layers are not in the file, Keras only warns and leaves their random weights.
            warnings.filterwarnings("error", "Skipping nested container", UserWarning)
            network.load_weights(path)
    except (*LOAD_ERRORS, UserWarning) as error:
        raise ModelError(_message(network, name, weights, path, error)) from error


def _message(network: keras.Model, name: str, weights: str, path: Path, error: Exception) -> str:
    """Return the error message for weights that cannot be loaded."""
    try:
        inspect_model_file(path, weights)
        difference = _first_difference(network, path)
    except LOAD_ERRORS as read_error:
        if not path.is_file():
            return f"weights file {weights} does not exist; check the path"
        return (
            f"weights file {weights} cannot be read ({first_line(read_error)}): it is damaged, "
            "truncated, or not written by Keras; copy it again"
        )
    if difference is None:
        return f"weights {weights} do not match {name}: {first_line(error)}"
    return (
        f"weights {weights} are not those of {name} as configured: {difference}; set the model, "
        "image_size, classes and build options that the weights were saved from, or save the whole "
        "model as a .keras file and set model to it"
    )


def check_memory(model: str, num_bytes: int, memory_bytes: int | None) -> None:
    """Raise ModelError if the weights of a model do not fit in memory; None: that is unknown."""
    if memory_bytes is not None and num_bytes > memory_bytes:
        raise ModelError(
            f"{model} does not fit in memory: its weights need {num_bytes:,} bytes, and this "
            f"machine has {memory_bytes:,} free; choose a smaller model, or a larger machine"
        )


def check_num_weights(model: str, network: keras.Model, weights_bytes: int) -> None:
    """Raise UnsafeFileError if a network has more weights than its files can store.

    Keras would allocate and initialise all of them before it reads those in the files.

    Args:
        model: as the user named it, for messages.
        network: built without allocating its weights.
        weights_bytes: size of the weights in its files.
    """
    num_weights = sum(math.prod(weight.shape) for weight in network.weights)
    if num_weights > weights_bytes + _NUM_OTHER_WEIGHTS:
        raise UnsafeFileError(
            f"{model} is refused: its layers have {num_weights} weights, and its files contain "
            f"{weights_bytes} bytes of weights: it is a bomb, or damaged"
        )


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _first_difference(network: keras.Model, path: Path) -> str | None:
    """Describe the first layer whose weights differ between network and file; None: no layer."""
    if path.name.endswith(".keras"):
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(WEIGHTS_MEMBER) as member,
            h5py.File(member, "r") as file,
        ):
            return _difference_by_path(network, file)
    with h5py.File(path, "r") as file:
        weights = file.get("model_weights", file)
        if "layer_names" in weights.attrs:
            return _difference_by_order(network, weights)
        return _difference_by_path(network, file)


def _difference_by_path(network: keras.Model, file: h5py.File) -> str | None:
    """Compare with a file of Keras 3, where a layer's path is its class name and number."""
    for path, layer in _layers_with_weights(network, ""):
        expected = [tuple(weight.shape) for weight in layer.weights]
        stored: Shapes = []
        if path in file:
            file[path].visititems(
                lambda _, item, stored=stored: (
                    stored.append(tuple(item.shape)) if isinstance(item, h5py.Dataset) else None
                )
            )
        # The order of a layer's weights in the file can differ from that of `layer.weights`.
        if sorted(stored) != sorted(expected):
            return _describe(layer.name, expected, stored)
    return None


def _layers_with_weights(network: keras.Model, prefix: str) -> Iterator[tuple[str, keras.Layer]]:
    """Yield path in a file of Keras 3 and layer, for every layer that has weights itself."""
    numbers: Counter[str] = Counter()
    for layer in network.layers:
        kind = _snake_case(type(layer).__name__)
        number = numbers[kind]
        numbers[kind] += 1
        path = f"{prefix}layers/{kind}" + (f"_{number}" if number else "")
        if isinstance(layer, keras.Model):
            yield from _layers_with_weights(layer, f"{path}/")
        elif layer.weights:
            yield path, layer


def _snake_case(name: str) -> str:
    """Return a class name as Keras writes it in a file: Conv2DTranspose as conv2d_transpose."""
    return _WORD_STARTS.sub("_", name).lower()


def _difference_by_order(network: keras.Model, weights: h5py.Group) -> str | None:
    """Compare with a file of Keras 2, where layers are matched by order, not by name."""
    stored = [
        _LayerShapes(str(name), [tuple(weights[name][weight].shape) for weight in names])
        for name in weights.attrs["layer_names"]
        if len(names := weights[name].attrs["weight_names"])
    ]
    layers = [layer for layer in network.layers if layer.weights]
    for i, layer in enumerate(layers):
        expected = [tuple(weight.shape) for weight in layer.weights]
        shapes = stored[i].shapes if i < len(stored) else []
        if shapes != expected:
            return _describe(layer.name, expected, shapes)
    if len(stored) > len(layers):
        return f"the file has another layer, {stored[len(layers)].name!r}, after the network's last"
    return None


def _describe(name: str, expected: Shapes, stored: Shapes) -> str:
    return (
        f"the first layer that differs is {name!r}, which has weights of shape "
        f"{_join(expected)}, but the file has {_join(stored) if stored else 'none'}"
    )


def _join(shapes: Shapes) -> str:
    return " and ".join("×".join(map(str, shape)) or "()" for shape in shapes)
