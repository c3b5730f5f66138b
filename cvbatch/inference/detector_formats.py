"""Output formats of detectors: table of how each is recognised and decoded; imports Keras.

A row works on outputs by name and needs no Keras model, so that it serves a network of any origin.
`resolve` chooses the row of a job once; `adapt` then applies it wherever the network is traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from cvbatch.config.models import DetectionConfig, LocalizationConfig
from cvbatch.core.errors import ModelError
from cvbatch.inference import detector_decoding as decoding
from cvbatch.inference.detector_decoding import Size, Tensors
from cvbatch.inference.outputs_masks import separate
from cvbatch.models.outputs import describe, output_mismatch

Roles = dict[str, Any]  # tensors by role: boxes, scores, classes, count, or one table

_PYRAMIDS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))  # strides of YOLO's levels
_MAX_END_TO_END = 1000  # boxes of an end-to-end head; ultralytics has 300


class Detector(NamedTuple):
    """One format of a detector's outputs.

    Attributes:
        expected: the outputs, for messages.
        select: function of the outputs by name that returns them by role; None if they do not fit.
        decode: function of (outputs by role, config, input size); see `detector_decoding`.
        recognise: function of (outputs by name, input size): whether `auto` chooses this row.
        box_format: of the boxes, where the job has the default; None: always that of the job.
        activation: that `decode` applies to logits; "" if it expects probabilities.
        applies_jobs_activation: whether the job's `activation` may be applied to the scores.
        has_best_class_only: a box counts for its most probable class only.
    """

    expected: str
    select: Callable[[Tensors], Roles | None]
    decode: Callable[[Tensors, DetectionConfig, Size], Roles]
    recognise: Callable[[Tensors, Size], bool]
    box_format: str | None = None
    activation: str = ""
    applies_jobs_activation: bool = False
    has_best_class_only: bool = False


# ---------------------------------------------------------------- outputs by role

_NAMES = {  # names of outputs that have a role
    "boxes": ("boxes", "pred_boxes", "bbox_regression", "detection_boxes", "dets"),
    "scores": (
        *("scores", "confidence", "logits", "pred_logits", "cls_logits", "detection_scores"),
        "labels",  # of RF-DETR's ONNX files: logits (B, N, C)
    ),
    "classes": ("classes", "labels", "class_ids", "detection_classes"),
    "count": ("num_detections", "num_dets"),
}


def _dense(outputs: Tensors) -> Roles | None:
    """Return boxes (B, N, 4) with scores (B, N, C) or (B, N), by name or else by shape."""
    boxes, scores = _named(outputs, "boxes", 3), _named(outputs, "scores", 3, 2)
    if boxes is None or scores is None:
        corners = _corners(outputs)
        others = [t for t in outputs.values() if len(t.shape) in (2, 3)]
        others = [tensor for tensor in others if not any(tensor is box for box in corners)]
        if len(corners) != 1 or len(others) != 1:
            return None
        boxes, scores = corners[0], others[0]
    fits = boxes.shape[-1] == 4 and boxes.shape[1] == scores.shape[1]
    return {"boxes": boxes, "scores": scores} if fits else None


def _listed(outputs: Tensors) -> Roles | None:
    """Return boxes (B, N, 4), scores (B, N) and class ids (B, N), by name or else by data type."""
    boxes, scores = _named(outputs, "boxes", 3), _named(outputs, "scores", 2)
    classes = _named(outputs, "classes", 2)
    if boxes is None or scores is None or classes is None:
        corners = _corners(outputs)
        columns = sorted(
            (tensor for tensor in outputs.values() if len(tensor.shape) == 2),
            key=lambda tensor: "int" in str(tensor.dtype),
        )
        kinds = ["int" in str(tensor.dtype) for tensor in columns]
        if len(corners) != 1 or kinds != [False, True]:
            return None
        boxes, (scores, classes) = corners[0], columns
    named_counts = [outputs[name] for name in _NAMES["count"] if name in outputs]
    counts = {"count": named_counts[0]} if named_counts else {}
    fits = boxes.shape[-1] == 4
    return {"boxes": boxes, "scores": scores, "classes": classes, **counts} if fits else None


def _corners(outputs: Tensors) -> list[Any]:
    """Return the outputs of shape (B, N, 4)."""
    return [t for t in outputs.values() if len(t.shape) == 3 and t.shape[-1] == 4]


def _named(outputs: Tensors, role: str, *ranks: int) -> Any:
    """Return the output of a role that has so many dimensions; None without one."""
    named = [outputs[name] for name in _NAMES[role] if name in outputs]
    fitting = (t for rank in ranks for t in named if len(t.shape) == rank)
    return next(fitting, None)


def _table(outputs: Tensors) -> Roles | None:
    """Return the only output of three dimensions."""
    tables = [tensor for tensor in outputs.values() if len(tensor.shape) == 3]
    return {"table": tables[0]} if len(tables) == 1 else None


# ---------------------------------------------------------------- recognition


def _has_names(*names: str) -> Callable[[Tensors, Size], bool]:
    return lambda outputs, size: all(name in outputs for name in names)


def _is_boxes_scores(outputs: Tensors, size: Size) -> bool:
    """Boxes and scores by their names, or without names, by their shapes."""
    if "boxes" in outputs and "scores" in outputs:
        return len(outputs["scores"].shape) == 3 or _listed(outputs) is None
    return _are_unnamed(outputs) and len(outputs) == 2 and _dense(outputs) is not None


def _is_suppressed(outputs: Tensors, size: Size) -> bool:
    is_named = "boxes" in outputs and any(name in outputs for name in _NAMES["classes"])
    is_listed = (is_named or _are_unnamed(outputs)) and _listed(outputs) is not None
    return is_listed and not _is_boxes_scores(outputs, size)


def _are_unnamed(outputs: Tensors) -> bool:
    return all(name.startswith("output") for name in outputs)


def _is_detr(outputs: Tensors, size: Size) -> bool:
    """A DETR with a class "no object" has no encoder that proposes queries by their logits."""
    has_proposals = "enc_topk_logits" in outputs
    return "pred_boxes" in outputs and "logits" in outputs and not has_proposals


def _is_yolo_v8(outputs: Tensors, size: Size) -> bool:
    rows, columns = _sides(outputs)
    return min(rows, columns) > 4 and max(rows, columns) in _num_cells(size)


def _is_yolo_v5(outputs: Tensors, size: Size) -> bool:
    rows, columns = _sides(outputs)
    cells = _num_cells(size)
    return 5 < columns < rows and (rows in cells or rows in {3 * count for count in cells})


def _is_yolo_end_to_end(outputs: Tensors, size: Size) -> bool:
    rows, columns = _sides(outputs)
    return columns == 6 and rows <= _MAX_END_TO_END and rows not in _num_cells(size)


def _sides(outputs: Tensors) -> tuple[int, int]:
    """Return rows and columns of the only output, if it is a table; else (0, 0)."""
    roles = _table(outputs) if len(outputs) == 1 else None
    if roles is None:
        return 0, 0
    rows, columns = roles["table"].shape[1:]
    return int(rows or 0), int(columns or 0)


def _num_cells(size: Size) -> set[int]:
    """Return the numbers of cells that YOLO's pyramids have for an input."""
    return {
        sum(math.prod(-(-side // stride) for side in size) for stride in strides)
        for strides in _PYRAMIDS
    }


# ---------------------------------------------------------------- the table

DETECTORS: dict[str, Detector] = {
    "boxes_scores": Detector(
        "boxes (B, N, 4) and scores (B, N, classes)",
        _dense,
        decoding.boxes_scores,
        _is_boxes_scores,
        applies_jobs_activation=True,
    ),
    "suppressed": Detector(
        "boxes (B, N, 4), confidence (B, N) and classes (B, N)",
        _listed,
        decoding.suppressed,
        _is_suppressed,
    ),
    "tf_detection": Detector(
        "detection_boxes (B, N, 4), detection_scores (B, N) and detection_classes (B, N)",
        _listed,
        decoding.tf_detection,
        _has_names("detection_boxes", "detection_scores", "detection_classes"),
        box_format="rel_yxyx",
    ),
    "retinanet": Detector(
        "bbox_regression (B, N, 4) and cls_logits (B, N, classes)",
        _dense,
        decoding.retinanet,
        _has_names("bbox_regression", "cls_logits"),
        box_format="xyxy",
        activation="sigmoid",
    ),
    "yolo_v8": Detector(
        "one output (B, 4 + classes, N)",
        _table,
        decoding.yolo_v8,
        _is_yolo_v8,
        box_format="center_xywh",
        applies_jobs_activation=True,
        has_best_class_only=True,
    ),
    "yolo_v5": Detector(
        "one output (B, N, 5 + classes)",
        _table,
        decoding.yolo_v5,
        _is_yolo_v5,
        box_format="center_xywh",
        has_best_class_only=True,
    ),
    "yolo_end_to_end": Detector(
        "one output (B, N, 6)",
        _table,
        decoding.yolo_end_to_end,
        _is_yolo_end_to_end,
        box_format="xyxy",
    ),
    "detr": Detector(
        "pred_boxes (B, N, 4) and logits (B, N, classes + 1)",
        _dense,
        decoding.detr,
        _is_detr,
        box_format="rel_center_xywh",
        activation="softmax",
    ),
    "rt_detr": Detector(
        "pred_boxes (B, N, 4) and logits (B, N, classes)",
        _dense,
        decoding.rt_detr,
        _has_names("pred_boxes", "logits"),
        box_format="rel_center_xywh",
        activation="sigmoid",
    ),
}


def resolve(
    config: DetectionConfig, outputs: Tensors, size: Size, num_names: int | None = None
) -> DetectionConfig:
    """Return the config with the row of its detector instead of `auto`.

    Args:
        outputs: of the network by name; only names, shapes and data types are used.
        size: height and width of the network's input in pixels.
        num_names: number of class names, if there are any; it decides where several rows fit.

    Raises:
        ModelError: no row or several rows fit, the outputs are not those of the job's detector, or
            the detector excludes a key of the job.
    """
    outputs, _ = separate(outputs)
    name: Any = config.detector
    if name == "auto":
        name = _recognise(config, outputs, size, num_names)
    detector = DETECTORS[name]
    if detector.select(outputs) is None:
        raise output_mismatch(f"detection with detector {name}", detector.expected, outputs)
    _check_keys(config, name, detector)
    return config.model_copy(update={"detector": name})


def decode(config: DetectionConfig, outputs: Tensors, size: Size) -> Roles:
    """Return boxes, in the format `box_format_of`, and scores of a network's outputs.

    Args:
        config: resolved.
        outputs: of the network by name: TensorFlow or Keras tensors.
        size: height and width of the network's input in pixels.

    Returns:
        `boxes` (B, N, 4) and `scores` (B, N, C), or `scores` (B, N), −1 for padding, and
        `class_ids` (B, N) int32.

    Raises:
        ModelError: the outputs are not those of the detector.
    """
    outputs, _ = separate(outputs)
    detector = DETECTORS[config.detector]
    roles = detector.select(outputs)
    if roles is None:
        raise output_mismatch("detection", detector.expected, outputs)
    return detector.decode(roles, config, size)


def box_format_of(config: DetectionConfig | LocalizationConfig) -> str:
    """Return the key of BOX_FORMATS that the boxes of a network have."""
    if isinstance(config, DetectionConfig) and config.box_format == "xyxy":
        return DETECTORS[config.detector].box_format or "xyxy"
    return config.box_format


def adapt(config: DetectionConfig, outputs: Tensors, size: Size) -> Roles:
    """Return the outputs of `decode` with boxes in the job's box format, and those of masks.

    Args:
        config: resolved; or `auto`, where class names do not decide.
    """
    if config.detector == "auto":
        config = resolve(config, outputs, size)
    decoded = decode(config, outputs, size) | separate(outputs)[1]
    box_format = box_format_of(config)
    if box_format == config.box_format:
        return decoded
    return {**decoded, "boxes": decoding.to_xyxy(decoded["boxes"], box_format, size)}


def logits_of(config: DetectionConfig, outputs: Tensors) -> Any:
    """Return the tensor to which the detector applies its activation; None if it applies none."""
    detector = DETECTORS[config.detector]
    outputs, _ = separate(outputs)
    return (detector.select(outputs) or {}).get("scores") if detector.activation else None


def _recognise(config: DetectionConfig, outputs: Tensors, size: Size, num_names: int | None) -> str:
    names = [name for name, row in DETECTORS.items() if row.recognise(outputs, size)]
    if len(names) > 1 and num_names is not None:
        names = [n for n in names if _num_classes(config, n, outputs, size) == num_names] or names
    if len(names) == 1:
        return names[0]
    if not names:
        expected = (
            f"the outputs {DETECTORS['boxes_scores'].expected}, or those of another detector "
            f"({', '.join(list(DETECTORS)[1:])}: set detector to it)"
        )
        raise output_mismatch(config.task, expected, outputs)
    choices = " or ".join(f"{name} ({DETECTORS[name].expected})" for name in names)
    raise ModelError(
        f"model {config.model!r}: its outputs {describe(outputs)} may be those of {choices}; set "
        "detector to one of them, or classes to the names of its classes"
    )


def _num_classes(config: DetectionConfig, name: str, outputs: Tensors, size: Size) -> int | None:
    """Return the number of classes if the outputs are those of a row; None if it is not known."""
    decoded = decode(config.model_copy(update={"detector": name}), outputs, size)
    return None if "class_ids" in decoded else int(decoded["scores"].shape[-1])


def _check_keys(config: DetectionConfig, name: str, detector: Detector) -> None:
    """Raise ModelError if the job sets a key that its detector excludes."""
    allowed = ("auto",) if detector.activation else ("auto", "none")
    if config.anchors is not None and name != "retinanet":
        key, reason = "anchors", "has no anchors that a job can set"
    elif config.box_format != "xyxy" and name == "retinanet":
        key, reason = "box_format", "computes its boxes from anchors, in pixels"
    elif config.activation not in allowed and not detector.applies_jobs_activation:
        applied = detector.activation or "none, because its scores are probabilities"
        key, reason = "activation", f"has its own: {applied}"
    else:
        return
    raise ModelError(f"model {config.model!r}: detector {name} {reason}; remove {key}")
