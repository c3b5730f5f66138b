"""Masks of boxes in the serving graph, as numbers above 0 inside of objects; imports TensorFlow.

A network has `masks` (B, N, h, w), with classes (B, N, C, h, w) or (B, N, h, w, C), over the box or
over the whole input; or `coefficients` (B, N, P) or (B, P, N) of `prototypes` (B, h, w, P) or
(B, P, h, w), whose weighted sum is the logit of a mask (YOLACT, YOLO-seg).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cvbatch.config.models import DetectionConfig
from cvbatch.core.errors import ModelError
from cvbatch.inference.forward_pass import MaskValues
from cvbatch.inference.instance_masks import OUTSIDE
from cvbatch.models.frameworks import tf
from cvbatch.models.outputs import output_mismatch

MASK_OUTPUTS = ("masks", "coefficients", "prototypes")
_BOX_NUMBERS = 4
_EXPECTED = "masks (B, N, h, w), or of every class (B, N, classes, h, w),"
_EXPECTED_PROTOTYPES = "coefficients (B, N, P) and prototypes (B, h, w, P)"


class _Axes(NamedTuple):
    """Axes of `masks`, or of `coefficients` and `prototypes`, in the order that is used."""

    first: tuple[int, ...]
    second: tuple[int, ...] = ()


def separate(outputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the outputs of a detector without those of masks, and those of masks by name.

    A YOLO-seg has a table (B, 4 + C + P, N) or (B, N, 4 + C + P) and P prototypes: the last P
    numbers of a box are its coefficients.

    Args:
        outputs: of the network, tensors of TensorFlow or of Keras.
    """
    masks = {name: outputs[name] for name in MASK_OUTPUTS if name in outputs}
    others = {name: tensor for name, tensor in outputs.items() if name not in masks}
    if masks or sorted(len(tensor.shape) for tensor in outputs.values()) != [3, 4]:
        return others, masks
    (name, table), (_, maps) = sorted(outputs.items(), key=lambda item: len(item[1].shape))
    count = min(maps.shape[1], maps.shape[3])  # there are fewer prototypes than cells of a side
    is_rows = table.shape[1] < table.shape[2]  # as in `detector_decoding.yolo_v8`
    columns = table.shape[1] if is_rows else table.shape[2]
    if columns <= _BOX_NUMBERS + count:
        return others, masks
    cut = columns - count
    boxes = table[:, 0:cut] if is_rows else table[..., 0:cut]
    coefficients = table[:, cut:columns] if is_rows else table[..., cut:columns]
    return {name: boxes}, {"coefficients": coefficients, "prototypes": maps}


def check_masks(config: DetectionConfig, outputs: Mapping[str, Any]) -> None:
    """Check the shapes of the outputs that the job's `masks` needs.

    Args:
        config: of the model.
        outputs: by name, `boxes` (B, N, 4) and `scores` among them.

    Raises:
        ModelError: they are missing, or their axes are not clear.
    """
    if config.masks is not None:
        _axes(config, outputs)


def mask_tensors(
    config: DetectionConfig, outputs: Mapping[str, Any], values: MaskValues
) -> dict[str, Any]:
    """Return what `cvbatch.inference.instance_masks` reads, above 0 inside of objects.

    Logits of the whole image are interpolated as they are, and those of boxes as probabilities, as
    in the networks that have such masks.

    Returns:
        masks (B, N, h, w) or (B, N, C, h, w); or coefficients (B, N, P), prototypes (B, h, w, P).
    """
    axes = _axes(config, outputs)
    if config.masks == "prototypes":
        return {
            "coefficients": _transposed(outputs["coefficients"], axes.first),
            "prototypes": _transposed(outputs["prototypes"], axes.second),
        }
    masks = tf.cast(_transposed(outputs["masks"], axes.first), tf.float32)
    if len(masks.shape) == 5 and masks.shape[2] == 1:
        masks = tf.squeeze(masks, 2)
    if values == "logits" and config.masks == "box":
        masks = tf.sigmoid(masks)
    is_shifted = values == "probabilities" or config.masks == "box"
    return {"masks": masks + OUTSIDE if is_shifted else masks}


def _transposed(tensor: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    return tensor if axes == tuple(range(len(axes))) else tf.transpose(tensor, axes)


def _axes(config: DetectionConfig, outputs: Mapping[str, Any]) -> _Axes:
    num_boxes = outputs["boxes"].shape[1]
    # boxes with class ids do not tell the number of classes
    num_classes = 1 if "class_ids" in outputs else outputs["scores"].shape[2]
    if config.masks == "prototypes":
        return _prototype_axes(config, outputs, num_boxes)
    shape = tuple(outputs["masks"].shape) if "masks" in outputs else ()
    if len(shape) == 4 and shape[1] == num_boxes:
        return _Axes((0, 1, 2, 3))
    if len(shape) == 5 and shape[1] == num_boxes:
        allowed = {1, num_classes}
        orders = [
            axes
            for at, axes in ((2, (0, 1, 2, 3, 4)), (4, (0, 1, 4, 2, 3)))
            if shape[at] in allowed
        ]
        return _Axes(_only(config, "masks", shape, orders, "the classes"))
    expected = f"for masks: {config.masks} the outputs boxes, scores and {_EXPECTED}"
    raise output_mismatch(config.task, f"{expected} with one mask for each box", outputs)


def _prototype_axes(config: DetectionConfig, outputs: Mapping[str, Any], num_boxes: int) -> _Axes:
    shapes = [tuple(outputs[n].shape) for n in ("coefficients", "prototypes") if n in outputs]
    if [len(shape) for shape in shapes] == [3, 4]:
        weights, maps = shapes
        fitting = [
            axes
            for axes in ((0, 1, 2), (0, 2, 1))
            if weights[axes[1]] == num_boxes and weights[axes[2]] in (maps[1], maps[3])
        ]
        if fitting:
            first = _only(config, "coefficients", weights, fitting, "the boxes")
            count = weights[first[2]]
            possible = ((3, (0, 1, 2, 3)), (1, (0, 2, 3, 1)))
            orders = [axes for at, axes in possible if maps[at] == count]
            return _Axes(first, _only(config, "prototypes", maps, orders, "the prototypes"))
    expected = f"for masks: prototypes the outputs boxes, scores, {_EXPECTED_PROTOTYPES}"
    raise output_mismatch(config.task, expected, outputs)


def _only(
    config: DetectionConfig,
    name: str,
    shape: tuple[int, ...],
    orders: Sequence[tuple[int, ...]],
    meaning: str,
) -> tuple[int, ...]:
    if len(orders) == 1:
        return orders[0]
    problem = "may be two of its axes" if orders else "are none of its axes"
    raise ModelError(
        f"model {config.model!r}: the output {name} has the shape {shape}, and {meaning} {problem}"
        "; transpose it in the network, so that its axes differ and are in the documented order"
    )
