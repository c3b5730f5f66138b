"""Cut, join and rebuild the graphs of Keras models.

Keras has no public API for the nodes of a graph; only `calls_of` and `Call` access them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cvbatch.core.errors import ModelError
from cvbatch.models.frameworks import keras

Tensor = Any  # a keras.KerasTensor; Keras carries no type information


class Call(NamedTuple):
    """One call of a layer or an operation in a model's graph."""

    operation: Any  # a keras.Layer or keras.Operation
    node: Any  # a Keras node
    received: list[Tensor]  # inputs
    returned: list[Tensor]  # outputs

    def substituted_arguments(self, new_tensors: dict[int, Tensor]) -> tuple[Any, dict[str, Any]]:
        """Return args and kwargs with each tensor t replaced by `new_tensors[id(t)]`."""
        args, kwargs = self.node.arguments.fill_in(new_tensors)
        return args, kwargs


def calls_of(model: keras.Model) -> Iterator[Call]:
    """Yield the calls of a model's graph in topological order.

    Raises:
        ModelError: the model has no graph: it is a subclassed or an unbuilt model.
    """
    by_depth = _functional(model)._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if not node.is_input:
                yield Call(node.operation, node, node.input_tensors, node.outputs)


def call_of(model: keras.Model, tensor: Tensor) -> Call | None:
    """Return the call of a flat model that produced a tensor; None for an input."""
    for call in calls_of(model):
        if any(tensor is returned for returned in call.returned):
            return call
    return None


def flatten(model: keras.Model) -> keras.Model:
    """Return the model as one flat graph of the same layers, without nested models.

    Raises:
        ModelError: the model, or a nested one, has no graph.
    """
    graph = _functional(model)
    if not any(isinstance(call.operation, keras.Model) for call in calls_of(graph)):
        return graph
    new_inputs = [_input_like(tensor, tensor.shape[1:]) for tensor in graph.inputs]
    inputs = keras.tree.pack_sequence_as(graph.input, new_inputs)
    return keras.Model(inputs, apply_graph(graph, new_inputs), name=model.name)


class LayerCopier:
    """Call a copy of each layer or operation, created once with the weights of the original."""

    def __init__(self) -> None:
        self._copy_of: dict[int, Any] = {}

    def __call__(self, operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return the output of the operation's copy."""
        is_new = id(operation) not in self._copy_of
        if is_new:
            self._copy_of[id(operation)] = type(operation).from_config(operation.get_config())
        copy = self._copy_of[id(operation)]
        result = copy(*args, **kwargs)
        if is_new and isinstance(operation, keras.Layer):
            copy.set_weights(operation.get_weights())
        return result


def _call_original(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    return operation(*args, **kwargs)


def apply_graph(
    model: keras.Model,
    tensors: list[Tensor],
    call_layer: Callable[[Any, Any, dict[str, Any]], Any] = _call_original,
) -> Any:
    """Apply the model's layers to other tensors, without nesting the model as calling it would.

    Args:
        model: a functional or sequential model.
        tensors: new inputs, in the order of `model.inputs`.
        call_layer: calls an operation with args and kwargs; a `LayerCopier` applies copies of the
            layers. The default applies the layers themselves.

    Returns:
        The outputs, in the structure of `model.output`.

    Raises:
        ModelError: the model, or a nested one, has no graph.
        ValueError: a layer does not accept its new input.
    """
    graph = _functional(model)
    new_tensors = {id(old): new for old, new in zip(graph.inputs, tensors, strict=True)}
    for call in calls_of(graph):
        args, kwargs = call.substituted_arguments(new_tensors)
        if isinstance(call.operation, keras.Model):
            # A `training` argument is dropped: that of the outer model overrides it in any case.
            result = apply_graph(call.operation, keras.tree.flatten(args), call_layer)
        else:
            result = call_layer(call.operation, args, kwargs)
        record_outputs(new_tensors, call, result)
    return keras.tree.map_structure(lambda tensor: new_tensors[id(tensor)], graph.output)


def record_outputs(new_tensors: dict[int, Tensor], call: Call, result: Any) -> None:
    """Map the id of each output of a call to the tensor that replaces it."""
    for old, new in zip(call.returned, keras.tree.flatten(result), strict=True):
        new_tensors[id(old)] = new


def output_of(model: keras.Model, layer: str) -> Tensor:
    """Return the output of a layer in this model, the last if it is called several times.

    `model.get_layer(NAME).output` may belong to another model that shares the layer.

    Raises:
        ModelError: the model has no layer of that name.
    """
    outputs = [call.returned[0] for call in calls_of(model) if call.operation.name == layer]
    if not outputs:
        raise ModelError(f"model {model.name!r} has no layer {layer!r}; see its summary()")
    return outputs[-1]


def only_input(model: keras.Model) -> Tensor:  # (B, H, W, channels)
    """Return the model's single input, a batch of images.

    Raises:
        ModelError: the model has several inputs, or one of another rank.
    """
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ModelError(
            f"model {model.name!r} takes inputs of shapes {shapes}; it must take one, (batch, "
            "height, width, channels)"
        )
    return model.inputs[0]


def with_image_size(model: keras.Model, image_size: tuple[int, int]) -> keras.Model:
    """Return the model for images of another size, sharing all layers and weights.

    Args:
        model: takes one batch of images.
        image_size: (height, width) in pixels, multiples of the network's stride: padding that
            Keras computed for the original size is not adapted.

    Raises:
        ModelError: a layer depends on the original size, as a Dense after a Flatten does.
    """
    graph = flatten(model)
    old_input = only_input(graph)
    new_input = _input_like(old_input, (*image_size, old_input.shape[3]))
    try:
        outputs = apply_graph(graph, [new_input])
    except ValueError as error:
        raise ModelError(
            f"model {model.name!r} of {old_input.shape[1]}×{old_input.shape[2]} cannot take images "
            f"of {image_size[0]}×{image_size[1]}: {str(error).strip().splitlines()[0]}; build it "
            "at that size instead"
        ) from error
    return keras.Model(new_input, outputs, name=model.name)


def at_image_size(model: keras.Model, image_size: tuple[int, int]) -> keras.Model:
    """Return the model if it takes images of that size, or else `with_image_size`."""
    if model.input_shape[1:3] in (image_size, (None, None)):
        return model
    return with_image_size(model, image_size)


def _input_like(like: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    return keras.Input(shape, name=like.name, dtype=like.dtype)


def _functional(model: keras.Model) -> keras.Model:
    """Return the model if it has a graph; a built Sequential is converted to a functional model."""
    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs, model.outputs[0], name=model.name)
    if not hasattr(model, "_nodes_by_depth"):
        raise ModelError(
            f"model {model.name!r} is a {type(model).__name__} without a graph of layers; build it "
            "with Keras' functional API, or as a Sequential with an Input"
        )
    return model
