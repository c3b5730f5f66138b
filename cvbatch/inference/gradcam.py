"""Grad-CAM as part of the forward graph.

The backbone runs once per batch; gradients are computed only for the head, from the selected
feature map to the class score. If the head begins with global average pooling, the gradient at each
position of the map is the gradient of the pooled values divided by the number of positions, so the
pooling is not differentiated (for pooling and one Dense layer this is CAM).

Source: Selvaraju et al., Grad-CAM, 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cvbatch.core.errors import ModelError
from cvbatch.core.suggestions import closest_names
from cvbatch.inference.token_maps import TokenMaps
from cvbatch.models.frameworks import keras, tf

# Layers whose output `layer: auto` does not select: it selects the feature map before them.
_PASSTHROUGH = (
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    keras.layers.Dropout,
    keras.layers.SpatialDropout2D,
    keras.layers.ZeroPadding2D,
    keras.layers.Cropping2D,
    keras.layers.Reshape,
    keras.layers.InputLayer,
    keras.layers.Rescaling,
    keras.layers.Resizing,
    keras.layers.Normalization,
    keras.layers.UpSampling2D,
)
# The same as keras.ops operations, whose classes are not public in Keras.
_PASSTHROUGH_OPERATIONS = {"AveragePool", "Cast", "Flip", "MaxPool", "Pad", "Reshape", "Transpose"}


@dataclass
class Calls:
    """Calls of a model's layers and operations in the order of execution, recorded while tracing.

    Attributes:
        paths: path of each layer: outer/inner/layer.
        operations: the layers or bare operations.
        inputs: tensors that each call received.
        outputs: tensor that each call returned.
        tokens: finds the grids of a transformer's tokens; None: only maps with height and width can
            be explained.
    """

    paths: list[str] = field(default_factory=list)
    operations: list[keras.Operation] = field(default_factory=list)
    inputs: list[list[tf.Tensor]] = field(default_factory=list)
    outputs: list[tf.Tensor] = field(default_factory=list)
    tokens: TokenMaps | None = None

    def as_map(
        self,
        tensor: tf.Tensor,  # (B, h, w, c), or tokens (B, N, c)
    ) -> tf.Tensor:  # (B, h, w, c)
        """Return a layer's output, or its gradient, as a feature map."""
        grid = (
            self.tokens.grid_of(tensor.shape[1]) if self.tokens and len(tensor.shape) == 3 else None
        )
        return grid.as_map(tensor) if grid else tensor


def leaf_operations(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.Operation]]:
    """Yield path and object of each layer without sublayers, and of each bare operation.

    A path is outer/inner/layer. A sum may be a layer (`Add`) or an operation (`x + y`); Grad-CAM
    can explain both.
    """
    for operation in getattr(model, "operations", model.layers):
        path = f"{prefix}{operation.name}"
        if getattr(operation, "layers", None):
            yield from leaf_operations(operation, f"{path}/")
        else:
            yield path, operation


def recorded_operations(model: keras.Model) -> Iterator[tuple[str, keras.Operation]]:
    """Yield `leaf_operations` and the layers inside those of other libraries, at any depth.

    The parts of Keras' own layers and of attention are left out: what they return are heads,
    queries or keys, not a map of the image.
    """
    for path, operation in leaf_operations(model):
        yield from _with_sublayers(path, operation)


def _with_sublayers(path: str, operation: keras.Operation) -> Iterator[tuple[str, keras.Operation]]:
    kind = type(operation)
    if not kind.__module__.startswith("keras.") and "attention" not in kind.__name__.lower():
        for layer in getattr(operation, "_layers", ()):  # Keras has no public list of them
            inner_path = f"{path}/{layer.name}"
            if getattr(layer, "layers", None):
                yield from leaf_operations(layer, f"{inner_path}/")
            else:
                yield from _with_sublayers(inner_path, layer)
    yield path, operation


@contextmanager
def record_calls(model: keras.Model) -> Iterator[Calls]:
    """Record the calls of all `recorded_operations` inside the block."""
    calls = Calls()
    patched = []
    for path, operation in recorded_operations(model):
        if "call" not in vars(operation):
            operation.call = _recording(path, operation, calls)
            patched.append(operation)
    try:
        yield calls
    finally:
        for operation in patched:
            del operation.call


