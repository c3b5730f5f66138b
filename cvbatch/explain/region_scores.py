"""Class scores of a region or of a box of an image, for Grad-CAM of segmenters and detectors.

The score of a class is the sum of its logits over a region (segmenter), or its score at one
candidate box (detector). Both have the shape (B, classes) of a classifier's scores, so Grad-CAM is
the same for all tasks.
"""

from __future__ import annotations

from cvbatch.core.errors import ModelError
from cvbatch.explain.layer_selection import CONVOLUTIONS
from cvbatch.inference.gradcam import Calls, is_feature_map, is_passthrough, matching_paths
from cvbatch.models.frameworks import keras, tf

_WEIGHT_LAYERS = (*CONVOLUTIONS, keras.layers.Dense)


def region_scores(
    logits: tf.Tensor,  # (B, h, w, C)
    region: tf.Tensor | None,  # (B, H, W) 0 or 1
) -> tuple[tf.Tensor, tf.Tensor]:  # (B, C) float32, (B, C) float32
    """Sum the logits of every class over a region.

    Args:
        logits: class maps of the network.
        region: 1 inside the region. None: each class has its own region, the pixels where it is the
            predicted class.

    Returns:
        The sums, and the number of pixels in the region where each class is predicted.
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
    candidates: tf.Tensor,  # (B, C) int32
) -> tf.Tensor:  # (B, C)
    """Return the score of every class at the candidate box that was selected for the class."""
    # The product with the one-hot candidate replaces a gather, as in Grad-CAM.
    is_selected = tf.one_hot(candidates, scores.shape[1], axis=1, dtype=scores.dtype)  # (B, N, C)
    return tf.reduce_sum(scores * is_selected, axis=1)


def find_deep_map(
    calls: Calls,
    score: tf.Tensor,  # (B, C)
    layer: str,
) -> int:
    """Return the index of the call whose output is the feature map to explain.

    Args:
        calls: recorded in the graph that computed `score`.
        score: class scores.
        layer: name or path of a layer. "auto" is the last of the smallest feature maps that a
            convolution or Dense layer reads on the path to the score: the bottleneck of a
            segmenter, the input of a detector's head.

    Raises:
        ModelError: there is no such map.
    """
    gradients = tf.gradients(score, calls.outputs)
    on_path = [i for i, gradient in enumerate(gradients) if gradient is not None]
    maps = [i for i in on_path if is_feature_map(calls.outputs[i])]
    if layer != "auto":
        paths = set(matching_paths(calls.paths, layer))
        maps = [i for i in maps if calls.paths[i] in paths]
        if not maps:
            raise ModelError(
                f"gradcam.layer {layer!r} has no output (batch, height, width, channels) that the "
                "scores depend on; use the name of a convolution, or auto"
            )
        return maps[-1]
    maps = [i for i in maps if not is_passthrough(calls.operations[i])]
    head = max((i for i in on_path if isinstance(calls.operations[i], _WEIGHT_LAYERS)), default=0)
    maps = [i for i in maps if i < head] or maps
    if not maps:
        raise ModelError(
            "gradcam.layer auto: no layer before the scores has a feature map with height and "
            "width; remove gradcam for this model"
        )
    smallest = min(_num_positions(calls, i) for i in maps)
    return max(i for i in maps if _num_positions(calls, i) == smallest)


def _num_positions(calls: Calls, call_index: int) -> int:
    shape = calls.outputs[call_index].shape
    return int(shape[1] * shape[2])
