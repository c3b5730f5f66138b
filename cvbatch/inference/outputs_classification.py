"""Outputs of the serving graph for classification: scores and heatmaps; imports TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvbatch.config.models import ClassificationConfig
from cvbatch.inference import gradcam
from cvbatch.inference.activation import logits_and_probabilities
from cvbatch.inference.forward_pass import ForwardPass, Tensors
from cvbatch.models.frameworks import tf
from cvbatch.models.outputs import select_output


def scores_output(config: ClassificationConfig, outputs: Mapping[str, Any]) -> Any:
    """Return the output (B, units) of class scores. Raises ModelError if it is not unique."""
    expected = "one output of class scores (B, classes)"
    return select_output("classification", expected, outputs, config.output, 2)


def count_classes(config: ClassificationConfig, outputs: Mapping[str, Any]) -> int:
    """Return the number of classes; one unit is the positive class of two."""
    units = int(scores_output(config, outputs).shape[-1])
    return 2 if units == 1 and not config.multi_label else units


def compute(forward: ForwardPass) -> Tensors:
    """Return scores (B, C), and with heatmaps: heatmaps (B, K, h, w), heatmap_classes (B, K)."""
    config = forward.config
    return compute_scores(forward, scores_output(config, forward.outputs), config.multi_label)


def compute_scores(
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
