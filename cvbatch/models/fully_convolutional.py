"""Convert the dense head of a classifier to convolutions, for larger images (sliding window)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from cvbatch.core.errors import ModelError
from cvbatch.models.frameworks import keras, layers, ops
from cvbatch.models.graph_surgery import (
    Call,
    LayerCopier,
    calls_of,
    flatten,
    only_input,
    record_outputs,
)

Tensor = Any  # a keras.KerasTensor; Keras carries no type information
Window = tuple[int, int]  # (height, width) in positions of the head's feature map

_CELL: Window = (1, 1)
_POOLINGS = {
    layers.GlobalAveragePooling2D: layers.AveragePooling2D,
    layers.GlobalMaxPooling2D: layers.MaxPooling2D,
}
_HEAD_STARTS = (layers.Flatten, *_POOLINGS)
_ELEMENTWISE = (
    layers.Dropout,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Identity,
)
_PER_CELL = (layers.Activation, layers.BatchNormalization)


def to_fully_convolutional(
    model: keras.Model,
    image_size: tuple[int, int] | None = None,
    padding: Literal["valid", "same"] = "valid",
) -> keras.Model:  # (B, H, W, 3) → (B, h, w, units) for every head
    """Return the classifier with its dense heads converted to convolutions.

    Each cell of the output equals the dense head's output for its window of the feature map. The
    first Dense after a Flatten of h × w × c becomes a convolution of kernel h × w, global pooling
    becomes pooling of h × w with stride 1, and later Dense layers become 1 × 1 convolutions. h and
    w are the size of the feature map at the original image size. The weights are copies. A model
    may have several heads, and other outputs.

    Args:
        model: has at least one head: Flatten or global pooling, then Dense layers.
        image_size: (height, width) in pixels of the new network; None is the original size, at
            which the output has one cell.
        padding: "valid" gives one cell per complete window; "same" keeps the feature map's size.

    Raises:
        ModelError: the model has no such head, or a layer in it cannot become a convolution; or
            the padding is "valid" and the image is smaller than the original.
    """
    graph = flatten(model)
    head_nodes = {id(call.node) for call in _heads(graph)}
    if not head_nodes:
        raise _no_head_error(model)
    old_input = only_input(graph)
    size = image_size or old_input.shape[1:3]
    if padding == "valid" and image_size is not None:
        _check_size(model, image_size, old_input.shape[1:3])
    inputs = keras.Input((*size, old_input.shape[3]), name=old_input.name, dtype=old_input.dtype)
    new_tensors: dict[int, Tensor] = {id(old_input): inputs}
    windows: dict[int, Window] = {}  # id of a tensor in a head → window that a new cell replaces
    call_copy = LayerCopier()
    for call in calls_of(graph):
        args, kwargs = call.substituted_arguments(new_tensors)
        layer = call.operation
        if id(call.node) in head_nodes or any(id(tensor) in windows for tensor in call.received):
            layer, window = _convolved(call, windows.get(id(call.received[0])), padding)
            windows[id(call.returned[0])] = window
        if layer is call.operation:
            result = call_copy(layer, args, kwargs)
        else:
            result = args[0] if layer is None else layer(args[0])
        record_outputs(new_tensors, call, result)
    if any(windows.get(id(tensor), _CELL) != _CELL for tensor in graph.outputs):
        raise ModelError(f"model {model.name!r} ends in a Flatten; add a Dense layer after it")
    outputs = keras.tree.map_structure(lambda tensor: new_tensors[id(tensor)], graph.output)
    return keras.Model(inputs, outputs, name=model.name)


def without_head(model: keras.Model) -> keras.Model:  # (B, H, W, 3) → (B, h, w, c)
    """Return the network up to the input of its head: of the last Flatten or global pooling.

    The layers and their weights are shared with the model.

    Raises:
        ModelError: the model has no head that starts with a Flatten or global pooling.
    """
    graph = flatten(model)
    heads = _heads(graph)
    if not heads:
        raise _no_head_error(model)
    return keras.Model(graph.input, heads[-1].received[0], name=model.name)


def _heads(graph: keras.Model) -> list[Call]:
    """Return the first call of each head, ordered by depth in the graph.

    A Flatten or global pooling starts a head if its output is never combined with a tensor that
    does not depend on it, as the pooling of a squeeze-and-excitation block is. One that depends on
    the start of a head belongs to that head.
    """
    ancestors: dict[int, set[int]] = {}  # id of a tensor → candidate nodes it depends on
    depths: dict[int, int] = {}  # id of a tensor → length of the longest path to it
    candidates: dict[int, tuple[int, Call]] = {}  # id of a node → depth, call
    upstream: dict[int, set[int]] = {}  # id of a node → candidate nodes it depends on
    combined: set[int] = set()  # candidate nodes whose output is combined with another tensor
    for call in calls_of(graph):
        inputs = [ancestors.get(id(tensor), set()) for tensor in call.received]
        union: set[int] = set().union(*inputs)
        combined |= {node for node in union if not all(node in nodes for nodes in inputs)}
        depth = 1 + max((depths.get(id(tensor), 0) for tensor in call.received), default=0)
        if isinstance(call.operation, _HEAD_STARTS) and len(call.received[0].shape) == 4:
            upstream[id(call.node)] = set(union)
            candidates[id(call.node)] = depth, call
            union = union | {id(call.node)}
        for tensor in call.returned:
            ancestors[id(tensor)], depths[id(tensor)] = union, depth
    heads = [
        candidate
        for node, candidate in candidates.items()
        if node not in combined and not upstream[node] - combined
    ]
    return [call for _, call in sorted(heads, key=lambda head: head[0])]


def _convolved(call: Call, window: Window | None, padding: str) -> tuple[Any, Window]:
    """Return the convolutional equivalent of a layer in a head, and the window of its output.

    The equivalent is the layer itself, a new layer, or None for no operation. window: the positions
    of the old feature map that one cell of the layer's new input replaces; None for the first call
    of a head.
    """
    layer = call.operation
    if window is None:
        window = _map_size(call)
        if isinstance(layer, layers.Flatten):
            return None, window
        pooling = next(new for old, new in _POOLINGS.items() if isinstance(layer, old))
        return pooling(window, strides=1, padding=padding, name=layer.name), _CELL
    if isinstance(layer, layers.Dense):
        return _as_convolution(layer, window, padding), _CELL
    if isinstance(layer, _ELEMENTWISE):
        return layer, window
    if window == _CELL:
        if _keeps_cells(call):
            return None, window
        if isinstance(layer, layers.Softmax) and layer.axis in (-1, 1):
            return layers.Softmax(name=layer.name), window
        is_pointwise = isinstance(layer, layers.Conv2D) and tuple(layer.kernel_size) == _CELL
        if is_pointwise or isinstance(layer, _PER_CELL):
            return layer, window
    raise ModelError(
        f"layer {layer.name!r} ({type(layer).__name__}) in the head cannot become a convolution; "
        "a head consists of Flatten or global pooling, then Dense, Dropout, BatchNormalization "
        "after a Dense, and activations"
    )


def _map_size(call: Call) -> Window:
    """Return the height and width of the feature map that starts a head."""
    height, width = call.received[0].shape[1:3]
    if height is None or width is None:
        raise ModelError(
            f"layer {call.operation.name!r} reads a map of unknown height and width; build the "
            "model with a fixed image size, which defines the window"
        )
    return int(height), int(width)


def _keeps_cells(call: Call) -> bool:
    """Return whether a Flatten or Reshape only adds or removes axes of length 1."""
    if not isinstance(call.operation, (layers.Flatten, layers.Reshape)):
        return False
    before, after = call.received[0].shape, call.returned[0].shape
    return bool(before[-1] == after[-1] and all(n == 1 for n in (*before[1:-1], *after[1:-1])))


def _as_convolution(dense: keras.layers.Dense, window: Window, padding: str) -> Any:
    """Return the convolution of kernel size `window` that equals a Dense on the flattened window.

    Flatten orders values by row, column and channel, as the kernel of a convolution does.
    """
    convolution = layers.Conv2D(
        dense.units,
        window,
        padding=padding,
        activation=dense.activation,
        use_bias=dense.use_bias,
        # Initialise with the Dense layer's values rather than draw values and overwrite them.
        kernel_initializer=_values_of(dense.kernel),
        bias_initializer=_values_of(dense.bias) if dense.use_bias else "zeros",
        kernel_regularizer=dense.kernel_regularizer,
        bias_regularizer=dense.bias_regularizer,
        trainable=dense.trainable,
        dtype=dense.dtype_policy,
        name=dense.name,
    )
    channels = dense.kernel.shape[0] // (window[0] * window[1])
    convolution.build((None, *window, channels))
    convolution.kernel_initializer = dense.kernel_initializer
    convolution.bias_initializer = dense.bias_initializer
    return convolution


def _values_of(variable: Any) -> Callable[..., Tensor]:
    def initializer(shape: tuple[int, ...], dtype: Any = None) -> Tensor:
        return ops.reshape(ops.convert_to_tensor(variable, dtype), shape)

    return initializer


def _check_size(model: keras.Model, size: Window, minimum: tuple[int | None, int | None]) -> None:
    if any(side < (least or 0) for side, least in zip(size, minimum, strict=True)):
        raise ModelError(
            f"image size {size[0]}×{size[1]}: {model.name!r} needs at least its original size, "
            f"{minimum[0]}×{minimum[1]}, which is the sliding window"
        )


def _no_head_error(model: keras.Model) -> ModelError:
    return ModelError(
        f"model {model.name!r} has no head: a Flatten, GlobalAveragePooling2D or "
        "GlobalMaxPooling2D of a feature map, followed by Dense layers"
    )
