"""Losses per image, (B,) float32; the loss of an image depends on that image only.

All losses start from logits, since a score that was rounded to 0 has no gradient. They are computed
in float32. Losses over the cells of an image are sums, not means, as in the papers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cvbatch.core.errors import ConfigError
from cvbatch.core.types import VOID_CLASS
from cvbatch.models.frameworks import keras, layers, ops

Tensor = Any  # a tensor of Keras' backend; Keras carries no type information
_SMALLEST = 1e-7


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


@dataclass(frozen=True)
class ClassLoss:
    """Loss of class scores: cross-entropy or focal loss, with weights and smoothed labels.

    Weights multiply terms; no divisor depends on them. So an image that shows only a class of small
    weight has a small loss, and a step is the same however its images are split.

    Args:
        gamma: exponent of the focal loss; 0: cross-entropy.
        label_smoothing: s: the target of the true class is 1 − s + s / C, of the others s / C;
            independent labels are moved to s / 2 and 1 − s / 2.
        class_weights: factor of the loss by true class, or by class for independent labels; None:
            1 for all.

    Source:
        Lin et al., Focal Loss for Dense Object Detection, 2017; the definitions with smoothed
        labels are those of keras.losses.
    """

    gamma: float = 0.0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def check(self, num_classes: int) -> None:
        """Raise ConfigError unless there is one weight per class, none negative."""
        weights = self.class_weights
        if weights is not None and (len(weights) != num_classes or min(weights) < 0):
            raise ConfigError(
                f"class_weights {list(weights)}: there must be one for each of {num_classes} "
                "classes, none negative"
            )

    def of_class(
        self,
        logits: Tensor,  # (..., C)
        class_id: Tensor,  # (...) int
    ) -> Tensor:  # (...)
        """Return the loss of exclusive classes."""
        if self.gamma or self.label_smoothing:
            terms = self._smoothed(ops.cast(logits, "float32"), ops.cast(class_id, "int32"))
        else:
            terms = class_cross_entropy(logits, class_id)
        if self.class_weights is None:
            return terms
        return terms * ops.take(self.weights, ops.cast(class_id, "int32"), axis=0)

    def _smoothed(self, logits: Tensor, class_id: Tensor) -> Tensor:
        num_classes, smoothing = logits.shape[-1], self.label_smoothing
        target = ops.one_hot(class_id, num_classes) * (1 - smoothing) + smoothing / num_classes
        log_p = ops.log_softmax(logits, axis=-1)
        return -ops.sum(target * self._focus(-ops.expm1(log_p)) * log_p, axis=-1)

    def of_labels(
        self,
        logits: Tensor,  # (B, C)
        labels: Tensor,  # (B, C) 0 or 1
    ) -> Tensor:  # (B,)
        """Return the loss of independent labels, averaged over the classes."""
        logits, labels = ops.cast(logits, "float32"), ops.cast(labels, "float32")
        labels = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
        terms = ops.binary_crossentropy(labels, logits, from_logits=True)
        if self.gamma:
            p = ops.sigmoid(logits)
            terms *= self._focus(labels * (1 - p) + (1 - labels) * p)
        if self.class_weights is not None:
            terms *= self.weights
        return ops.mean(terms, axis=-1)

    def of_pixels(
        self,
        logits: Tensor,  # (B, h, w, C)
        mask: Tensor,  # (B, h, w) uint8
    ) -> Tensor:  # (B,)
        """Return the loss of exclusive classes, averaged over the pixels except `VOID_CLASS`.

        The loss is 0 if all pixels are void.
        """
        mask = ops.cast(mask, "int32")
        is_labelled = mask != VOID_CLASS
        labelled = ops.cast(is_labelled, "float32")
        terms = self.of_class(logits, ops.where(is_labelled, mask, 0)) * labelled
        return ops.sum(terms, axis=(1, 2)) / ops.maximum(ops.sum(labelled, axis=(1, 2)), 1.0)

    def _focus(self, error: Tensor) -> Tensor:
        """Return error ** gamma; its gradient at an error of 0 would be infinite for gamma < 1."""
        return ops.power(ops.maximum(error, _SMALLEST), self.gamma) if self.gamma else 1.0

    @property
    def weights(self) -> Tensor:  # (C,)
        """Return the class weights as a tensor."""
        return ops.convert_to_tensor(self.class_weights, "float32")


def dice_loss(
    logits: Tensor,  # (B, h, w, C)
    mask: Tensor,  # (B, h, w) uint8
) -> Tensor:  # (B,)
    """Return 1 − 2 Σ p·t / Σ (p + t), averaged over the classes in an image's mask.

    p is softmax(logits) and t the one-hot mask; the sums are over the pixels except `VOID_CLASS`.
    So a class of few pixels counts as much as one of many. The loss is 0 if all pixels are void.

    Source:
        Milletari et al., V-Net, 2016; the terms are those of keras.losses.dice.
    """
    mask = ops.cast(mask, "int32")
    is_labelled = mask != VOID_CLASS
    labelled = ops.cast(is_labelled, "float32")[..., None]
    truth = ops.one_hot(ops.where(is_labelled, mask, 0), logits.shape[-1]) * labelled
    scores = ops.softmax(ops.cast(logits, "float32"), axis=-1) * labelled
    terms = keras.losses.dice(truth, scores, axis=(1, 2))  # (B, C)
    occurs = ops.cast(ops.any(truth > 0, axis=(1, 2)), "float32")
    return ops.sum(terms * occurs, axis=-1) / ops.maximum(ops.sum(occurs, axis=-1), 1.0)


_CROSS_ENTROPY = ClassLoss()


def box_error(
    predicted: Tensor,  # (B, ..., 4)
    target: Tensor,  # (B, ..., 4)
) -> Tensor:  # (B, ...)
    """Return the mean squared error of the four numbers of a box."""
    return ops.mean(ops.square(ops.cast(predicted, "float32") - target), axis=-1)


def window_losses(
    outputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    class_loss: ClassLoss = _CROSS_ENTROPY,
) -> dict[str, Tensor]:  # each (B,)
    """Return "objectness", "classes" and "box", each summed over the windows of an image.

    Objectness is a binary cross-entropy over all windows that are not `targets.IGNORED`; the class
    cross-entropy and the `box_error` are over windows with an object.

    Args:
        outputs: logits "classes" (B, gh, gw, C) and "objectness" (B, gh, gw, 1), and "box"
            (B, gh, gw, 4).
        targets: of `targets.window_targets`.
        class_loss: of the class scores.
    """
    objectness = ops.cast(targets["objectness"], "float32")
    is_object = ops.maximum(objectness, 0.0)
    is_counted = ops.cast(objectness >= 0, "float32")
    logit = ops.cast(outputs["objectness"], "float32")[..., 0]
    classes = class_loss.of_class(outputs["classes"], targets["class_id"])
    objects = ops.binary_crossentropy(is_object, logit, from_logits=True) * is_counted
    return {
        "objectness": _sum_per_image(objects),
        "classes": _sum_per_image(classes * is_object),
        "box": _sum_per_image(box_error(outputs["box"], targets["box"]) * is_object),
    }


def grid_losses(
    raw: Tensor,  # (B, gh, gw, A·5 + C)
    targets: Mapping[str, Tensor],
    decode: layers.Layer,
    ignore_iou: float,
    class_loss: ClassLoss = _CROSS_ENTROPY,
) -> dict[str, Tensor]:  # each (B,)
    """Return "coordinates", "objectness", "no_object" and "classes", each summed over an image.

    coordinates: squared errors of sigmoid(t) against the offsets and of the log sides, of anchors
    with a box. objectness: −log sigmoid(to) of anchors with a box; the target is 1, not the IoU, so
    that a score is the confidence, not the quality of the box. no_object: −log(1 − sigmoid(to)) of
    the other anchors, except those with a predicted box that overlaps a true box by more than
    `ignore_iou`. classes: cross-entropy of each cell with a box, with the weights of `class_loss`;
    the anchors of a cell share it.

    Args:
        raw: raw outputs of the network.
        targets: of `targets.grid_targets`.
        decode: the network's `GridDecode` layer.
        ignore_iou: IoU, 0 to 1.
        class_loss: has the weights of the classes.

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
    if class_loss.class_weights is not None:
        log_scores *= class_loss.weights
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


def _sum_per_image(values: Tensor) -> Tensor:  # (B, ...) → (B,)
    return ops.sum(values, axis=tuple(range(1, len(values.shape))))
