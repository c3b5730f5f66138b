"""Find out whether a network scales its input pixels itself."""

from __future__ import annotations

import re
from typing import Any

from cvbatch.core.errors import ModelError
from cvbatch.models.frameworks import keras
from cvbatch.models.graph_surgery import Call, calls_of

# Names of layers: Rescaling, Normalization, LayerNormalization, ImageConverter, ...
_SCALING = re.compile(r"rescal|normali[sz]|standardi[sz]|preprocess|converter", re.IGNORECASE)
_ARITHMETIC = {"Add", "Subtract", "Multiply", "Divide", "TrueDivide"}  # with a constant
_MIN_PIXEL_MEAN = 2.0  # of a channel; mean values of inputs that were scaled before are smaller


def scales_its_input(model: keras.Model) -> bool | None:
    """Return whether pixels are scaled before the first layer with weights.

    Layers without weights, such as Resizing, flips, padding and pooling, may come before. Batch
    normalisation counts if its moving means are those of pixels 0..255.

    Returns:
        None if the network is not a graph of layers, so that this is unknown.
    """
    try:
        return bool(_scan(model))
    except ModelError:
        return None


def _scan(model: keras.Model) -> bool | None:
    """Return whether the input is scaled; None: no layer of the model scales it or has weights."""
    calls = list(calls_of(model))
    reached = {id(tensor) for tensor in model.inputs}
    results: list[bool] = []
    for call in calls:
        if any(id(tensor) in reached for tensor in call.received):
            result = _result_of(call)
            if result is None:
                reached |= {id(tensor) for tensor in call.returned}
            else:
                results.append(result)
    return any(results) if results else None


def _result_of(call: Call) -> bool | None:
    operation: Any = call.operation
    name = type(operation).__name__
    if isinstance(operation, keras.Model):
        return _scan(operation)
    if isinstance(operation, keras.layers.BatchNormalization):
        return bool(keras.ops.max(keras.ops.abs(operation.moving_mean)) > _MIN_PIXEL_MEAN)
    if _SCALING.search(name) and name != "LocalResponseNormalization":
        return True
    if name in _ARITHMETIC and len(call.received) == 1:
        return True
    has_weights = isinstance(operation, keras.Layer) and bool(operation.weights)
    return False if has_weights else None
