"""Weights from a file into a network; where they do not fit, the layer that differs is named."""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import keras

from cvbatch.core.errors import ModelError
from cvbatch.models.file_safety import WEIGHTS_MEMBER, inspect_model_file

# What Keras and the libraries under it raise on a file that is damaged or of another network;
# RuntimeError comes from h5py, deep in a damaged file.
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
ENDINGS = (".h5", ".keras")  # ".weights.h5" among them

_WORD_STARTS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])")

Shapes = list[tuple[int, ...]]


class _Group(NamedTuple):
    """The weights of one layer, as a network has them or a file holds them."""

    name: str
    shapes: Shapes


def load_weights(network: keras.Model, name: str, said: str, path: Path) -> None:
    """Put the weights of a file into `network`, which the user knows as `name`.

    said: the file as the user named it; path: where it lies here, with its own ending: .weights.h5,
    .h5 (as Keras 2 wrote it) or .keras.

    Raises:
        ModelError: the file cannot be read, is not safe to read, or is another network's; the
            message names the first layer that differs.
    """
    try:
        inspect_model_file(path, said)
        with warnings.catch_warnings():
            # Keras only warns where layers keep their random weights.
            warnings.filterwarnings("error", "Skipping nested container", UserWarning)
            network.load_weights(path)
    except (*LOAD_ERRORS, UserWarning) as error:
        raise ModelError(_why(network, name, said, path, error)) from error


def _why(network: keras.Model, name: str, said: str, path: Path, error: BaseException) -> str:
    try:
        inspect_model_file(path, said)
        difference = _first_difference(network, path)
    except LOAD_ERRORS as unreadable:
        if not path.is_file():
            return f"weights file {said} does not exist; check the path"
        return (
            f"weights file {said} cannot be read ({first_line(unreadable)}): it is damaged, cut "
            "short, or not one that Keras wrote; copy it again"
        )
    if difference is None:
        return f"weights {said} do not fit {name}: {first_line(error)}"
    return (
        f"weights {said} are not those of {name} as it is built here: {difference}; name the "
        "network, image_size, classes and build options they were saved from, or save the whole "
        "model as .keras and name that"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, 200 characters at most."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _first_difference(network: keras.Model, path: Path) -> str | None:
    """Return in words the first layer of the network whose weights the file lacks, or None."""
    if path.name.endswith(".keras"):
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(WEIGHTS_MEMBER) as member,
            h5py.File(member, "r") as file,
        ):
            return _difference_by_path(network, file)
    with h5py.File(path, "r") as file:
        held = file.get("model_weights", file)
        if "layer_names" in held.attrs:
            return _difference_by_order(network, held)
        return _difference_by_path(network, file)


def _difference_by_path(network: keras.Model, file: h5py.File) -> str | None:
    """Compare with a file of Keras 3, where a layer lies under its class and its number."""
    for path, layer in _weighted(network, ""):
        wanted = [tuple(weight.shape) for weight in layer.weights]
        held: Shapes = []
        if path in file:
            file[path].visititems(
                lambda _, item, held=held: (
                    held.append(tuple(item.shape)) if isinstance(item, h5py.Dataset) else None
                )
            )
        # a layer's weights by path or by order: the same shapes in another order are the same
        if sorted(held) != sorted(wanted):
            return _told(_Group(layer.name, wanted), _Group("there", held) if held else None)
    return None


def _weighted(network: keras.Model, prefix: str) -> Iterator[tuple[str, keras.Layer]]:
    """Yield every layer that has weights of its own with its path in a file of Keras 3."""
    numbers: Counter[str] = Counter()
    for layer in network.layers:
        kind = _snake_case(type(layer).__name__)
        number = numbers[kind]
        numbers[kind] += 1
        path = f"{prefix}layers/{kind}" + (f"_{number}" if number else "")
        if isinstance(layer, keras.Model):
            yield from _weighted(layer, f"{path}/")
        elif layer.weights:
            yield path, layer


def _snake_case(name: str) -> str:
    """Return a class name as Keras spells it in a file: Conv2DTranspose as conv2d_transpose."""
    return _WORD_STARTS.sub("_", name).lower()


def _difference_by_order(network: keras.Model, held: h5py.Group) -> str | None:
    """Compare with a file of Keras 2, where layers stand in order, under names of any kind."""
    found = [
        _Group(str(name), [tuple(held[name][weight].shape) for weight in names])
        for name in held.attrs["layer_names"]
        if len(names := held[name].attrs["weight_names"])
    ]
    own = [layer for layer in network.layers if layer.weights]
    for at, layer in enumerate(own):
        wanted = _Group(layer.name, [tuple(weight.shape) for weight in layer.weights])
        other = found[at] if at < len(found) else None
        if other is None or other.shapes != wanted.shapes:
            return _told(wanted, other)
    if len(found) > len(own):
        return f"the file goes on with layer {found[len(own)].name!r} after the network's last"
    return None


def _told(wanted: _Group, found: _Group | None) -> str:
    held = f"holds {_listed(found.shapes)}" if found else "holds nothing"
    return (
        f"the first layer that differs is {wanted.name!r}, which has weights of shape "
        f"{_listed(wanted.shapes)} where the file {held}"
    )


def _listed(shapes: Shapes) -> str:
    return " and ".join("×".join(map(str, shape)) or "()" for shape in shapes)
