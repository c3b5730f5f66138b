"""Outputs of the serving graph for each task: number of classes, and tensors by name.

Imports TensorFlow: only processes that compile or inspect a network use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cvbatch.config.models import (
    Activation,
    ClassificationConfig,
    DetectionConfig,
    LocalizationConfig,
    SegmentationConfig,
)
from cvbatch.core.errors import ModelError
from cvbatch.core.tasks import Task
from cvbatch.core.types import MAX_MASK_CLASSES
from cvbatch.inference import gradcam
from cvbatch.inference.activation import (
    logits_and_probabilities,
    with_activation,
)
from cvbatch.models.frameworks import keras, tf
from cvbatch.models.outputs import output_mismatch, select_output

Tensors = dict[str, tf.Tensor]


@dataclass
class ForwardPass:
    """One model traced on a batch of B images.

    Attributes:
        config: the model's section of the job file.
        input_hw: height and width of the network's input in pixels.
        outputs: the network's outputs by name.
        calls: recorded calls of its layers.
        activation: still to be applied to the scores; never auto.
        heatmap_layer: path of the layer whose feature map is explained; set by the computation of
            heatmaps.
    """

    config: Any
    input_hw: tuple[int, int]
    outputs: Tensors
    calls: gradcam.Calls
    activation: Activation
    heatmap_layer: str = ""


# ---------------------------------------------------------------- classification


def scores_output(config: ClassificationConfig, outputs: Mapping[str, Any]) -> Any:
    """Return the output (B, units) of class scores. Raises ModelError if it is not unique."""
    expected = "one output of class scores (B, classes)"
    return select_output("classification", expected, outputs, config.output, 2)


def _count_labels(config: ClassificationConfig, outputs: Mapping[str, Any]) -> int:
    units = int(scores_output(config, outputs).shape[-1])
    return 2 if units == 1 and not config.multi_label else units


def _classify(forward: ForwardPass) -> Tensors:
    """Return scores (B, C), and with heatmaps: heatmaps (B, K, h, w), heatmap_classes (B, K)."""
    config = forward.config
    return _scores(forward, scores_output(config, forward.outputs), config.multi_label)


def _scores(
    forward: ForwardPass,
    raw: tf.Tensor,  # (B, units)
    is_multi_label: bool,
) -> Tensors:
    """Return the probability of every class and, if configured, heatmaps of the top classes."""
    heatmap = forward.config.heatmap
    logits, probabilities = logits_and_probabilities(raw, is_multi_label, forward.activation)
    if heatmap is None:
        return {"scores": probabilities}
    top_k = min(heatmap.top_k, probabilities.shape[1])
    classes = tf.math.top_k(probabilities, top_k).indices
    explained = logits if heatmap.score == "logit" else probabilities
    call_index = gradcam.find_feature_map(forward.calls, explained, heatmap.layer)
    forward.heatmap_layer = forward.calls.paths[call_index]
    return {
        "scores": probabilities,
        "heatmap_classes": classes,
        "heatmaps": gradcam.heatmaps(forward.calls, explained, classes, call_index),
    }


# ---------------------------------------------------------------- segmentation


def maps_output(config: SegmentationConfig, outputs: Mapping[str, Any]) -> Any:
    """Return the output (B, h, w, units) of class maps. Raises ModelError if it is not unique."""
    expected = "one output of class scores per pixel (B, height, width, classes)"
    return select_output("segmentation", expected, outputs, config.output, 4)


def _count_mask_classes(config: SegmentationConfig, outputs: Mapping[str, Any]) -> int:
    units = int(maps_output(config, outputs).shape[-1])
    if units > MAX_MASK_CLASSES:
        raise ModelError(
            f"model {config.model!r} has {units} classes; an 8-bit mask allows {MAX_MASK_CLASSES}"
        )
    return 2 if units == 1 else units


def _segment(forward: ForwardPass) -> Tensors:
    """Return mask (B, H, W) uint8, and with tiles: probabilities (B, H, W, C)."""
    maps = maps_output(forward.config, forward.outputs)
    if tuple(maps.shape[1:3]) != forward.input_hw:  # the network has an output stride
        maps = tf.image.resize(maps, forward.input_hw)
    results = {"mask": _mask(maps, forward.activation)}
    if forward.config.tiles is not None:
        results["probabilities"] = _map_probabilities(maps, forward.activation)
    return results


def _mask(
    maps: tf.Tensor,  # (B, H, W, units)
    activation: Activation,
) -> tf.Tensor:  # (B, H, W) uint8
    if maps.shape[3] > 1:
        return tf.cast(tf.argmax(maps, axis=-1, output_type=tf.int32), tf.uint8)
    return tf.cast(maps[..., 0] > (0.5 if activation == "none" else 0), tf.uint8)


def _map_probabilities(
    maps: tf.Tensor,  # (B, H, W, units)
    activation: Activation,
) -> tf.Tensor:  # (B, H, W, C)
    """Return the probability of every class at each pixel, so that tiles can be averaged."""
    positive = with_activation(maps, activation)
    if maps.shape[3] > 1:
        return positive
    return tf.concat([1 - positive, positive], axis=3)


# ---------------------------------------------------------------- detection, localization


def _count_box_classes(config: DetectionConfig, outputs: Mapping[str, Any]) -> int:
    return _checked_classes(
        config, outputs, {"boxes": 3, "scores": 3}, "boxes (B, N, 4) and scores (B, N, classes)"
    )


def _detect(forward: ForwardPass) -> Tensors:
    """Return boxes (B, N, 4) and scores (B, N, C)."""
    scores = with_activation(forward.outputs["scores"], forward.activation)
    return {"boxes": forward.outputs["boxes"], "scores": scores}


def single_box(outputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return outputs boxes (B, 1, 4) and scores (B, 1, C) as box (B, 4) and scores (B, C).

    Outputs of other names or shapes are returned unchanged.
    """
    if not all(
        name in outputs and len(outputs[name].shape) == 3 and outputs[name].shape[1] == 1
        for name in ("boxes", "scores")
    ):
        return outputs
    return {
        "box": keras.ops.squeeze(outputs["boxes"], 1),
        "scores": keras.ops.squeeze(outputs["scores"], 1),
    }


def _count_localized_classes(config: LocalizationConfig, outputs: Mapping[str, Any]) -> int:
    expected = "box (B, 4) and scores (B, classes), or boxes (B, 1, 4) and scores (B, 1, classes)"
    return _checked_classes(config, single_box(outputs), {"box": 2, "scores": 2}, expected)


def _localize(forward: ForwardPass) -> Tensors:
    """Return box (B, 4) and the outputs of `_classify`."""
    outputs = single_box(forward.outputs)
    return {"box": outputs["box"], **_scores(forward, outputs["scores"], False)}


def _checked_classes(
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


class GraphOutputs(NamedTuple):
    """Functions that turn the outputs of a network into those of a task.

    Attributes:
        num_classes: function of (config, outputs by name); raises ModelError if the outputs do not
            fit the task.
        compute: function of a ForwardPass that returns the tensors by name that
            `cvbatch.inference.postprocess` expects.
    """

    num_classes: Callable[[Any, Mapping[str, Any]], int]
    compute: Callable[[ForwardPass], Tensors]


GRAPH_OUTPUTS: dict[Task, GraphOutputs] = {
    "classification": GraphOutputs(_count_labels, _classify),
    "segmentation": GraphOutputs(_count_mask_classes, _segment),
    "detection": GraphOutputs(_count_box_classes, _detect),
    "localization": GraphOutputs(_count_localized_classes, _localize),
}
