"""What an error costs, image by image: every loss is (B,), and no image's depends on another's.

Networks are taken before their last softmax or sigmoid, since a score that was rounded to 0 has
lost its gradient. All is reckoned in float32, and sums over an image's cells are sums, not
means, as in the papers: a crowded image has more to learn from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import layers, ops

from cvbatch.core.types import VOID_CLASS

Tensor = Any  # a tensor of Keras' backend; Keras carries no type information


def class_cross_entropy(
    logits: Tensor,  # (B, ..., C)
    class_id: Tensor,  # (B, ...) int
) -> Tensor:  # (B, ...)
    """Return −log softmax(logits)[class_id]."""
    logits, class_id = ops.cast(logits, "float32"), ops.cast(class_id, "int32")
    return ops.sparse_categorical_crossentropy(class_id, logits, from_logits=True)


def as_two_classes(logits: Tensor) -> Tensor:  # (B, ..., C); (B, ..., 1) → (B, ..., 2)
    """Return logits of which a softmax is [1 − sigmoid, sigmoid] where there is one unit."""
    if logits.shape[-1] != 1:
        return logits
    return ops.concatenate([ops.zeros_like(logits), logits], axis=-1)


def label_cross_entropy(
    logits: Tensor,  # (B, C)
    holds: Tensor,  # (B, C) 0 or 1
) -> Tensor:  # (B,)
    """Return the binary cross-entropy of each class, averaged over the classes."""
    return ops.mean(_binary(ops.cast(logits, "float32"), ops.cast(holds, "float32")), axis=-1)


def pixel_cross_entropy(
    logits: Tensor,  # (B, h, w, C)
    mask: Tensor,  # (B, h, w) uint8
    class_weights: np.ndarray,  # (C,) float32
) -> Tensor:  # (B,)
    """Return the cross-entropy of the pixels, averaged over those that are not `VOID_CLASS`.

    Each pixel's is multiplied by the weight of its class, the number of pixels is not: so a class
    of little weight counts little in an image that shows nothing else. 0 where all are void.
    """
    mask = ops.cast(mask, "int32")
    is_counted = mask != VOID_CLASS
    class_id = ops.where(is_counted, mask, 0)
    weight = ops.take(ops.convert_to_tensor(class_weights, "float32"), class_id, axis=0)
    counted = ops.cast(is_counted, "float32")
    cost = class_cross_entropy(logits, class_id) * weight * counted
    return ops.sum(cost, axis=(1, 2)) / ops.maximum(ops.sum(counted, axis=(1, 2)), 1.0)


def box_error(
    said: Tensor,  # (B, ..., 4)
    wanted: Tensor,  # (B, ..., 4)
) -> Tensor:  # (B, ...)
    """Return the mean squared difference of the four numbers of a box."""
    return ops.mean(ops.square(ops.cast(said, "float32") - wanted), axis=-1)


def window_losses(
    outputs: Mapping[
        str, Tensor
    ],  # "classes" (B, gh, gw, C), "objectness" (…, 1), both logits; "box"
    targets: Mapping[str, Tensor],  # of `targets.window_targets`
) -> dict[str, Tensor]:  # each (B,)
    """Return "objectness", "classes" and "box", each a sum over the windows of an image.

    Objectness is a binary cross-entropy wherever it is asked; the cross-entropy of the classes
    and the `box_error` count where there is an object.
    """
    objectness = ops.cast(targets["objectness"], "float32")
    is_object, is_asked = ops.maximum(objectness, 0.0), ops.cast(objectness >= 0, "float32")
    logit = ops.cast(outputs["objectness"], "float32")[..., 0]
    return {
        "objectness": _summed(_binary(logit, is_object) * is_asked),
        "classes": _summed(
            class_cross_entropy(outputs["classes"], targets["class_id"]) * is_object
        ),
        "box": _summed(box_error(outputs["box"], targets["box"]) * is_object),
    }


def grid_losses(
    raw: Tensor,  # (B, gh, gw, A·5 + C)
    targets: Mapping[str, Tensor],  # of `targets.grid_targets`
    decode: layers.Layer,  # the `GridDecode` that reads the raw numbers
    ignore_iou: float,
) -> dict[str, Tensor]:  # each (B,)
    """Return "coordinates", "objectness", "no_object" and "classes", each a sum over an image.

    coordinates: the squared errors of sigmoid(t) and the offset and of the log sides, for anchors
    with a box. objectness: −log sigmoid(to) for those: its target is 1, so that a score says how
    sure the network is; its IoU would say how well the box lies. no_object: −log(1 − sigmoid(to))
    for all others but those whose predicted box already overlaps any true one by more than
    ignore_iou. classes: the cross-entropy of each cell with a box, which its anchors share
    (Redmon et al., You Only Look Once, 2016, equation 3; Redmon and Farhadi, YOLO9000, 2017).
    """
    raw = ops.cast(raw, "float32")
    wanted = ops.cast(targets["numbers"], "float32")
    grid_h, grid_w, num_anchors = wanted.shape[1:4]
    said = ops.reshape(raw[..., : 5 * num_anchors], (-1, grid_h, grid_w, num_anchors, 5))
    is_box, logit = wanted[..., 4], said[..., 4]
    offset = ops.square(ops.sigmoid(said[..., 0:2]) - wanted[..., 0:2])
    sides = ops.square(said[..., 2:4] - wanted[..., 2:4])
    found = decode.call(raw)["boxes"]  # not called as a layer: that would round to half precision
    overlap = _best_overlap(found, ops.cast(targets["boxes"], "float32"))
    is_near = ops.cast(ops.reshape(overlap, ops.shape(is_box)) > ignore_iou, "float32")
    logs = ops.log_softmax(raw[..., 5 * num_anchors :], axis=-1)
    return {
        "coordinates": _summed(ops.sum(offset + sides, axis=-1) * is_box),
        "objectness": _summed(ops.softplus(-logit) * is_box),
        "no_object": _summed(ops.softplus(logit) * (1.0 - is_box) * (1.0 - is_near)),
        "classes": -_summed(ops.cast(targets["classes"], "float32") * logs),
    }


def _best_overlap(
    xyxy: Tensor,  # (B, N, 4)
    truth: Tensor,  # (B, M, 4), of no area where there is none
) -> Tensor:  # (B, N)
    """Return each box's largest IoU with a true one."""
    xyxy = ops.clip(xyxy, -1e6, 1e6)  # a side of exp(1e4) is infinite, and inf − inf no number
    a = [xyxy[:, :, None, k] for k in range(4)]
    b = [truth[:, None, :, k] for k in range(4)]
    width = ops.minimum(a[2], b[2]) - ops.maximum(a[0], b[0])
    height = ops.minimum(a[3], b[3]) - ops.maximum(a[1], b[1])
    shared = ops.maximum(width, 0.0) * ops.maximum(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return ops.max(shared / ops.maximum(union, 1e-6), axis=-1)


def _binary(logit: Tensor, truth: Tensor) -> Tensor:
    """Return the binary cross-entropy of sigmoid(logit) with a truth in 0..1."""
    return ops.softplus(logit) - logit * truth


def _summed(cost: Tensor) -> Tensor:  # (B, ...) → (B,)
    return ops.sum(cost, axis=tuple(range(1, len(cost.shape))))
