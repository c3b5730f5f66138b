"""Networks of .h5 files: configs of Keras 2, adapted to Keras 3."""

from __future__ import annotations

from typing import Any

from cvbatch.core.errors import ModelError
from cvbatch.models.frameworks import keras

_KERAS_1_KEYS = {"nb_filter", "border_mode", "output_dim", "init", "nb_row", "dim_ordering"}
_UNUSED_KEYS = {  # class → keys of Keras 2 with the only value that Keras 3 computes
    "DepthwiseConv2D": {"groups": 1},
    "SeparableConv2D": {"groups": 1},
    "Conv2DTranspose": {"groups": 1},
}


def check_version(model: str, config: Any) -> None:
    """Raise ModelError for a network of Keras 1, whose weights have another order."""
    for layer in _layers(config):
        if _KERAS_1_KEYS & set(layer["config"]):
            raise ModelError(
                f"{model} was written by Keras 1, whose layers and weights are stored in another "
                "way; open it in Keras 2 (pip install 'keras<2.4' 'tensorflow<2.4'), and save it "
                "again with model.save('NAME.h5')"
            )


def build(config: Any) -> keras.Model:
    """Build the network of a config of Keras 2, with random weights.

    Args:
        config: JSON object with `class_name` and `config`; it is not changed.

    Raises:
        ValueError, TypeError: Keras cannot build it.
    """
    adapted = _adapted(config)
    name = adapted["class_name"]
    kinds = {"Sequential": keras.Sequential, "Model": keras.Model, "Functional": keras.Model}
    network = kinds.get(name) or keras.saving.get_registered_object(name)
    if network is None:
        raise ValueError(f"Unknown model: {name!r}")
    return network.from_config(adapted["config"])


def _layers(config: Any) -> list[dict[str, Any]]:
    """Return the serialised objects of a config, at any depth."""
    found: list[dict[str, Any]] = []
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if "class_name" in value and isinstance(value.get("config"), dict):
                found.append(value)
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return found


def _adapted(value: Any) -> Any:
    """Return a copy of a config with what Keras 3 does not accept removed."""
    if isinstance(value, list):
        return [_adapted(item) for item in value]
    if not isinstance(value, dict):
        return value
    name, inner = value.get("class_name"), value.get("config")
    if name in ("Sequential", "Model", "Functional") and isinstance(inner, list):
        value = {**value, "config": {"layers": inner}}  # Keras before 2.2.3
    elif name == "Policy" and isinstance(inner, dict):
        return inner.get("name")
    elif name in _UNUSED_KEYS and isinstance(inner, dict):
        unused = _UNUSED_KEYS[name]
        kept = {key: item for key, item in inner.items() if unused.get(key, ...) != item}
        value = {**value, "config": kept}
    return {key: _adapted(item) for key, item in value.items()}
