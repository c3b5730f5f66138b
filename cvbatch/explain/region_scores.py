"""Class scores of a part of an image, so that Grad-CAM can say why of segmenters and detectors.

A segmenter's score of a class is the sum of its logits over a region, a detector's the score of one
box: both are (B, classes), as a classifier's are, and go the same way from there.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from cvbatch.core.errors import ModelError
from cvbatch.explain.layer_selection import CONVOLUTIONS
from cvbatch.inference.gradcam import Calls, is_feature_map, is_passthrough, matching_paths

_READERS = (*CONVOLUTIONS, keras.layers.Dense)  # they make of a feature map something else


def region_scores(
    logits: tf.Tensor,  # (B, h, w, C)
    region: tf.Tensor | None,  # (B, H, W) 0 or 1; None: where each class is the predicted one
) -> tuple[tf.Tensor, tf.Tensor]:  # (B, C), (B, C)
    """Return every class's logits summed over the region, and the pixels it is predicted on there.

    Without a region each class has its own: the pixels it is predicted on.
    """
    logits = tf.cast(logits, tf.float32)
    predicted = tf.one_hot(tf.argmax(logits, axis=-1), logits.shape[-1])
    if region is None:
        weights = predicted
    else:
        inside = tf.image.resize(region[..., None], logits.shape[1:3], "nearest")
        predicted = predicted * inside
        weights = tf.ones_like(predicted) * inside
    return tf.reduce_sum(logits * weights, (1, 2)), tf.reduce_sum(predicted, (1, 2))


def box_scores(
    scores: tf.Tensor,  # (B, N, C)
    chosen: tf.Tensor,  # (B, C) int32: of each class the candidate that is explained
) -> tf.Tensor:  # (B, C)
    """Return of every class the score of the candidate chosen for it."""
    # A product with the one-hot candidate, and not a gather, as in Grad-CAM's own scores.
    is_chosen = tf.one_hot(chosen, scores.shape[1], axis=1, dtype=scores.dtype)  # (B, N, C)
    return tf.reduce_sum(scores * is_chosen, axis=1)


def find_deep_map(
    calls: Calls,
    score: tf.Tensor,  # (B, C)
    layer: str,
) -> int:
    """Return which call's output is the feature map that `layer` names.

    "auto" is the last of the smallest maps that a convolution or a Dense layer still reads on the
    way to the score: a segmenter's bottleneck, what a detector's head reads.

    Raises:
        ModelError: there is no such map.
    """
    gradients = tf.gradients(score, calls.outputs)
    seen = [i for i, gradient in enumerate(gradients) if gradient is not None]
    maps = [i for i in seen if is_feature_map(calls.outputs[i])]
    if layer != "auto":
        named = set(matching_paths(calls.paths, layer))
        maps = [i for i in maps if calls.paths[i] in named]
        if not maps:
            raise ModelError(
                f"gradcam.layer {layer!r} gives no map (batch, height, width, channels) that the "
                "scores depend on; name a convolution, or say auto"
            )
        return maps[-1]
    maps = [i for i in maps if not is_passthrough(calls.operations[i])]
    head = max((i for i in seen if isinstance(calls.operations[i], _READERS)), default=0)
    maps = [i for i in maps if i < head] or maps
    if not maps:
        raise ModelError(
            "gradcam.layer auto: no layer before the scores has a feature map with height and "
            "width; leave gradcam out for this model"
        )
    smallest = min(_positions(calls, i) for i in maps)
    return max(i for i in maps if _positions(calls, i) == smallest)


def _positions(calls: Calls, at: int) -> int:
    shape = calls.outputs[at].shape
    return int(shape[1] * shape[2])
