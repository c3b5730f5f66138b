"""Rebuild a model with another dtype policy."""

from __future__ import annotations

import keras

from cvbatch.models.onednn_workaround import avoid_onednn_bug


def with_precision(model: keras.Model, policy: str) -> keras.Model:
    """Return the model computing under a mixed-precision policy, its weights unchanged."""

    def converted(layer: keras.Layer) -> keras.Layer:
        return layer.__class__.from_config({**layer.get_config(), "dtype": policy})

    clone = keras.models.clone_model(model, clone_function=converted, recursive=True)
    clone.set_weights(model.get_weights())
    return avoid_onednn_bug(clone)
