"""Logits of a network: its tensors before the last softmax or sigmoid.

Losses use logits because a score that was rounded to 0 has no gradient. The layers are shared with
the network, so training them trains the network.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from cvbatch.core.errors import ModelError
from cvbatch.models.frameworks import keras, layers, ops
from cvbatch.models.graph_surgery import Call, calls_of

Tensor = Any  # a keras.KerasTensor; Keras carries no type information
_ACTIVATIONS = ("softmax", "sigmoid")


class Logits(NamedTuple):
    """An output before its activation."""

    tensor: Tensor
    activation: str  # "softmax", "sigmoid", or "" if the output itself is treated as logits


class WithoutActivation(layers.Wrapper):  # type: ignore[misc]  # Keras carries no type information
    """A Dense or Conv2D layer without its activation; the weights are shared."""

    def call(self, inputs: Tensor) -> Tensor:
        """Return the wrapped layer's output before its activation."""
        layer = self.layer
        if isinstance(layer, layers.Dense):
            outputs = ops.matmul(inputs, layer.kernel)
        else:
            outputs = layer.convolution_op(inputs, layer.kernel)
        return outputs + layer.bias if layer.use_bias else outputs

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> Any:
        """Return the shape of the wrapped layer's output."""
        return self.layer.compute_output_shape(input_shape)


def logits_of(model: keras.Model, tensor: Tensor) -> Logits:
    """Return a tensor of a flat model before its softmax or sigmoid.

    As in prediction, an output without either is treated as logits.

    Raises:
        ModelError: the activation is part of a layer that is neither Dense nor Conv2D.
    """
    call = call_of(model, tensor)
    if call is None:
        return Logits(tensor, "")
    layer = call.operation
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    if type(layer).__name__.lower() in _ACTIVATIONS:  # layers.Softmax, ops.softmax, ops.sigmoid
        return Logits(call.received[0], type(layer).__name__.lower())
    if activation not in _ACTIVATIONS:
        return Logits(tensor, "")
    if isinstance(layer, layers.Activation):
        return Logits(call.received[0], activation)
    if type(layer) not in (layers.Dense, layers.Conv2D):
        raise ModelError(
            f"layer {layer.name!r} ({type(layer).__name__}) contains a {activation}; to train the "
            f"model, use a separate layer after it: layers.Activation({activation!r})"
        )
    linear = WithoutActivation(layer, name=layer.name, dtype=layer.dtype_policy)
    return Logits(linear(call.received[0]), activation)


def call_of(model: keras.Model, tensor: Tensor) -> Call | None:
    """Return the call of a flat model that produced a tensor; None for an input."""
    for call in calls_of(model):
        if any(tensor is returned for returned in call.returned):
            return call
    return None
