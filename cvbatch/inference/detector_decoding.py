"""Decode the outputs of detectors to boxes and scores; imports Keras.

Every function takes the outputs by role, tensors of TensorFlow or of Keras, and returns
`boxes` (B, N, 4) and either `scores` (B, N, C), or `scores` (B, N) with `class_ids` (B, N) int32 of
boxes that need no more suppression. A score of −1 marks padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvbatch.config.models import AnchorsConfig, DetectionConfig
from cvbatch.core.errors import ModelError
from cvbatch.geometry.anchor_grids import pyramid_anchors
from cvbatch.models.box_decoding import decode_deltas
from cvbatch.models.frameworks import ops

Tensors = Mapping[str, Any]  # tensors by role or name; TensorFlow and Keras are untyped
Size = tuple[int, int]  # height and width of the network's input in pixels

PADDING_SCORE = -1.0


def boxes_scores(outputs: Tensors, config: DetectionConfig, size: Size) -> dict[str, Any]:
    """Return the outputs themselves; scores (B, N) are those of one class."""
    scores = outputs["scores"]
    one_class = len(scores.shape) == 2
    scores = ops.expand_dims(scores, -1) if one_class else scores
    return {"boxes": outputs["boxes"], "scores": scores}


def suppressed(outputs: Tensors, config: DetectionConfig, size: Size) -> dict[str, Any]:
    """Mark padding: scores that are not positive, and boxes after the first `count` (B,)."""
    scores = ops.cast(outputs["scores"], "float32")
    is_box = scores > 0
    if "count" in outputs:
        count = ops.cast(ops.reshape(outputs["count"], (-1, 1)), "int32")
        position = ops.arange(scores.shape[1], dtype="int32")
        is_box = ops.logical_and(is_box, ops.less(ops.expand_dims(position, 0), count))
    return {
        "boxes": outputs["boxes"],
        "scores": ops.where(is_box, scores, PADDING_SCORE),
        # half a class up, because class ids may be floats
        "class_ids": ops.cast(ops.floor(ops.cast(outputs["classes"], "float32") + 0.5), "int32"),
    }


def tf_detection(outputs: Tensors, config: DetectionConfig, size: Size) -> dict[str, Any]:
    """Return `suppressed` boxes; the first class id is 1."""
    return suppressed({**outputs, "classes": outputs["classes"] - 1}, config, size)


def yolo_v8(outputs: Tensors, config: DetectionConfig, size: Size) -> dict[str, Any]:
    """Split (B, 4 + C, N) or (B, N, 4 + C) into boxes and scores."""
    table = outputs["table"]
    if table.shape[1] < table.shape[2]:
        table = ops.transpose(table, (0, 2, 1))
    return {"boxes": table[..., 0:4], "scores": table[..., 4:]}


def yolo_v5(outputs: Tensors, config: DetectionConfig, size: Size) -> dict[str, Any]:
    """Split (B, N, 5 + C): a score is objectness × class score."""
    table = outputs["table"]
    return {"boxes": table[..., 0:4], "scores": table[..., 4:5] * table[..., 5:]}


def yolo_end_to_end(outputs: Tensors, config: DetectionConfig, size: Size) -> dict[str, Any]:
    """Split (B, N, 6): four corners, score, class id."""
    table = outputs["table"]
    columns = {"boxes": table[..., 0:4], "scores": table[..., 4], "classes": table[..., 5]}
    return suppressed(columns, config, size)


def detr(outputs: Tensors, config: DetectionConfig, size: Size) -> dict[str, Any]:
    """Apply a softmax to the logits (B, N, C + 1) and remove the last class, no object."""
    scores = ops.softmax(ops.cast(outputs["scores"], "float32"), axis=-1)
    return {"boxes": outputs["boxes"], "scores": scores[..., 0 : scores.shape[-1] - 1]}


def rt_detr(outputs: Tensors, config: DetectionConfig, size: Size) -> dict[str, Any]:
    """Apply a sigmoid to the logits (B, N, C)."""
    return {"boxes": outputs["boxes"], "scores": ops.sigmoid(outputs["scores"])}


def retinanet(outputs: Tensors, config: DetectionConfig, size: Size) -> dict[str, Any]:
    """Add the deltas (B, N, 4) to anchors; a sigmoid makes logits (B, N, C) scores.

    Raises:
        ModelError: the number of anchors is not N.
    """
    settings = config.anchors or AnchorsConfig()
    anchors = pyramid_anchors(*size, **settings.model_dump(exclude={"clip"}))
    deltas = ops.cast(outputs["boxes"], "float32")
    if len(anchors) != deltas.shape[1]:
        raise ModelError(
            f"model {config.model!r} has {deltas.shape[1]:,} boxes, but its input of "
            f"{size[0]} x {size[1]} pixels has {len(anchors):,} anchors; set anchors: "
            "{min_level, max_level, num_scales, aspect_ratios, anchor_size} to those that it was "
            "trained with"
        )
    boxes = decode_deltas(deltas, anchors)
    if settings.clip:
        limits = ops.cast([size[1], size[0], size[1], size[0]], "float32")
        boxes = ops.minimum(ops.maximum(boxes, 0), limits)
    return {"boxes": boxes, "scores": ops.sigmoid(outputs["scores"])}


def to_xyxy(boxes: Any, box_format: str, size: Size) -> Any:  # (B, N, 4) → (B, N, 4) float32
    """Convert boxes to xyxy in pixels; the formats are those that a row of DETECTORS implies."""
    boxes = ops.cast(boxes, "float32")
    name = box_format.removeprefix("rel_")
    if name == "yxyx":
        boxes = ops.take(boxes, [1, 0, 3, 2], axis=-1)
    elif name == "center_xywh":
        half = boxes[..., 2:4] / 2
        boxes = ops.concatenate([boxes[..., 0:2] - half, boxes[..., 0:2] + half], axis=-1)
    if box_format != name:
        boxes = boxes * ops.cast([size[1], size[0], size[1], size[0]], "float32")
    return boxes
