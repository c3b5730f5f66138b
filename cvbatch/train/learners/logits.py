"""Training sees a network before its last softmax or sigmoid, where the gradient is not lost yet.

The view is made of the network's own layers: training one trains the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import layers, ops

from cvbatch.core.errors import ModelError
from cvbatch.models.graph_surgery import calls_of

Tensor = Any  # a keras.KerasTensor; Keras carries no type information
_ACTIVATIONS = ("softmax", "sigmoid")


class Logits(NamedTuple):
    """What an output was before its activation."""

    tensor: Tensor
    activation: str  # "softmax", "sigmoid", or "" where the output itself is taken for logits


class WithoutActivation(layers.Wrapper):  # type: ignore[misc]  # Keras carries no type information
    """A Dense or Conv2D layer with its own weights and without its activation."""

    def call(self, inputs: Tensor) -> Tensor:
        """Return what the wrapped layer would, before its activation."""
        layer = self.layer
        if isinstance(layer, layers.Dense):
            outputs = ops.matmul(inputs, layer.kernel)
        else:
            outputs = layer.convolution_op(inputs, layer.kernel)
        return outputs + layer.bias if layer.use_bias else outputs

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> Any:
        """Return the shape that the wrapped layer's output has."""
        return self.layer.compute_output_shape(input_shape)


def logits_of(model: keras.Model, tensor: Tensor) -> Logits:
    """Return what one of a flat model's tensors was before its softmax or sigmoid.

    As in the job, an output that ends in neither is taken for logits.

    Raises:
        ModelError: the activation is part of a layer that is neither Dense nor Conv2D.
    """
    call = call_of(model, tensor)
    if call is None:
        return Logits(tensor, "")
    layer = call.operation
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    if type(layer).__name__.lower() in _ACTIVATIONS:  # the layer Softmax, ops.softmax, ops.sigmoid
        return Logits(call.received[0], type(layer).__name__.lower())
    if activation not in _ACTIVATIONS:
        return Logits(tensor, "")
    if isinstance(layer, layers.Activation):
        return Logits(call.received[0], activation)
    if type(layer) not in (layers.Dense, layers.Conv2D):
        raise ModelError(
            f"layer {layer.name!r} ({type(layer).__name__}) ends in a {activation} of its own; to "
            f"train the model put that in a layer behind it: layers.Activation({activation!r})"
        )
    bare = WithoutActivation(layer, name=layer.name, dtype=layer.dtype_policy)
    return Logits(bare(call.received[0]), activation)


def call_of(model: keras.Model, tensor: Tensor) -> Any:  # a graphs.Call, None for an input
    """Return the call in a flat model's graph that a tensor comes from."""
    for call in calls_of(model):
        if any(tensor is returned for returned in call.returned):
            return call
    return None
