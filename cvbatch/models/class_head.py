"""Rebuild the layers that compute a network's class scores, for other classes.

All other layers stay as they are, with their weights. Between those layers and the scores only
operations without weights are allowed that keep the classes apart: activations, pooling, resizing,
sums, reshapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cvbatch.core.errors import ModelError
from cvbatch.models.frameworks import keras, layers
from cvbatch.models.graph_surgery import Call, call_of, calls_of, flatten

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

# Layer → attribute with its number of units, and for each of its weights the axes of the classes.
_HEAD_LAYERS: dict[type, tuple[str, tuple[tuple[int, ...], ...]]] = {
    layers.Dense: ("units", ((1,), (0,))),
    layers.Conv2D: ("filters", ((3,), (0,))),
    layers.Conv2DTranspose: ("filters", ((2,), (0,))),
}
_UPSAMPLING_AXES = ((2, 3), (0,))  # of a transposed convolution from class scores to class scores
_ACTIVATIONS = ("softmax", "sigmoid")


class ClassScores(NamedTuple):
    """Class scores in the graph of a network.

    Attributes:
        tensor: (..., first + classes), of the flat graph.
        first: number of units before those of the classes, such as the boxes of a grid detector.
    """

    tensor: Tensor
    first: int = 0

    @property
    def units(self) -> int:
        """Return the number of class scores; 1 may be the positive class of two."""
        return int(self.tensor.shape[-1]) - self.first


class RebuiltModel(NamedTuple):
    """A model with other classes, and the names of the layers that were replaced."""

    model: keras.Model
    layers: tuple[str, ...]


def with_classes(
    model: keras.Model,
    graph: keras.Model,
    scores: Sequence[ClassScores],
    sources: Sequence[int | None],
    activation: str,
) -> RebuiltModel:
    """Return the model for other classes; it shares all layers but those of its head.

    Args:
        model: functional or sequential.
        graph: `flatten(model)`.
        scores: all class scores in the graph that are computed for these classes.
        sources: for each new class the old class whose weights it keeps; None: untrained.
        activation: "softmax" or "sigmoid": replaces an activation of the old scores.

    Raises:
        ModelError: the layers that make the scores are not found.
    """
    replacements: dict[int, Any] = {}  # id of an operation → the new one
    copies = []
    for head in scores:
        calls = _calls_of_head(graph, head.tensor)
        for call in calls:
            if id(call.operation) not in replacements:
                new = _rebuilt(call.operation, head, len(sources), activation)
                replacements[id(call.operation)] = new
                if type(call.operation) in _HEAD_LAYERS:
                    copies.append((call, new, head.first))

    def replaced(operation: Any) -> Any:
        if id(operation) not in replacements and isinstance(operation, keras.Model):
            inner = {id(call.operation) for call in calls_of(flatten(operation))}
            if inner & replacements.keys():
                replacements[id(operation)] = _clone(operation, replaced)
        return replacements.get(id(operation), operation)

    rebuilt = _clone(model, replaced)
    for call, new, first in copies:
        _copy_kept(call, new, sources, first)
    return RebuiltModel(rebuilt, tuple(call.operation.name for call, _, _ in copies))


def _clone(model: keras.Model, replaced: Any) -> keras.Model:
    # Keras accepts a call_function only where layers are called, not where they are listed.
    options = {} if isinstance(model, keras.Sequential) else {"call_function": _call}
    try:
        return keras.models.clone_model(model, clone_function=replaced, **options)
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise _not_found(model, f"the network cannot be built again: {reason}") from error


def _call(operation: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(operation, layers.Activation):
        kwargs.pop("mask", None)  # of a layers.Softmax that it replaces
    return operation(*args, **kwargs)


def _calls_of_head(graph: keras.Model, scores: Tensor) -> list[Call]:
    """Return the calls from the layers that make the class scores up to the scores.

    Raises:
        ModelError: an operation on the way mixes the classes, or has weights.
    """
    by_node: dict[int, Call] = {}
    pending = [scores]
    while pending:
        tensor = pending.pop()
        call = call_of(graph, tensor)
        if call is None:
            raise _not_found(graph, "its class scores do not come from a Dense or Conv2D layer")
        if id(call.node) in by_node:
            continue
        by_node[id(call.node)] = call
        if type(call.operation) not in _HEAD_LAYERS:
            pending += _class_inputs(graph, call)
        elif _is_upsampling(call):
            pending += call.received
        elif getattr(call.operation, "groups", 1) != 1:
            raise _not_found(graph, f"layer {call.operation.name!r} is a grouped convolution")
    return list(by_node.values())


def _class_inputs(graph: keras.Model, call: Call) -> list[Tensor]:
    """Return the inputs of a call with one channel per class, as its output has."""
    units = call.returned[0].shape[-1]
    inputs = [tensor for tensor in call.received if tensor.shape[-1] == units]
    if getattr(call.operation, "weights", ()) or not inputs:
        kind = type(call.operation).__name__
        raise _not_found(
            graph,
            f"layer {call.operation.name!r} ({kind}) is between its class scores and the last "
            "Dense or Conv2D layer",
        )
    return inputs


def _is_upsampling(call: Call) -> bool:
    """Return whether a call enlarges class scores, as the last layers of an FCN do."""
    is_transposed = isinstance(call.operation, layers.Conv2DTranspose)
    return is_transposed and call.received[0].shape[-1] == call.operation.filters


def _rebuilt(operation: Any, head: ClassScores, num_classes: int, activation: str) -> Any:
    """Return an operation of the head for another number of classes, with initial weights."""
    units = head.first + num_classes
    if type(operation) in _HEAD_LAYERS:
        config = operation.get_config() | {_HEAD_LAYERS[type(operation)][0]: units}
        if config.get("activation") in _ACTIVATIONS:
            config["activation"] = activation
        return type(operation).from_config(config)
    if (
        isinstance(operation, layers.Reshape)
        and operation.target_shape[-1] == head.tensor.shape[-1]
    ):
        shape = (*operation.target_shape[:-1], units)
        return layers.Reshape(shape, name=operation.name)
    kind = type(operation).__name__.lower()  # layers.Softmax, ops.softmax, ops.sigmoid
    if isinstance(operation, layers.Activation):
        kind = getattr(operation.activation, "__name__", "")
    if kind in _ACTIVATIONS and kind != activation:
        return layers.Activation(activation, name=operation.name)
    return operation


def _copy_kept(call: Call, new: keras.Layer, sources: Sequence[int | None], first: int) -> None:
    """Copy the weights of the units before the classes, and of the classes that are kept."""
    old = call.operation
    kept = [(i, source) for i, source in enumerate(sources) if source is not None]
    new_units = [*range(first), *(first + i for i, _ in kept)]
    old_units = [*range(first), *(first + source for _, source in kept)]
    all_axes = _UPSAMPLING_AXES if _is_upsampling(call) else _HEAD_LAYERS[type(old)][1]
    values = []
    for new_value, old_value, axes in zip(
        new.get_weights(), old.get_weights(), all_axes, strict=False
    ):
        target = [new_units if a in axes else range(n) for a, n in enumerate(new_value.shape)]
        source = [old_units if a in axes else range(n) for a, n in enumerate(old_value.shape)]
        filled = new_value.copy()
        filled[np.ix_(*target)] = old_value[np.ix_(*source)]
        values.append(filled)
    new.set_weights(values)


def _not_found(model: keras.Model, reason: str) -> ModelError:
    return ModelError(
        f"model {model.name!r} cannot be trained on other classes, because {reason}; replace its "
        "last layer in Keras, or import the data with the classes of the model"
    )
