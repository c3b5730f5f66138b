"""Class scores that Grad-CAM explains, by task.

For a classifier they are the scores of the image. For a segmenter they are those of a region, for a
detector those of one box per class. The region or the boxes are the "focus", a second input of the
graph beside the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cvbatch.config.explain import ExplainJob
from cvbatch.core.errors import ModelError
from cvbatch.core.tasks import Task
from cvbatch.explain.region_scores import box_scores, find_deep_map, region_scores
from cvbatch.explain.spec import NetworkFacts
from cvbatch.geometry.boxes import iou, to_xyxy
from cvbatch.geometry.resize import Placement, boxes_to_input
from cvbatch.inference.activation import (
    class_logits,
    logits_and_probabilities,
    with_activation,
)
from cvbatch.inference.forward_pass import Tensors
from cvbatch.inference.gradcam import Calls, find_feature_map
from cvbatch.inference.outputs_classification import scores_output
from cvbatch.inference.outputs_detection import detector_scores
from cvbatch.inference.outputs_localization import single_box
from cvbatch.inference.outputs_segmentation import maps_output, num_ids
from cvbatch.models.frameworks import tf

Scores = tuple[tf.Tensor, tf.Tensor]  # (B, C) scores to explain, (B, C) scores that rank classes
Focus = tuple[np.ndarray | None, np.ndarray | None]  # input of the graph; (B, C, 4) its boxes
RunNetwork = Callable[[], Tensors]  # returns the network's outputs for the batch


class ClassScores(NamedTuple):
    """Functions that define the explained scores of a task.

    Attributes:
        scores: function of (job, facts, outputs by name, focus) that returns Scores, inside the
            graph.
        find_map: function of (calls, scores, layer) that returns the index of the call whose output
            is the feature map to explain.
        focus_spec: function of (job, facts) that returns shape and dtype of one image's focus; None
            if the scores of the whole image are explained.
        focus: function of (job, facts, placements, run) that returns the focus of a batch and, for
            a detector, the boxes in pixels of the input.
    """

    scores: Callable[[ExplainJob, NetworkFacts, Tensors, tf.Tensor | None], Scores]
    find_map: Callable[[Calls, tf.Tensor, str], int]
    focus_spec: Callable[[ExplainJob, NetworkFacts], tf.TensorSpec | None] = lambda *_: None
    focus: Callable[..., Focus] = lambda *_: (None, None)


# ---------------------------------------------------------------- classification, localization


def _label_scores(
    job: ExplainJob, facts: NetworkFacts, outputs: Tensors, focus: tf.Tensor | None
) -> Scores:
    config: Any = job.model
    return _image_scores(job, facts, scores_output(config, outputs), config.multi_label)


def _localized_scores(
    job: ExplainJob, facts: NetworkFacts, outputs: Tensors, focus: tf.Tensor | None
) -> Scores:
    return _image_scores(job, facts, single_box(outputs)["scores"], False)


def _image_scores(
    job: ExplainJob,
    facts: NetworkFacts,
    raw: tf.Tensor,  # (B, units)
    is_multi_label: bool,
) -> Scores:
    gradcam: Any = job.gradcam
    logits, probabilities = logits_and_probabilities(raw, is_multi_label, facts.activation)
    return logits if gradcam.score == "logit" else probabilities, probabilities


# ---------------------------------------------------------------- segmentation


def _region_scores(
    job: ExplainJob, facts: NetworkFacts, outputs: Tensors, focus: tf.Tensor | None
) -> Scores:
    config: Any = job.model.model_copy(update={"classes": list(facts.classes)})
    maps = maps_output(config, outputs)
    if num_ids(config, maps):
        raise ModelError(
            f"model {config.model!r} returns class ids, which have no gradient; explain the "
            "network without its arg-max"
        )
    logits = class_logits(maps, facts.activation, is_multi_label=False)
    if maps.shape[3] == 1:  # one unit is the positive class of two
        logits = tf.concat([-logits, logits], axis=3)
    return region_scores(logits, focus)


def _region_spec(job: ExplainJob, facts: NetworkFacts) -> tf.TensorSpec | None:
    has_box = job.gradcam is not None and job.gradcam.box is not None
    return tf.TensorSpec(facts.image_size, tf.float32) if has_box else None


def _region_focus(
    job: ExplainJob, facts: NetworkFacts, placements: Sequence[Placement], run: RunNetwork
) -> Focus:  # (B, H, W) float32, None
    if job.gradcam is None or job.gradcam.box is None:
        return None, None
    regions = [_box_mask(_box_in_input(job, p), facts.image_size) for p in placements]
    return np.stack(regions), None


def _box_mask(
    box: np.ndarray,  # (4,) pixels of the input
    image_size: tuple[int, int],
) -> np.ndarray:  # (H, W) float32
    """Return 1 for pixels whose centre is in the box, 0 for other pixels."""
    rows, columns = (np.arange(side) + 0.5 for side in image_size)
    is_row = (rows >= box[1]) & (rows < box[3])
    is_column = (columns >= box[0]) & (columns < box[2])
    return np.outer(is_row, is_column).astype(np.float32)


def _box_in_input(job: ExplainJob, placement: Placement) -> np.ndarray:  # (4,) pixels of the input
    """Map gradcam.box, which is in fractions of the original, to the input."""
    gradcam: Any = job.gradcam
    sides = np.array([placement.width, placement.height] * 2, np.float64)
    box: np.ndarray = boxes_to_input(np.array([gradcam.box]) * sides, placement)[0]
    return box


# ---------------------------------------------------------------- detection


def _box_scores(
    job: ExplainJob, facts: NetworkFacts, outputs: Tensors, focus: tf.Tensor | None
) -> Scores:
    candidates = detector_scores(outputs, len(facts.classes))
    scores = box_scores(with_activation(candidates, facts.activation), focus)
    return scores, scores


def _box_spec(job: ExplainJob, facts: NetworkFacts) -> tf.TensorSpec | None:
    return tf.TensorSpec((len(facts.classes),), tf.int32)


def _box_focus(
    job: ExplainJob, facts: NetworkFacts, placements: Sequence[Placement], run: RunNetwork
) -> Focus:  # (B, C) int32, (B, C, 4) pixels of the input
    """Select for every class the candidate box whose score is explained.

    It is the candidate with the best score of the class or, if gradcam.box is set, the candidate
    with the largest IoU with that box.
    """
    config: Any = job.model
    outputs = run()
    xyxy = to_xyxy(outputs["boxes"].numpy(), config.box_format, *facts.image_size)
    candidates = detector_scores(outputs, len(facts.classes))
    scores = with_activation(candidates, facts.activation)
    selected = scores.numpy().argmax(axis=1)
    if job.gradcam is not None and job.gradcam.box:
        for row, placement in enumerate(placements):
            selected[row] = iou(xyxy[row], _box_in_input(job, placement)[None])[:, 0].argmax()
    rows = np.arange(len(selected))[:, None]
    return selected.astype(np.int32), xyxy[rows, selected]


CLASS_SCORES: dict[Task, ClassScores] = {
    "classification": ClassScores(_label_scores, find_feature_map),
    "segmentation": ClassScores(_region_scores, find_deep_map, _region_spec, _region_focus),
    "detection": ClassScores(_box_scores, find_deep_map, _box_spec, _box_focus),
    "localization": ClassScores(_localized_scores, find_feature_map),
}
