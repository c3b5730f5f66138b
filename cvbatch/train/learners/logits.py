"""Logits of a network: its tensors before the last softmax or sigmoid.

Losses use logits because a score that was rounded to 0 has no gradient. The layers are shared with
the network, so training them trains the network.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from cvbatch.config.models import Activation
from cvbatch.core.errors import ModelError
from cvbatch.inference.activation import logits_of_probabilities
from cvbatch.inference.value_ranges import Values, values_of
from cvbatch.models.frameworks import keras, layers, ops, tf
from cvbatch.models.graph_surgery import Call, call_of

Tensor = Any  # a keras.KerasTensor; Keras carries no type information
_ACTIVATIONS = ("softmax", "sigmoid")
_ANY_SIDE = 64  # of an image whose size is variable, in pixels, and of a batch


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


class LogOdds(layers.Layer):  # type: ignore[misc]  # Keras carries no type information
    """Logits of probabilities; see `logits_of_probabilities`."""

    def __init__(self, *, is_independent: bool, **options: Any) -> None:
        super().__init__(**options)
        self._is_independent = is_independent

    def call(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        return logits_of_probabilities(inputs, is_independent=self._is_independent)

    def compute_output_spec(self, inputs: Tensor) -> Tensor:
        """Return the shape; Keras takes a product with an array for a sparse tensor."""
        return keras.KerasTensor(inputs.shape, "float32")


def logits_of(
    model: keras.Model,
    tensor: Tensor,
    still: Activation = "auto",
    *,
    is_independent: bool = False,
) -> Logits:
    """Return a tensor of a flat model before its softmax or sigmoid.

    Args:
        model: the flat model.
        tensor: scores of classes.
        still: the activation that is still to be applied to the scores, as prediction decides it
            (`inference.activation_check`); auto: probabilities are recognised by the operations
            that lead to the tensor, and other outputs are treated as logits.
        is_independent: probabilities of unknown operations are those of a sigmoid, not a softmax.

    Raises:
        ModelError: the activation is part of a layer that is neither Dense nor Conv2D.
    """
    call = call_of(model, tensor)
    if still in _ACTIVATIONS:
        # Keras' losses replace logits that a softmax returned by the input of that softmax; the
        # product is another tensor.
        return Logits(tensor * 1.0, "")
    if call is None:
        return Logits(tensor, "")
    last = _before_last_activation(call, tensor)
    if last.activation:
        return last
    values = _values_of(model, tensor)
    if still == "auto" and not values.are_probabilities:
        return last
    kinds = values.activations or {"sigmoid" if is_independent else "softmax"}
    activation = "softmax" if kinds == {"softmax"} else "sigmoid"
    is_independent = activation == "sigmoid" or tensor.shape[-1] == 1
    return Logits(LogOdds(is_independent=is_independent)(tensor), activation)


def _values_of(model: keras.Model, tensor: Tensor) -> Values:
    """Return what the graph of the model says of a tensor's values; see `value_ranges`."""
    part = keras.Model(model.inputs, tensor)
    found: list[Values] = []

    def forward(*images: tf.Tensor) -> None:
        found.append(values_of(part(list(images), training=False)))

    batch = [tf.TensorSpec([n or _ANY_SIDE for n in x.shape], x.dtype) for x in model.inputs]
    tf.function(forward, autograph=False).get_concrete_function(*batch)
    return found[0]


def _before_last_activation(call: Call, tensor: Tensor) -> Logits:
    """Return the tensor before the activation of the call that returned it."""
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
    linear = WithoutActivation(layer, name=f"{layer.name}_logits", dtype=layer.dtype_policy)
    return Logits(linear(call.received[0]), activation)