def _recording(path: str, operation: keras.Operation, calls: Calls) -> Callable[..., Any]:
    original = operation.call

    def call(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if tf.is_tensor(result):
            calls.paths.append(path)
            calls.operations.append(operation)
            calls.inputs.append([x for x in tf.nest.flatten(args) if tf.is_tensor(x)])
            calls.outputs.append(result)
        return result

    return call


def check_layer(model: keras.Model, layer: str) -> None:
    """Check that a model has a layer of this name or path; "auto" is always valid.

    Raises:
        ModelError: it has none; the message names the closest path.
    """
    paths = [path for path, _ in recorded_operations(model)]
    if layer == "auto" or matching_paths(paths, layer):
        return
    near = closest_names(layer, paths, cutoff=0.3)
    hint = f"the nearest is {near[0]!r}; " if near else ""
    raise ModelError(
        f"heatmap layer {layer!r} is not in model {model.name!r}; {hint}set layer: auto to select "
        "the last feature map"
    )


def matching_paths(paths: list[str], layer: str) -> list[str]:
    """Return the paths that a layer name matches: the same path, or those that end in /name."""
    return [path for path in paths if path == layer or path.endswith("/" + layer)]


def find_feature_map(
    calls: Calls,
    score: tf.Tensor,  # (B, ...)
    layer: str,
) -> int:
    """Return the index of the call whose output is the feature map to explain.

    Args:
        calls: recorded in the graph that computed `score`.
        score: class scores.
        layer: name or path of a layer. "auto" is the last feature map that the score depends on,
            before pooling, dropout and padding. Of a transformer it is the last normalisation or
            sum whose patch tokens change the score.

    Raises:
        ModelError: there is no such map.
    """
    if layer != "auto":
        return _named_map(calls, score, layer)
    token_map = last_token_map(calls, score)
    start = 0 if token_map is None else token_map + 1
    for i in reversed(range(start, len(calls.paths))):
        tensor = calls.outputs[i]
        is_candidate = not is_passthrough(calls.operations[i]) and is_feature_map(tensor)
        if is_candidate and tensor.shape[0] == score.shape[0] and depends(score, tensor):
            if token_map is None:
                _check_depth(calls, i, score.shape[0])
                return i
            if calls.tokens and calls.tokens.has_image_aspect(tensor):
                return i
    if token_map is not None:
        return token_map
    raise ModelError(
        "heatmap layer auto: no layer before the class scores has a feature map with height and "
        "width, or tokens whose grid is certain; remove heatmap for this model"
    )


def _named_map(calls: Calls, score: tf.Tensor, layer: str) -> int:
    paths = set(matching_paths(calls.paths, layer))
    for i in reversed(range(len(calls.paths))):
        is_named = calls.paths[i] in paths and depends(score, calls.outputs[i])
        if is_named and (is_feature_map(calls.outputs[i]) or _is_token_map(calls, i, score)):
            return i
    raise ModelError(
        f"heatmap layer {layer!r} has no output (batch, height, width, channels) or (batch, "
        "patches, channels) that the class scores depend on; use the name of a convolution or of a "
        "block's normalisation, or auto"
    )


def _is_token_map(calls: Calls, call_index: int, score: tf.Tensor) -> bool:
    """Return whether a call returned tokens on a certain grid whose patches change the score."""
    tensor, tokens = calls.outputs[call_index], calls.tokens
    if tokens is None or not tokens.is_tokens(tensor, score.shape[0]):
        return False
    count = tensor.shape[1]
    is_on_grid = tokens.grid_of(count) is not None and tokens.is_in_order(call_index, count)
    return is_on_grid and call_index in tokens.influential_calls(count)


def last_token_map(calls: Calls, score: tf.Tensor) -> int | None:
    """Return the last call whose patch tokens change the score; None without such tokens.

    Normalisations and sums are preferred to the layers inside a block, because they have the
    channels that all blocks share.
    """
    if calls.tokens is None:
        return None
    tokens, batch = calls.tokens, score.shape[0]
    counts = [x.shape[1] for x in reversed(calls.outputs) if tokens.is_tokens(x, batch)]
    for count in dict.fromkeys(counts):
        if tokens.grid_of(count) is None:
            continue
        found = [
            i
            for i in reversed(tokens.influential_calls(count))
            if not is_passthrough(calls.operations[i])
        ]
        for i in sorted(found, key=lambda i: not _is_shared(calls.operations[i])):
            if tokens.is_in_order(i, count):
                return i
    return None


def _is_shared(operation: keras.Operation) -> bool:
    return type(operation).__name__.endswith(("Norm", "Normalization", "Add"))


def _check_depth(calls: Calls, call_index: int, batch: int | None) -> None:
    """Refuse a map early in a network whose later layers work on tokens without a certain grid.

    Raises:
        ModelError: fewer than half of the layers with a kernel precede the map.
    """
    later = calls.outputs[call_index + 1 :]
    kernels = [i for i, operation in enumerate(calls.operations) if _has_kernel(operation)]
    is_early = 2 * sum(i <= call_index for i in kernels) < len(kernels)
    if not is_early or calls.tokens is None:
        return
    counts = {int(x.shape[1]) for x in later if calls.tokens.is_tokens(x, batch)}
    if counts:
        path = calls.paths[call_index]
        raise ModelError(
            f"heatmap layer auto: after {path!r}, an early layer, the network works on "
            f"{max(counts)} tokens of which it is not certain where in the image each is; set "
            f"layer: {path} to explain that layer, or remove heatmap for this model"
        )


def _has_kernel(operation: keras.Operation) -> bool:
    is_attention = "attention" in type(operation).__name__.lower()
    return is_attention or getattr(operation, "kernel", None) is not None


def is_feature_map(tensor: tf.Tensor) -> bool:
    """Return whether the shape is (batch, height, width, channels) with more than one position."""
    shape = tensor.shape
    return bool(shape.rank == 4 and shape[1] * shape[2] > 1)


def is_passthrough(operation: keras.Operation) -> bool:
    """Return whether `layer: auto` skips the output: pooling, dropout, padding, reshaping."""
    if isinstance(operation, _PASSTHROUGH):
        return True
    return type(operation).__name__ in _PASSTHROUGH_OPERATIONS


def depends(score: tf.Tensor, tensor: tf.Tensor) -> bool:
    """Return whether the score has a gradient with respect to the tensor, in the traced graph."""
    return tf.gradients(score, tensor)[0] is not None


def heatmaps(
    calls: Calls,
    scores: tf.Tensor,  # (B, C)
    classes: tf.Tensor,  # (B, K) int32
    call_index: int,
) -> tf.Tensor:  # (B, K, h, w) float32 in 0..1
    """Return the Grad-CAM map of each requested class, divided by its maximum.

    Args:
        calls: recorded in the graph that computed `scores`.
        scores: probabilities or logits; they are differentiated.
        classes: ids of the classes to explain in each image.
        call_index: the call whose output (B, h, w, c), or whose tokens, are the feature map.

    Returns:
        Maps with maximum 1; a map without a positive value is all 0.
    """
    features = calls.outputs[call_index]
    pooled = _pooled(calls, scores, features)
    maps = []
    for k in range(classes.shape[1]):
        gradient = _gradient(scores, classes[:, k], features, pooled)
        maps.append(_class_map(calls.as_map(features), calls.as_map(gradient)))
    return tf.stack(maps, axis=1)


def _pooled(calls: Calls, scores: tf.Tensor, features: tf.Tensor) -> tf.Tensor | None:
    """Return the globally averaged map if the scores depend on the map only through it."""
    for i, operation in enumerate(calls.operations):
        is_pooling = isinstance(operation, keras.layers.GlobalAveragePooling2D)
        if is_pooling and calls.inputs[i][0] is features:
            pooled = calls.outputs[i]
            other_path = tf.gradients(scores, features, stop_gradients=[pooled])[0]
            return pooled if other_path is None else None
    return None


def _gradient(
    scores: tf.Tensor,  # (B, C)
    class_id: tf.Tensor,  # (B,)
    features: tf.Tensor,  # (B, h, w, c), or tokens (B, N, c)
    pooled: tf.Tensor | None,  # (B, c) or (B, 1, 1, c)
) -> tf.Tensor:  # as `features`, or (B, 1, 1, c): that of every position
    """Return the gradient of each image's class score."""
    # Images of a batch are independent, so the gradient of the sum is the gradient of each score.
    # The product with the one-hot class replaces a gather, whose gradient would be a scatter.
    total = tf.reduce_sum(scores * tf.one_hot(class_id, scores.shape[1], dtype=scores.dtype))
    if pooled is None:
        return tf.gradients(total, features)[0]
    positions = features.shape[1] * features.shape[2]
    gradient = tf.gradients(total, pooled)[0] / positions
    return tf.reshape(gradient, (features.shape[0], 1, 1, features.shape[3]))


def _class_map(
    features: tf.Tensor,  # (B, h, w, c)
    gradient: tf.Tensor,  # (B, h, w, c) or (B, 1, 1, c)
) -> tf.Tensor:  # (B, h, w)
    """Return relu of the sum of the channels, weighted by mean gradient, divided by its maximum."""
    weights = tf.reduce_mean(gradient, axis=(1, 2))
    batch, height, width, channels = features.shape
    columns = tf.reshape(tf.cast(features, tf.float32), (batch, height * width, channels))
    weights = tf.cast(weights, tf.float32)[:, :, None] / channels
    maps = tf.nn.relu(tf.reshape(tf.matmul(columns, weights), (batch, height, width)))
    peak = tf.reduce_max(maps, axis=(1, 2), keepdims=True)
    return maps / tf.where(peak > 0, peak, tf.ones_like(peak))
