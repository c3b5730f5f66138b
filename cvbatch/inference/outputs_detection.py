"""Outputs of the serving graph for detection: boxes and scores; imports TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvbatch.config.models import DetectionConfig, LocalizationConfig
from cvbatch.inference.activation import with_activation
from cvbatch.inference.forward_pass import ForwardPass, Tensors
from cvbatch.models.outputs import output_mismatch


def count_classes(config: DetectionConfig, outputs: Mapping[str, Any]) -> int:
    """Return the number of classes. Raises ModelError if the outputs are not boxes and scores."""
    return count_checked_classes(
        config, outputs, {"boxes": 3, "scores": 3}, "boxes (B, N, 4) and scores (B, N, classes)"
    )


def compute(forward: ForwardPass) -> Tensors:
    """Return boxes (B, N, 4) and scores (B, N, C)."""
    scores = with_activation(forward.outputs["scores"], forward.activation)
    return {"boxes": forward.outputs["boxes"], "scores": scores}


def raw_scores(config: DetectionConfig, outputs: Mapping[str, Any]) -> Any:
    """Return the scores (B, N, C) of the boxes, as the network gives them."""
    return outputs["scores"]


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
