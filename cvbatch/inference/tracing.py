"""Trace functions of tensors to TensorFlow graphs, which engines compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvbatch.models.frameworks import tf

Input = tuple[tuple[int, ...], str]  # shape and dtype


def trace(
    function: Callable[..., Any], inputs: Sequence[Input], overrides: Mapping[str, str]
) -> Any:
    """Trace a function of tensors to a concrete function that returns a dict.

    Args:
        function: takes the inputs in their order, and returns tensors by name.
        inputs: of the function; in the graph they are called input_0, input_1, ...
        overrides: gradients by the type of operation.
    """
    from cvbatch.models.frameworks import tf

    signature = [
        tf.TensorSpec(shape, dtype, name=f"input_{i}") for i, (shape, dtype) in enumerate(inputs)
    ]

    @tf.function(input_signature=signature, autograph=False)
    def traced(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.compat.v1.get_default_graph().gradient_override_map(overrides):
            return dict(function(*tensors))

    return traced.get_concrete_function()


def output_names(function: Any) -> tuple[str, ...]:
    """Return the names of the outputs, sorted: the order in which TensorFlow flattens a dict."""
    return tuple(sorted(function.structured_outputs))
