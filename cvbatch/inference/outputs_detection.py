"""Outputs of the serving graph for detection: boxes and scores; imports TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvbatch.config.models import DetectionConfig, LocalizationConfig
from cvbatch.inference.activation import with_activation
from cvbatch.inference.detector_decoding import PADDING_SCORE
from cvbatch.inference.detector_formats import DETECTORS
from cvbatch.inference.forward_pass import ForwardPass, Tensors
from cvbatch.inference.outputs_masks import check_masks, mask_tensors
from cvbatch.models.frameworks import tf
from cvbatch.models.outputs import output_mismatch


def count_classes(config: DetectionConfig, outputs: Mapping[str, Any]) -> int | None:
    """Return the number of classes; None if the outputs are class ids.

    Raises:
        ModelError: boxes and scores, or the masks of the job, have other shapes.
    """
    count = None
    if "class_ids" not in outputs:
        count = count_checked_classes(
            config, outputs, {"boxes": 3, "scores": 3}, "boxes (B, N, 4) and scores (B, N, classes)"
        )
    check_masks(config, outputs)
    return count


def compute(forward: ForwardPass) -> Tensors:
    """Return boxes and scores, and the tensors of their masks.

    Returns:
        boxes (B, N, 4), scores (B, N, C), or scores (B, N) and class_ids (B, N); masks as
        `mask_tensors`.
    """
    boxes = _boxes(forward)
    if forward.config.masks is None:
        return boxes
    return boxes | mask_tensors(forward.config, forward.outputs, forward.mask_values)


def _boxes(forward: ForwardPass) -> Tensors:
    """Return boxes and scores; the scores of classes that do not count are −1."""
    outputs = forward.outputs
    if "class_ids" in outputs:
        return {name: outputs[name] for name in ("boxes", "scores", "class_ids")}
    scores = with_activation(outputs["scores"], forward.activation)
    if DETECTORS[forward.config.detector].has_best_class_only:
        is_best = tf.one_hot(tf.argmax(scores, axis=-1), scores.shape[-1], True, False)
        scores = tf.where(is_best, scores, PADDING_SCORE)
    return {"boxes": outputs["boxes"], "scores": scores}


def raw_scores(config: DetectionConfig, outputs: Mapping[str, Any]) -> Any:
    """Return the scores (B, N, C) of the boxes, as the network gives them.

    Without padding; C is 1 for boxes with class ids.
    """
    if "class_ids" in outputs:
        return tf.maximum(outputs["scores"], 0)[..., None]
    return outputs["scores"]


def detector_scores(outputs: Mapping[str, Any], num_classes: int) -> Any:  # (B, N, C)
    """Return a score for each class; of boxes with class ids it is 0 for all other classes."""
    if "class_ids" not in outputs:
        return outputs["scores"]
    scores = tf.maximum(outputs["scores"], 0)[..., None]
    return scores * tf.one_hot(outputs["class_ids"], num_classes, dtype=scores.dtype)


def count_checked_classes(
    config: DetectionConfig | LocalizationConfig,
    outputs: Mapping[str, Any],
    ranks: Mapping[str, int],  # names of boxes and scores, in this order → number of dimensions
    expected: str,
) -> int:
    """Return the number of classes. Raises ModelError if boxes or scores have other shapes."""
    if all(name in outputs and len(outputs[name].shape) == n for name, n in ranks.items()):
        boxes, scores = (outputs[name].shape for name in ranks)
        if boxes[-1] == 4 and boxes[:-1] == scores[:-1]:
            return int(scores[-1])
    raise output_mismatch(config.task, f"the outputs {expected}", outputs)
