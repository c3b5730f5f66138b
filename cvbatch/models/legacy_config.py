"""Configs of Keras 2, in .h5 and .keras files, adapted to Keras 3."""

from __future__ import annotations

import copy
import re
from typing import Any

from cvbatch.core.errors import ModelError
from cvbatch.models import tensorflow_operations as operations
from cvbatch.models.file_safety import json_objects
from cvbatch.models.frameworks import keras

_NETWORKS = {"Sequential": keras.Sequential, "Model": keras.Model, "Functional": keras.Model}
_KERAS_1_KEYS = {"nb_filter", "border_mode", "output_dim", "init", "nb_row", "dim_ordering"}
_RENAMED = {"FixedDropout": "Dropout"}  # of the packages efficientnet and segmentation_models
_APPLICATIONS = keras.src.applications  # their own layers are not in Keras' public API
_CLASSES = {
    "LayerScale": _APPLICATIONS.convnext.LayerScale,
    "StochasticDepth": _APPLICATIONS.convnext.StochasticDepth,
    "Custom>CustomScaleLayer": _APPLICATIONS.inception_resnet_v2.CustomScaleLayer,
    "CustomScaleLayer": _APPLICATIONS.inception_resnet_v2.CustomScaleLayer,
}
# Class → keys that Keras 2 wrote and Keras 3 refuses, with the value that they must have.
_KERNEL = {"kernel_initializer": ..., "kernel_regularizer": None, "kernel_constraint": None}
_UNUSED_KEYS: dict[str, dict[str, Any]] = {
    "DepthwiseConv2D": {"groups": 1},
    "SeparableConv2D": {"groups": 1, **_KERNEL},
    "Conv2DTranspose": {"groups": 1},
    "SpatialDropout2D": {"noise_shape": None, "seed": ..., "trainable": ...},
}
# Modules of layers and networks in files of Keras 2; the classes are found without them.
_MODULES = re.compile(
    r"keras(\.layers)?|(tf_)?keras\.(src\.)?(engine\..*|layers\.core\.tf_op_layer.*)"
)
_NEWER_KEYS = ("module", "registered_name", "build_config")
_RANDOM_KEYS = {"rng_type": ...}  # of augmentation layers


def check(model: str, config: Any) -> None:
    """Raise ModelError for a network that Keras 3 cannot load.

    It is one of Keras 1, whose weights have another order, or calls a function of TensorFlow that
    is not on the allowlist.
    """
    for part in json_objects(config):
        name, inner = part.get("class_name"), part.get("config")
        if not isinstance(inner, dict):
            continue
        if _KERAS_1_KEYS & set(inner):
            raise ModelError(
                f"{model} was written by Keras 1, whose layers and weights are stored in another "
                "way; open it in Keras 2 (pip install 'keras<2.4' 'tensorflow<2.4'), and save it "
                "again with model.save('NAME.h5')"
            )
        function = str(inner.get("function"))
        if name in operations.OPERATION_CLASSES and not operations.is_known(function):
            raise ModelError(
                f"{model} calls tf.{function}, which is not one of the functions that a network "
                "may call; build the network again from Keras layers, or export it to ONNX with "
                "`python -m tf2onnx.convert`"
            )


def build(config: Any, keras_version: str) -> keras.Model:
    """Build the network of a file, with random weights.

    Args:
        config: JSON object with `class_name` and `config`; it is not changed.
        keras_version: that wrote the file.

    Raises:
        ValueError, TypeError: Keras cannot build it.
    """
    is_current = keras_version.startswith("3.")
    adapted = copy.deepcopy(config) if is_current else _adapted(config)
    name = adapted["class_name"]
    network = _NETWORKS.get(name) or keras.saving.get_registered_object(name)
    if network is None:
        raise ValueError(f"Unknown model: {name!r}")
    with keras.saving.custom_object_scope(_CLASSES):
        return network.from_config(adapted["config"])


def _adapted(value: Any) -> Any:
    """Return a copy of a config in which objects have the classes and keys of Keras 3."""
    if isinstance(value, list):
        return [_adapted(item) for item in value]
    if not isinstance(value, dict):
        return value
    name, inner = value.get("class_name"), value.get("config")
    if name == "Policy" and isinstance(inner, dict):  # a dtype policy, such as mixed_float16
        return inner.get("name")
    if name in _NETWORKS and isinstance(inner, list):
        value = {**value, "config": {"layers": inner}}  # Keras before 2.2.3
    elif name in _NETWORKS and isinstance(inner, dict) and "output_layers" in inner:
        value = {**value, "config": _as_keras_3_graph(inner)}
    elif isinstance(name, str) and isinstance(inner, dict):
        value = {**value, "class_name": _RENAMED.get(name, name), "config": _used(name, inner)}
    if _is_layer_of_later_keras_2(value):
        value = {**value, "class_name": value.get("registered_name") or value["class_name"]}
        value = {key: item for key, item in value.items() if key not in _NEWER_KEYS}
    return {key: _adapted(item) for key, item in value.items()}


def _is_layer_of_later_keras_2(value: dict[str, Any]) -> bool:
    """Return whether an object is a layer as Keras 2.12 and later wrote it, with its module."""
    has_module = _MODULES.fullmatch(str(value.get("module"))) is not None
    return "class_name" in value and (has_module or "build_config" in value)


def _used(class_name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return a layer's config without keys that Keras 3 refuses and that change nothing."""
    default = _RANDOM_KEYS if class_name.startswith("Random") else {}
    unused = _UNUSED_KEYS.get(class_name, default)
    used = {
        key: item
        for key, item in config.items()
        if key not in unused or unused[key] not in (..., item)
    }
    if "name" in used:
        used["name"] = _valid_name(used["name"])
    return used


def _as_keras_3_graph(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a functional network with nodes and names that Keras 3 accepts.

    A node is a list of (layer, number of its call, output, keywords). Keras 2 numbers the calls of
    nested networks from 1. Keras 3 expects that only in `input_layers` and `output_layers`, and
    there not of a Sequential network. Names must not contain a slash.
    """
    names = [layer["name"] for layer in config["layers"]]
    layers = [
        operations.as_operation(layer, names)
        if layer["class_name"] in operations.OPERATION_CLASSES
        else layer
        for layer in config["layers"]
    ]
    kinds = {layer["name"]: layer["class_name"] for layer in layers}
    ends = {key: config[key] for key in ("input_layers", "output_layers")}
    for key, tensors in ends.items():
        single = tensors[0] if len(tensors) == 1 else tensors  # one tensor is no list of outputs
        ends[key] = _renumbered(single, kinds, ("Sequential",))
    return {
        **config,
        **ends,
        "layers": [
            {
                **layer,
                "name": _valid_name(layer["name"]),
                "inbound_nodes": _renumbered(layer["inbound_nodes"], kinds, tuple(_NETWORKS)),
            }
            for layer in layers
        ],
    }


def _renumbered(value: Any, kinds: dict[str, str], decremented: tuple[str, ...]) -> Any:
    """Return nodes with valid names, where the calls of some classes are numbered from 0."""
    if isinstance(value, dict):
        return {key: _renumbered(item, kinds, decremented) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) >= 3 and isinstance(value[0], str) and value[0] in kinds:
        number = value[1] - (kinds[value[0]] in decremented)
        return [_valid_name(value[0]), number, *value[2:]]
    return [_renumbered(item, kinds, decremented) for item in value]


def _valid_name(name: str) -> str:
    return name.replace("/", "_")
