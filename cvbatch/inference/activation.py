"""Activation that is still to be applied to a network's scores, inside the TensorFlow graph."""

from __future__ import annotations

from typing import Any

from cvbatch.config.models import Activation
from cvbatch.models.frameworks import ops, tf

_SMALLEST = 1e-7  # a probability of 0 has no logarithm


def default_activation(units: int, is_multi_label: bool) -> Activation:
    """Return the activation that makes logits probabilities; one unit is the positive class."""
    return "sigmoid" if units == 1 or is_multi_label else "softmax"


def with_activation(raw: tf.Tensor, activation: Activation) -> tf.Tensor:
    """Apply an activation over the last axis; a softmax of one unit is that of (0, unit)."""
    if activation == "none":
        return raw
    if activation == "sigmoid" or raw.shape[-1] == 1:
        return tf.sigmoid(raw)
    return tf.nn.softmax(raw)


def logits_and_probabilities(
    raw: tf.Tensor,  # (B, units)
    is_multi_label: bool,
    activation: Activation,
) -> tuple[tf.Tensor, tf.Tensor]:  # (B, C), (B, C)
    """Return logits and probabilities of every class.

    One unit without `is_multi_label` is the positive class of two: C is 2. Otherwise C is `units`.

    Args:
        activation: still to be applied; never auto.
    """
    logits = class_logits(raw, activation, is_multi_label)
    probabilities = with_activation(raw, activation)
    if raw.shape[1] == 1 and not is_multi_label:
        return (
            tf.concat([-logits, logits], axis=1),
            tf.concat([1 - probabilities, probabilities], axis=1),
        )
    return logits, probabilities


def class_logits(
    raw: tf.Tensor,  # (..., units)
    activation: Activation,
    is_multi_label: bool,
) -> tf.Tensor:  # (..., units)
    """Return `raw`, or of probabilities the input of their activation, or else their logarithms.

    Args:
        activation: still to be applied; never auto.
    """
    if activation != "none":
        return raw
    logits, found = before_activation(raw)
    if found:
        return logits
    is_independent = raw.shape[-1] == 1 or is_multi_label
    return tf.cast(logits_of_probabilities(raw, is_independent=is_independent), raw.dtype)


def logits_of_probabilities(
    probabilities: Any,  # a tensor (..., units)
    *,
    is_independent: bool,
) -> Any:  # (..., units) float32
    """Return logarithms, or the log-odds of independent probabilities.

    A softmax of the logarithms, or a sigmoid of the log-odds, gives the probabilities back.
    Probabilities are moved away from 0 and 1, which have no logits.
    """
    kept = ops.clip(ops.cast(probabilities, "float32"), _SMALLEST, 1 - _SMALLEST)
    logarithms = ops.log(kept)
    return logarithms - ops.log1p(-kept) if is_independent else logarithms


def before_activation(scores: tf.Tensor) -> tuple[tf.Tensor, str]:
    """Return the input of a final softmax or sigmoid, and its op type.

    Without such an activation the scores themselves are returned, and "".
    """
    tensor = scores
    while tensor.op.type in {"Identity", "Cast", "ExpandDims", "Squeeze", "Reshape"}:
        source = tensor.op.inputs[0]
        if tensor.op.type == "Reshape" and source.shape[-1] != tensor.shape[-1]:
            break  # its rows are not those of the scores
        tensor = source
    if tensor.op.type in {"Softmax", "Sigmoid"}:
        return tf.reshape(tensor.op.inputs[0], scores.shape), str(tensor.op.type)
    return scores, ""
