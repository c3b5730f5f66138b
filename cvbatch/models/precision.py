"""Rebuild a model with another precision (Keras dtype policy)."""

from __future__ import annotations

from cvbatch.core.errors import ModelError
from cvbatch.models.frameworks import keras
from cvbatch.models.onednn_workaround import avoid_onednn_bug


def with_precision(model: keras.Model, policy: str) -> keras.Model:
    """Return a copy of a model with another dtype policy and the same weights.

    Args:
        model: functional or sequential.
        policy: Keras dtype policy, such as "mixed_float16" or "mixed_bfloat16".

    Raises:
        ModelError: the model is another one, such as a SavedModel.
    """
    if not isinstance(model, (keras.Sequential, keras.Function)):
        raise ModelError(
            f"run.precision {policy}: model {model.name!r} is not a graph of Keras layers, so that "
            "its precision cannot be changed; set precision: float32"
        )

    def with_policy(layer: keras.Layer) -> keras.Layer:
        return layer.__class__.from_config({**layer.get_config(), "dtype": policy})

    clone = keras.models.clone_model(model, clone_function=with_policy, recursive=True)
    clone.set_weights(model.get_weights())
    return avoid_onednn_bug(clone)
