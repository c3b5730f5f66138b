"""Grad-CAM inside the graph of the forward pass, so that heatmaps cost next to nothing.

The backbone runs once for the batch; only the head, from the chosen feature map to the class
score, is gone through backwards. Where the head begins with global average pooling, the
gradient at every position of the map is the pooled one over the number of positions, so the
pooling is never differentiated (for pooling and one Dense this is the closed form: CAM weights).

Source: Selvaraju et al., Grad-CAM, 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from cvbatch.core.errors import ModelError
from cvbatch.core.suggestions import nearest

# These pass a feature map on without being one: `auto` looks behind them.
_PASSING = (
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
# The same as bare operations, whose classes Keras keeps to itself.
_PASSING_OPERATIONS = {"AveragePool", "Cast", "Flip", "MaxPool", "Pad", "Reshape", "Transpose"}


@dataclass
class Calls:
    """What each step of a model received and returned while its graph was traced, in order."""

    path: list[str] = field(default_factory=list)
    step: list[keras.Operation] = field(default_factory=list)
    received: list[list[tf.Tensor]] = field(default_factory=list)
    returned: list[tf.Tensor] = field(default_factory=list)


def leaf_steps(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.Operation]]:
    """Yield every layer that holds no others, and every bare operation, with its path.

    A path is outer/inner/layer. A sum may be a layer (`Add`) or an operation (`x + y`): both
    may be the map that Grad-CAM is after.
    """
    for step in getattr(model, "operations", model.layers):
        path = f"{prefix}{step.name}"
        if getattr(step, "layers", None):
            yield from leaf_steps(step, f"{path}/")
        else:
            yield path, step


@contextmanager
def record_calls(model: keras.Model) -> Iterator[Calls]:
    """Record every leaf step's calls inside the block; models may nest, be Sequential or not."""
    calls = Calls()
    patched = []
    for path, step in leaf_steps(model):
        if "call" not in vars(step):
            step.call = _recording(path, step, calls)
            patched.append(step)
    try:
        yield calls
    finally:
        for step in patched:
            del step.call


def _recording(path: str, step: keras.Operation, calls: Calls) -> Callable[..., Any]:
    original = step.call

    def call(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if tf.is_tensor(result):
            calls.path.append(path)
            calls.step.append(step)
            calls.received.append([x for x in tf.nest.flatten(args) if tf.is_tensor(x)])
            calls.returned.append(result)
        return result

    return call


def check_layer(model: keras.Model, layer: str) -> None:
    """Refuse a layer name or path that the model does not have.

    Raises:
        ModelError: with the nearest known path.
    """
    known = [path for path, _ in leaf_steps(model)]
    if layer == "auto" or matches(known, layer):
        return
    near = nearest(layer, known, likeness=0.3)
    hint = f"; the nearest is {near[0]!r}" if near else ""
    raise ModelError(f"heatmap layer {layer!r} is not in model {model.name!r}{hint}; or say auto")


def matches(known: list[str], layer: str) -> list[str]:
    """Return the paths a name means: the path itself, or any that ends in it."""
    return [path for path in known if path == layer or path.endswith("/" + layer)]


def find_feature_map(
    calls: Calls,
    score: tf.Tensor,  # (B, ...)
    layer: str,
) -> int:
    """Return which call's output is the feature map that `layer` names.

    "auto" is the last map with more than one position that the score depends on, looking
    behind pooling, dropout and padding.

    Raises:
        ModelError: there is no such map.
    """
    wanted = set(matches(calls.path, layer))
    for i in reversed(range(len(calls.path))):
        is_meant = not is_passing(calls.step[i]) if layer == "auto" else calls.path[i] in wanted
        tensor = calls.returned[i]
        if is_meant and has_positions(tensor) and _depends(score, tensor):
            return i
    if layer == "auto":
        raise ModelError(
            "heatmap layer auto: no layer before the class scores has a feature map with height "
            "and width; leave heatmap out for this model"
        )
    raise ModelError(
        f"heatmap layer {layer!r} gives no map (batch, height, width, channels) that the class "
        "scores depend on; name a convolution, or say auto"
    )


def has_positions(tensor: tf.Tensor) -> bool:
    """Say whether it is a map (batch, height, width, channels) of more than one position."""
    shape = tensor.shape
    return bool(shape.rank == 4 and shape[1] * shape[2] > 1)


def is_passing(step: keras.Operation) -> bool:
    """Say whether a step passes a feature map on without being one."""
    return isinstance(step, _PASSING) or type(step).__name__ in _PASSING_OPERATIONS


def _depends(score: tf.Tensor, tensor: tf.Tensor) -> bool:
    return tf.gradients(score, tensor)[0] is not None


def heatmaps(
    calls: Calls,
    scores: tf.Tensor,  # (B, C): what is differentiated: probabilities or logits
    classes: tf.Tensor,  # (B, K) int32: the classes asked for
    at: int,  # the call whose output is the feature map
) -> tf.Tensor:  # (B, K, h, w)
    """Return Grad-CAM maps in 0..1, each divided by its maximum; all 0 where none is positive."""
    features = calls.returned[at]
    pooled = _pooled(calls, scores, features)
    maps = [
        _weighted(features, _channel_weights(scores, classes[:, k], features, pooled))
        for k in range(classes.shape[1])
    ]
    return tf.stack(maps, axis=1)


def _pooled(calls: Calls, scores: tf.Tensor, features: tf.Tensor) -> tf.Tensor | None:
    """Return the pooled map where the scores see the map through its global average alone."""
    for i, step in enumerate(calls.step):
        is_pooling = isinstance(step, keras.layers.GlobalAveragePooling2D)
        if is_pooling and calls.received[i][0] is features:
            pooled = calls.returned[i]
            past_it = tf.gradients(scores, features, stop_gradients=[pooled])[0]
            return pooled if past_it is None else None
    return None


def _channel_weights(
    scores: tf.Tensor,  # (B, C)
    class_id: tf.Tensor,  # (B,)
    features: tf.Tensor,  # (B, h, w, c)
    pooled: tf.Tensor | None,  # (B, c) or (B, 1, 1, c)
) -> tf.Tensor:  # (B, c)
    """Return the gradient of each image's class score, averaged over height and width."""
    # Images of a batch do not meet in the network, so one gradient of the sum serves them all.
    # A product with the one-hot class, and not a gather: a gather's gradient is a scatter.
    chosen = tf.reduce_sum(scores * tf.one_hot(class_id, scores.shape[1], dtype=scores.dtype))
    if pooled is None:
        return tf.reduce_mean(tf.gradients(chosen, features)[0], axis=(1, 2))
    positions = features.shape[1] * features.shape[2]
    gradient = tf.gradients(chosen, pooled)[0] / positions
    return tf.reshape(gradient, (features.shape[0], features.shape[3]))


def _weighted(
    features: tf.Tensor,  # (B, h, w, c)
    weights: tf.Tensor,  # (B, c)
) -> tf.Tensor:  # (B, h, w)
    batch, height, width, channels = features.shape
    columns = tf.reshape(tf.cast(features, tf.float32), (batch, height * width, channels))
    weights = tf.cast(weights, tf.float32)[:, :, None] / channels
    maps = tf.nn.relu(tf.reshape(tf.matmul(columns, weights), (batch, height, width)))
    peak = tf.reduce_max(maps, axis=(1, 2), keepdims=True)
    return maps / tf.where(peak > 0, peak, tf.ones_like(peak))
