"""A classifier's dense head becomes convolutions here, so that it slides over larger images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras
from keras import layers, ops

from cvbatch.core.errors import ModelError
from cvbatch.models.graph_surgery import (
    Call,
    LayerCopier,
    calls_of,
    flatten,
    only_input,
    record_outputs,
)

Tensor = Any  # a keras.KerasTensor; Keras carries no type information
Window = tuple[int, int]  # height and width, in positions of the head's feature map

_CELL: Window = (1, 1)
_POOLINGS = {
    layers.GlobalAveragePooling2D: layers.AveragePooling2D,
    layers.GlobalMaxPooling2D: layers.MaxPooling2D,
}
_BEGINNINGS = (layers.Flatten, *_POOLINGS)
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
    """Return the classifier with its dense heads made convolutions, all weights carried over.

    Every cell of the answer is what the dense head says of its window of the feature map: the
    first Dense behind a Flatten of h × w × c becomes a convolution of kernel h × w, a global
    pooling a pooling of h × w with stride 1, later Dense layers 1 × 1 convolutions. The weights
    are copies. h and w are those of the map at the model's own image size. A model may have
    several heads, and other outputs beside them.

    image_size: (height, width) in pixels the new network takes; the model's own by default, where
    the answer has one cell. padding: "same" keeps the feature map's height and width instead.

    Raises:
        ModelError: the model has no such head, or something in it that cannot become a
            convolution; or the image is smaller than its own and the padding "valid".
    """
    graph = flatten(model)
    begins = {id(call.node) for call in _heads(graph)}
    if not begins:
        raise _no_head(model)
    first = only_input(graph)
    size = image_size or first.shape[1:3]
    if padding == "valid" and image_size is not None:
        _check_size(model, image_size, first.shape[1:3])
    inputs = keras.Input((*size, first.shape[3]), name=first.name, dtype=first.dtype)
    now: dict[int, Tensor] = {id(first): inputs}
    windows: dict[int, Window] = {}  # of the tensors in a head: what a cell holds of the old map
    call_copy = LayerCopier()
    for call in calls_of(graph):
        args, kwargs = call.substituted_arguments(now)
        layer = call.operation
        if id(call.node) in begins or any(id(tensor) in windows for tensor in call.received):
            layer, window = _convolved(call, windows.get(id(call.received[0])), padding)
            windows[id(call.returned[0])] = window
        if layer is None:
            result = args[0]
        elif layer is call.operation:
            result = call_copy(layer, args, kwargs)
        else:
            result = layer(args[0])
        record_outputs(now, call, result)
    if any(windows.get(id(tensor), _CELL) != _CELL for tensor in graph.outputs):
        raise ModelError(f"model {model.name!r} ends in a Flatten; it needs a Dense behind it")
    outputs = keras.tree.map_structure(lambda tensor: now[id(tensor)], graph.output)
    return keras.Model(inputs, outputs, name=model.name)


def without_head(model: keras.Model) -> keras.Model:  # (B, H, W, 3) → (B, h, w, c)
    """Return the network up to the feature map that its last Flatten or global pooling reads.

    The layers and their weights are shared with the model.

    Raises:
        ModelError: no Flatten or global pooling begins a head.
    """
    graph = flatten(model)
    heads = _heads(graph)
    if not heads:
        raise _no_head(model)
    return keras.Model(graph.input, heads[-1].received[0], name=model.name)


def _heads(graph: keras.Model) -> list[Call]:
    """Return the calls that begin heads, that of the longest way from the image last.

    What they return never meets another tensor again: the pooling of a squeeze-and-excitation
    block does, and is no head. One that lies behind another is of the same head.
    """
    behind: dict[int, set[int]] = {}  # tensor → the beginnings it comes from
    depth: dict[int, int] = {}
    begun: dict[int, tuple[int, Call]] = {}
    met: set[int] = set()
    upstream: dict[int, set[int]] = {}
    for call in calls_of(graph):
        sources = [behind.get(id(tensor), set()) for tensor in call.received]
        union: set[int] = set().union(*sources)
        met |= {origin for origin in union if not all(origin in source for source in sources)}
        far = 1 + max((depth.get(id(tensor), 0) for tensor in call.received), default=0)
        if isinstance(call.operation, _BEGINNINGS) and len(call.received[0].shape) == 4:
            upstream[id(call.node)] = set(union)
            begun[id(call.node)] = far, call
            union = union | {id(call.node)}
        for tensor in call.returned:
            behind[id(tensor)], depth[id(tensor)] = union, far
    heads = [begun[key] for key in begun if key not in met and not upstream[key] - met]
    return [call for _, call in sorted(heads, key=lambda head: head[0])]


def _convolved(call: Call, window: Window | None, padding: str) -> tuple[Any, Window]:
    """Return what does on a map what a head's layer did on a vector, and its window.

    That is the layer itself, another one, or None for nothing at all. window: what a cell of the
    map it receives holds of the old one; None where the head begins.
    """
    layer = call.operation
    if window is None:
        window = _old_size(call)
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
        "a head is made of Flatten or global pooling, then Dense, Dropout, BatchNormalization "
        "behind a Dense, and activations"
    )


def _old_size(call: Call) -> Window:
    height, width = call.received[0].shape[1:3]
    if height is None or width is None:
        raise ModelError(
            f"layer {call.operation.name!r} reads a map of unknown height and width; build the "
            "model at a fixed image size, which says what a window is"
        )
    return int(height), int(width)


def _keeps_cells(call: Call) -> bool:
    """Say whether a layer only gives a vector another shape of the same numbers."""
    if not isinstance(call.operation, (layers.Flatten, layers.Reshape)):
        return False
    before, after = call.received[0].shape, call.returned[0].shape
    return bool(before[-1] == after[-1] and all(n == 1 for n in (*before[1:-1], *after[1:-1])))


def _as_convolution(dense: keras.layers.Dense, window: Window, padding: str) -> Any:
    """Return the convolution of kernel `window` that equals a Dense on the flattened window.

    Flatten lays a map out row by row, channels last: the order of a convolution's kernel.
    """
    convolution = layers.Conv2D(
        dense.units,
        window,
        padding=padding,
        activation=dense.activation,
        use_bias=dense.use_bias,
        # Its first values are the Dense layer's: nothing is drawn only to be overwritten.
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


def _check_size(model: keras.Model, size: Window, own: tuple[int | None, int | None]) -> None:
    if any(side < (least or 0) for side, least in zip(size, own, strict=True)):
        raise ModelError(
            f"image size {size[0]}×{size[1]}: {model.name!r} made convolutional needs at least its "
            f"own, {own[0]}×{own[1]}, which is the window that slides"
        )


def _no_head(model: keras.Model) -> ModelError:
    return ModelError(
        f"model {model.name!r} has no head to convert: a Flatten, GlobalAveragePooling2D or "
        "GlobalMaxPooling2D of a feature map with Dense layers behind it"
    )
