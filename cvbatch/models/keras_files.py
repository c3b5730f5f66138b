"""Load the network of an untrusted .keras or .h5 file."""

from __future__ import annotations

import copy
import json
import math
import re
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py

from cvbatch.core.errors import ModelError
from cvbatch.models import cost, legacy_config, trusted_modules
from cvbatch.models.file_safety import (
    CONFIG_MEMBER,
    METADATA_MEMBER,
    inspect_model_file,
    network_config,
)
from cvbatch.models.frameworks import keras
from cvbatch.models.hub_presets import uncompiled_tasks
from cvbatch.models.onednn_workaround import avoid_onednn_bug
from cvbatch.models.weights import LOAD_ERRORS, check_memory, first_line, load_weights

_WEIGHTS_TOLERANCE = 100_000  # weights that a file need not contain, such as random states


def load_file(
    model: str, path: Path, trust: Sequence[str] = (), memory_bytes: int | None = None
) -> keras.Model:
    """Load the network of an untrusted .keras or .h5 file.

    Args:
        model: file as the user named it, for messages.
        path: local file.
        trust: names of installed modules whose classes the network may contain.
        memory_bytes: available for the weights; None: unknown.

    Raises:
        ModelError: it is not a model file, contains code, needs a class of a module that is not
            trusted, or has more weights than its size or the memory allows.
    """
    classes = trusted_modules.import_classes(trust)
    load = _load_keras if path.name.endswith(".keras") else _load_h5
    try:
        weights_bytes = inspect_model_file(path, model, trust)
        check_memory(model, weights_bytes, memory_bytes)
        with keras.saving.custom_object_scope(classes):
            loaded = load(model, path, weights_bytes)
    except LOAD_ERRORS as error:
        raise ModelError(_load_message(model, path, error)) from error
    return avoid_onednn_bug(loaded)


def _load_keras(model: str, path: Path, weights_bytes: int) -> keras.Model:
    with zipfile.ZipFile(path) as archive:
        text = archive.read(CONFIG_MEMBER)
        has_metadata = METADATA_MEMBER in archive.namelist()
        metadata = json.loads(archive.read(METADATA_MEMBER)) if has_metadata else {}
    if str(metadata.get("keras_version")).startswith("2."):
        return _load_legacy(model, path, text, "2.", weights_bytes)
    config = {**network_config(text), "compile_config": None}
    with cost.skip_weight_allocation(), uncompiled_tasks():
        network = keras.saving.deserialize_keras_object(copy.deepcopy(config))  # changes it
    _check_num_weights(model, network, weights_bytes)
    if config == {**json.loads(text), "compile_config": None}:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    with tempfile.TemporaryDirectory(prefix="cvbatch-model-") as folder:
        stripped = Path(folder) / "model.keras"
        _write_with_config(path, stripped, config)
        return keras.saving.load_model(stripped, compile=False, safe_mode=True)


def _write_with_config(path: Path, target: Path, config: dict[str, Any]) -> None:
    """Copy a .keras file with another config.

    Keras ignores how the outer network was compiled, but builds the losses of nested ones.
    """
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as written:
        for member in archive.infolist():
            if member.filename != CONFIG_MEMBER and not member.is_dir():
                with archive.open(member) as source, written.open(member.filename, "w") as output:
                    while data := source.read(1 << 24):
                        output.write(data)
        written.writestr(CONFIG_MEMBER, json.dumps(config))


def _load_h5(model: str, path: Path, weights_bytes: int) -> keras.Model:
    """Load a file of Keras 2, or one that Keras 3 wrote in that format."""
    with h5py.File(path) as file:
        text, version = file.attrs.get("model_config"), str(file.attrs.get("keras_version"))
    if text is None:
        raise ModelError(
            f"{model} contains weights without a network; set model to the name of a built-in "
            "network and weights to this file, or save the whole network with "
            "model.save('NAME.keras')"
        )
    return _load_legacy(model, path, text, version, weights_bytes)


def _load_legacy(
    model: str, path: Path, text: bytes | str, version: str, weights_bytes: int
) -> keras.Model:
    """Load a file whose config Keras 3 cannot build; `version` of Keras wrote it."""
    config = network_config(text)
    legacy_config.check(model, config)
    with cost.skip_weight_allocation():
        network = legacy_config.build(config, version)
    _check_num_weights(model, network, weights_bytes)
    network = legacy_config.build(config, version)
    load_weights(network, model, model, path)
    return network


def _check_num_weights(model: str, network: keras.Model, weights_bytes: int) -> None:
    """Raise ModelError if the network has more weights than a file with `weights_bytes` can store.

    Keras would allocate and initialise all of them before it reads those in the file.
    """
    num_weights = sum(math.prod(weight.shape) for weight in network.weights)
    if num_weights > weights_bytes + _WEIGHTS_TOLERANCE:
        raise ModelError(
            f"{model} is refused: its layers have {num_weights} weights, and the file contains "
            f"{weights_bytes} bytes of weights: it is a bomb, or damaged"
        )


def _load_message(model: str, path: Path, error: BaseException) -> str:
    """Return the error message for a model file that cannot be loaded."""
    text = str(error)
    suffix = path.suffix
    if not path.is_file():
        return f"model file {model} does not exist; check the path"
    if not (zipfile.is_zipfile if suffix == ".keras" else h5py.is_hdf5)(path):
        content = "a zip archive that Keras 3 writes" if suffix == ".keras" else "HDF5"
        return (
            f"{model} cannot be loaded: it is not a {suffix} file ({content}), or is truncated; "
            "copy it again, or save it with model.save('NAME.keras')"
        )
    unknown = re.search(
        r"(?:Could not (?:locate|deserialize) (?:class|function)? ?|Unknown \w+: )'([^']+)'", text
    )
    if unknown:
        return (
            f"{model} needs the class {unknown[1]!r}, which is neither Keras' nor cvbatch's nor "
            "registered in a trusted module: code from outside is not run; build the network again "
            "from Keras layers, or set trust: [MODULE] to the module that registers the class with "
            "keras.saving.register_keras_serializable"
        )
    return (
        f"{model} cannot be loaded as a {suffix} file of Keras {keras.__version__} "
        f"({first_line(error)}); save it again with model.save('NAME.keras')"
    )
