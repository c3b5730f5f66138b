"""Outputs of the serving graph for localization: one box and scores; imports TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvbatch.config.models import LocalizationConfig
from cvbatch.inference.forward_pass import ForwardPass, Tensors
from cvbatch.inference.outputs_classification import compute_scores
from cvbatch.inference.outputs_detection import count_checked_classes
from cvbatch.models.frameworks import keras


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


def count_classes(config: LocalizationConfig, outputs: Mapping[str, Any]) -> int:
    """Return the number of classes. Raises ModelError if the outputs have other shapes."""
    expected = "box (B, 4) and scores (B, classes), or boxes (B, 1, 4) and scores (B, 1, classes)"
    return count_checked_classes(config, single_box(outputs), {"box": 2, "scores": 2}, expected)


def compute(forward: ForwardPass) -> Tensors:
    """Return box (B, 4) and the outputs of `_classify`."""
    outputs = single_box(forward.outputs)
    return {"box": outputs["box"], **compute_scores(forward, outputs["scores"], False)}


def raw_scores(config: LocalizationConfig, outputs: Mapping[str, Any]) -> Any:
    """Return the class scores (B, C), as the network gives them."""
    return single_box(outputs)["scores"]
