"""Class scores that Grad-CAM explains, by task.

A classifier scores the whole image. Of a segmenter a region of the image is explained, of a
detector one box of each class: this focus is an input of the graph beside the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from cvbatch.config.explain import ExplainJob
from cvbatch.core.tasks import Task
from cvbatch.explain.region_scores import box_scores, find_deep_map, region_scores
from cvbatch.explain.spec import NetworkFacts
from cvbatch.geometry.boxes import iou, to_xyxy
from cvbatch.geometry.resize import Placement, boxes_to_input
from cvbatch.inference.gradcam import Calls, find_feature_map
from cvbatch.inference.graph_outputs import (
    Tensors,
    before_activation,
    logits_and_probabilities,
    maps_output,
    scores_output,
    single_box,
)

Scores = tuple[tf.Tensor, tf.Tensor]  # (B, C) explained, (B, C) by which classes are ranked
Focus = tuple[np.ndarray | None, np.ndarray | None]  # input of the graph; (B, C, 4) its boxes
Candidates = Callable[[], Tensors]  # runs the network: its outputs for the batch


class ClassScores(NamedTuple):
    """How the scores of a task are explained.

    Args:
        scores: function of (job, outputs by name, focus), inside the graph.
        find_map: function of (calls, scores, layer) that returns which feature map is explained.
        focus_spec: function of (job, facts) that returns shape and type of one image's focus; None
            where the whole image is explained.
        focus: function of (job, facts, placements, candidates) that returns the focus of a batch
            and, if it is boxes, these in pixels of the input.
    """

    scores: Callable[[ExplainJob, Tensors, tf.Tensor | None], Scores]
    find_map: Callable[[Calls, tf.Tensor, str], int]
    focus_spec: Callable[[ExplainJob, NetworkFacts], tf.TensorSpec | None] = lambda *_: None
    focus: Callable[..., Focus] = lambda *_: (None, None)


# ---------------------------------------------------------------- classification, localization


def _label_scores(job: ExplainJob, outputs: Tensors, focus: tf.Tensor | None) -> Scores:
    config: Any = job.model
    return _image_scores(job, scores_output(config, outputs), config.multi_label)


def _localized_scores(job: ExplainJob, outputs: Tensors, focus: tf.Tensor | None) -> Scores:
    return _image_scores(job, single_box(outputs)["scores"], False)


def _image_scores(
    job: ExplainJob,
    raw: tf.Tensor,  # (B, units)
    is_multi_label: bool,
) -> Scores:
    gradcam: Any = job.gradcam
    logits, probabilities = logits_and_probabilities(raw, is_multi_label)
    return logits if gradcam.score == "logit" else probabilities, probabilities


# ---------------------------------------------------------------- segmentation


def _region_scores(job: ExplainJob, outputs: Tensors, focus: tf.Tensor | None) -> Scores:
    config: Any = job.model
    maps = maps_output(config, outputs)
    logits, _ = before_activation(maps)
    if maps.shape[3] == 1:  # one unit is two classes
        logits = tf.concat([-logits, logits], axis=3)
    return region_scores(logits, focus)


def _region_spec(job: ExplainJob, facts: NetworkFacts) -> tf.TensorSpec | None:
    has_box = job.gradcam is not None and job.gradcam.box is not None
    return tf.TensorSpec(facts.image_size, tf.float32) if has_box else None


def _region_focus(
    job: ExplainJob, facts: NetworkFacts, placements: Sequence[Placement], run: Candidates
) -> Focus:
    if job.gradcam is None or job.gradcam.box is None:
        return None, None
    regions = [_region(_box_in_input(job, one), facts.image_size) for one in placements]
    return np.stack(regions), None


def _region(
    box: np.ndarray,  # (4,) pixels of the input
    image_size: tuple[int, int],
) -> np.ndarray:  # (H, W) float32
    """Return 1 for the pixels with their centre in a box, 0 for the others."""
    rows, columns = (np.arange(side) + 0.5 for side in image_size)
    is_row = (rows >= box[1]) & (rows < box[3])
    is_column = (columns >= box[0]) & (columns < box[2])
    return np.outer(is_row, is_column).astype(np.float32)


def _box_in_input(job: ExplainJob, placement: Placement) -> np.ndarray:  # (4,) pixels of the input
    """Return the job's box, which is in fractions of the original."""
    gradcam: Any = job.gradcam
    sides = np.array([placement.width, placement.height] * 2, np.float64)
    box: np.ndarray = boxes_to_input(np.array([gradcam.box]) * sides, placement)[0]
    return box


# ---------------------------------------------------------------- detection


def _box_scores(job: ExplainJob, outputs: Tensors, focus: tf.Tensor | None) -> Scores:
    scores = box_scores(outputs["scores"], focus)
    return scores, scores


def _box_spec(job: ExplainJob, facts: NetworkFacts) -> tf.TensorSpec | None:
    return tf.TensorSpec((len(facts.classes),), tf.int32)


def _box_focus(
    job: ExplainJob, facts: NetworkFacts, placements: Sequence[Placement], run: Candidates
) -> Focus:  # (B, C) int32, (B, C, 4) pixels of the input
    """Return for every class the candidate whose score is explained, and its box.

    That is the best of the class; where the job has a box, the candidate that overlaps it most.
    """
    config: Any = job.model
    outputs = run()
    xyxy = to_xyxy(outputs["boxes"].numpy(), config.box_format, *facts.image_size)
    chosen = outputs["scores"].numpy().argmax(axis=1)
    if job.gradcam is not None and job.gradcam.box:
        for row, placement in enumerate(placements):
            chosen[row] = iou(xyxy[row], _box_in_input(job, placement)[None])[:, 0].argmax()
    rows = np.arange(len(chosen))[:, None]
    return chosen.astype(np.int32), xyxy[rows, chosen]


CLASS_SCORES: dict[Task, ClassScores] = {
    "classification": ClassScores(_label_scores, find_feature_map),
    "segmentation": ClassScores(_region_scores, find_deep_map, _region_spec, _region_focus),
    "detection": ClassScores(_box_scores, find_deep_map, _box_spec, _box_focus),
    "localization": ClassScores(_localized_scores, find_feature_map),
}
