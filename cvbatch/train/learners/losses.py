"""Losses per image, (B,) float32; the loss of an image depends on that image only.

All losses start from logits, since a score that was rounded to 0 has no gradient. They are computed
in float32. Losses over the cells of an image are sums, not means, as in the papers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cvbatch.core.types import VOID_CLASS
from cvbatch.models.frameworks import layers, ops

Tensor = Any  # a tensor of Keras' backend; Keras carries no type information


def class_cross_entropy(
    logits: Tensor,  # (B, ..., C)
    class_id: Tensor,  # (B, ...) int
) -> Tensor:  # (B, ...)
    """Return −log softmax(logits)[class_id]."""
    logits, class_id = ops.cast(logits, "float32"), ops.cast(class_id, "int32")
    return ops.sparse_categorical_crossentropy(class_id, logits, from_logits=True)


def as_two_classes(logits: Tensor) -> Tensor:  # (B, ..., C); (B, ..., 1) → (B, ..., 2)
    """Return logits; of a single unit t those whose softmax is [1 − sigmoid(t), sigmoid(t)]."""
    if logits.shape[-1] != 1:
        return logits
    return ops.concatenate([ops.zeros_like(logits), logits], axis=-1)


def label_cross_entropy(
    logits: Tensor,  # (B, C)
    labels: Tensor,  # (B, C) 0 or 1
) -> Tensor:  # (B,)
    """Return the binary cross-entropy, averaged over the classes."""
    terms = _binary_cross_entropy(ops.cast(logits, "float32"), ops.cast(labels, "float32"))
    return ops.mean(terms, axis=-1)


def pixel_cross_entropy(
    logits: Tensor,  # (B, h, w, C)
    mask: Tensor,  # (B, h, w) uint8
    class_weights: np.ndarray,  # (C,) float32
) -> Tensor:  # (B,)
    """Return the weighted cross-entropy, averaged over the pixels that are not `VOID_CLASS`.

    The divisor is the number of pixels, not the sum of their weights: an image that shows only a
    class of small weight has a small loss. The loss is 0 if all pixels are void.
    """
    mask = ops.cast(mask, "int32")
    is_labelled = mask != VOID_CLASS
    class_id = ops.where(is_labelled, mask, 0)
    weight = ops.take(ops.convert_to_tensor(class_weights, "float32"), class_id, axis=0)
    labelled = ops.cast(is_labelled, "float32")
    terms = class_cross_entropy(logits, class_id) * weight * labelled
    return ops.sum(terms, axis=(1, 2)) / ops.maximum(ops.sum(labelled, axis=(1, 2)), 1.0)


def box_error(
    predicted: Tensor,  # (B, ..., 4)
    target: Tensor,  # (B, ..., 4)
) -> Tensor:  # (B, ...)
    """Return the mean squared error of the four numbers of a box."""
    return ops.mean(ops.square(ops.cast(predicted, "float32") - target), axis=-1)


def window_losses(
    outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> dict[str, Tensor]:  # each (B,)
    """Return "objectness", "classes" and "box", each summed over the windows of an image.

    Objectness is a binary cross-entropy over all windows that are not `targets.IGNORED`; the class
    cross-entropy and the `box_error` are over windows with an object.

    Args:
        outputs: logits "classes" (B, gh, gw, C) and "objectness" (B, gh, gw, 1), and "box"
            (B, gh, gw, 4).
        targets: of `targets.window_targets`.
    """
    objectness = ops.cast(targets["objectness"], "float32")
    is_object = ops.maximum(objectness, 0.0)
    is_counted = ops.cast(objectness >= 0, "float32")
    logit = ops.cast(outputs["objectness"], "float32")[..., 0]
    classes = class_cross_entropy(outputs["classes"], targets["class_id"])
    return {
        "objectness": _sum_per_image(_binary_cross_entropy(logit, is_object) * is_counted),
        "classes": _sum_per_image(classes * is_object),
        "box": _sum_per_image(box_error(outputs["box"], targets["box"]) * is_object),
    }


def grid_losses(
    raw: Tensor,  # (B, gh, gw, A·5 + C)
    targets: Mapping[str, Tensor],
    decode: layers.Layer,
    ignore_iou: float,
) -> dict[str, Tensor]:  # each (B,)
    """Return "coordinates", "objectness", "no_object" and "classes", each summed over an image.

    coordinates: squared errors of sigmoid(t) against the offsets and of the log sides, of anchors
    with a box. objectness: −log sigmoid(to) of anchors with a box; the target is 1, not the IoU, so
    that a score is the confidence, not the quality of the box. no_object: −log(1 − sigmoid(to)) of
    the other anchors, except those with a predicted box that overlaps a true box by more than
    `ignore_iou`. classes: cross-entropy of each cell with a box; the anchors of a cell share it.

    Args:
        raw: raw outputs of the network.
        targets: of `targets.grid_targets`.
        decode: the network's `GridDecode` layer.
        ignore_iou: IoU, 0 to 1.

    Source:
        Redmon et al., You Only Look Once, 2016, equation 3; Redmon and Farhadi, YOLO9000, 2017.
    """
    raw = ops.cast(raw, "float32")
    numbers = ops.cast(targets["numbers"], "float32")
    grid_h, grid_w, num_anchors = numbers.shape[1:4]
    anchors = ops.reshape(raw[..., : 5 * num_anchors], (-1, grid_h, grid_w, num_anchors, 5))
    has_box, logit = numbers[..., 4], anchors[..., 4]
    offset = ops.square(ops.sigmoid(anchors[..., 0:2]) - numbers[..., 0:2])
    sides = ops.square(anchors[..., 2:4] - numbers[..., 2:4])
    boxes = decode.call(raw)["boxes"]  # `decode(raw)` would compute in half precision
    iou = _best_iou(boxes, ops.cast(targets["boxes"], "float32"))
    is_near = ops.cast(ops.reshape(iou, ops.shape(has_box)) > ignore_iou, "float32")
    log_scores = ops.log_softmax(raw[..., 5 * num_anchors :], axis=-1)
    return {
        "coordinates": _sum_per_image(ops.sum(offset + sides, axis=-1) * has_box),
        "objectness": _sum_per_image(ops.softplus(-logit) * has_box),
        "no_object": _sum_per_image(ops.softplus(logit) * (1.0 - has_box) * (1.0 - is_near)),
        "classes": -_sum_per_image(ops.cast(targets["classes"], "float32") * log_scores),
    }


def _best_iou(
    xyxy: Tensor,  # (B, N, 4)
    true_xyxy: Tensor,  # (B, M, 4), padded with boxes without an area
) -> Tensor:  # (B, N)
    """Return each box's largest IoU with a true box."""
    xyxy = ops.clip(xyxy, -1e6, 1e6)  # a side of exp(1e4) is infinite, and inf − inf is NaN
    a = [xyxy[:, :, None, k] for k in range(4)]
    b = [true_xyxy[:, None, :, k] for k in range(4)]
    width = ops.minimum(a[2], b[2]) - ops.maximum(a[0], b[0])
    height = ops.minimum(a[3], b[3]) - ops.maximum(a[1], b[1])
    shared = ops.maximum(width, 0.0) * ops.maximum(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return ops.max(shared / ops.maximum(union, 1e-6), axis=-1)


def _binary_cross_entropy(logit: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross-entropy of sigmoid(logit) with a target in 0..1."""
    return ops.softplus(logit) - logit * target


def _sum_per_image(values: Tensor) -> Tensor:  # (B, ...) → (B,)
    return ops.sum(values, axis=tuple(range(1, len(values.shape))))
