"""Graphs are laid open, cut, joined and rebuilt here, since networks are made out of networks.

Keras has no public way into a model's graph: `calls_of` alone reads its nodes, all else is
built on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras

from cvbatch.core.errors import ModelError

Tensor = Any  # a keras.KerasTensor; Keras carries no type information


class Call(NamedTuple):
    """One call of a layer or an operation in a model's graph."""

    operation: Any  # a keras.Layer or keras.Operation
    node: Any
    received: list[Tensor]
    returned: list[Tensor]

    def substituted_arguments(self, now: dict[int, Tensor]) -> tuple[Any, dict[str, Any]]:
        """Return the call's arguments with each tensor replaced by the one `now` has for its id."""
        args, kwargs = self.node.arguments.fill_in(now)
        return args, kwargs


def calls_of(model: keras.Model) -> Iterator[Call]:
    """Yield the calls of a model's graph, each after those whose results it receives.

    Raises:
        ModelError: the model is no graph: a class of its own, or not built yet.
    """
    by_depth = _functional(model)._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if not node.is_input:
                yield Call(node.operation, node, node.input_tensors, node.outputs)


def flatten(model: keras.Model) -> keras.Model:
    """Return the network as one flat graph of the same layers: no model lies in another.

    Raises:
        ModelError: it, or a model in it, is no graph.
    """
    graph = _functional(model)
    if not any(isinstance(call.operation, keras.Model) for call in calls_of(graph)):
        return graph
    fresh = [_fresh_input(tensor, tensor.shape[1:]) for tensor in graph.inputs]
    inputs = keras.tree.pack_sequence_as(graph.input, fresh)
    return keras.Model(inputs, apply_graph(graph, fresh), name=model.name)


class LayerCopier:
    """Calls copies of layers and operations, each made once, with the weights of the original."""

    def __init__(self) -> None:
        self._copy_of: dict[int, Any] = {}

    def __call__(self, operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return what the operation's copy returns."""
        is_new = id(operation) not in self._copy_of
        if is_new:
            self._copy_of[id(operation)] = type(operation).from_config(operation.get_config())
        copy = self._copy_of[id(operation)]
        result = copy(*args, **kwargs)
        if is_new and isinstance(operation, keras.Layer):
            copy.set_weights(operation.get_weights())
        return result


def _itself(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    return operation(*args, **kwargs)


def apply_graph(
    model: keras.Model,
    tensors: list[Tensor],
    call_layer: Callable[[Any, Any, dict[str, Any]], Any] = _itself,
) -> Any:
    """Return the model's outputs over other tensors, by its own layers or by `Copies` of them.

    Unlike calling the model, this lays no model into another.

    Raises:
        ModelError: it, or a model in it, is no graph.
        ValueError: a layer cannot take what it is given.
    """
    graph = _functional(model)
    now = {id(mine): other for mine, other in zip(graph.inputs, tensors, strict=True)}
    for call in calls_of(graph):
        args, kwargs = call.substituted_arguments(now)
        if isinstance(call.operation, keras.Model):
            # Whether it was told `training` is of no account: the outer model's word overrides it.
            result = apply_graph(call.operation, keras.tree.flatten(args), call_layer)
        else:
            result = call_layer(call.operation, args, kwargs)
        record_outputs(now, call, result)
    return keras.tree.map_structure(lambda tensor: now[id(tensor)], graph.output)


def record_outputs(now: dict[int, Tensor], call: Call, result: Any) -> None:
    """Put down what a call returns now in place of what it returned."""
    for old, new in zip(call.returned, keras.tree.flatten(result), strict=True):
        now[id(old)] = new


def output_of(model: keras.Model, layer: str) -> Tensor:
    """Return what the named layer returns in this model, last if it is called more than once.

    `model.get_layer(NAME).output` may belong to another model that shares the layer.

    Raises:
        ModelError: the model calls no layer of that name.
    """
    found = [call.returned[0] for call in calls_of(model) if call.operation.name == layer]
    if not found:
        raise ModelError(f"model {model.name!r} has no layer {layer!r}; see its summary()")
    return found[-1]


def only_input(model: keras.Model) -> Tensor:  # (B, H, W, channels)
    """Return the model's one input, a batch of images.

    Raises:
        ModelError: it has several, or one of another rank.
    """
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ModelError(
            f"model {model.name!r} takes inputs of shapes {shapes}; it must take one, (batch, "
            "height, width, channels)"
        )
    return model.inputs[0]


def with_image_size(model: keras.Model, image_size: tuple[int, int]) -> keras.Model:
    """Return the same layers, the same weights, over images of another size.

    image_size: (height, width) in pixels. Both models share every weight, so that training one
    trains the other. Padding that Keras chose by the first size stays: keep to sizes that the
    network's stride divides.

    Raises:
        ModelError: a layer is bound to the first size, as a Dense behind a Flatten is.
    """
    graph = flatten(model)
    first = only_input(graph)
    fresh = _fresh_input(first, (*image_size, first.shape[3]))
    try:
        outputs = apply_graph(graph, [fresh])
    except ValueError as error:
        raise ModelError(
            f"model {model.name!r} of {first.shape[1]}×{first.shape[2]} cannot take images of "
            f"{image_size[0]}×{image_size[1]}: {str(error).strip().splitlines()[0]}; build it at "
            "that size instead"
        ) from error
    return keras.Model(fresh, outputs, name=model.name)


def _fresh_input(like: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    return keras.Input(shape, name=like.name, dtype=like.dtype)


def _functional(model: keras.Model) -> keras.Model:
    """Return a model that has a graph: itself, or a Sequential's layers as a graph."""
    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs, model.outputs[0], name=model.name)
    if not hasattr(model, "_nodes_by_depth"):
        raise ModelError(
            f"model {model.name!r} is a {type(model).__name__} without a graph to work on; build "
            "it from keras.Input with Keras' functional API, or as a Sequential with an Input"
        )
    return model
