"""Load the network of an untrusted .keras or .h5 file."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from cvbatch.core.errors import ModelError
from cvbatch.models import cost, legacy_config, trusted_modules
from cvbatch.models.file_safety import (
    CONFIG_MEMBER,
    METADATA_MEMBER,
    inspect_model_file,
    network_config,
)
from cvbatch.models.frameworks import keras
from cvbatch.models.hdf5 import h5py
from cvbatch.models.hub_presets import uncompiled
from cvbatch.models.onednn_workaround import avoid_onednn_bug
from cvbatch.models.weights import (
    LOAD_ERRORS,
    check_memory,
    check_num_weights,
    first_line,
    load_weights,
)


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
    with uncompiled():
        with cost.skip_weight_allocation():
            network = keras.saving.deserialize_keras_object(json.loads(text))
        check_num_weights(model, network, weights_bytes)
        return keras.saving.load_model(path, compile=False, safe_mode=True)


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
    check_num_weights(model, network, weights_bytes)
    network = legacy_config.build(config, version)
    load_weights(network, model, model, path)
    return network


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
