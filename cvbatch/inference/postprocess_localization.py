"""Post-processing of localization: class scores to labels, and one box per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cvbatch.config.models import LocalizationConfig
from cvbatch.core.types import Boxes, InputKey, ModelPredictions, ModelSpec, join_boxes
from cvbatch.geometry.boxes import to_xyxy
from cvbatch.geometry.resize import Placement, boxes_to_original
from cvbatch.inference import postprocess_classification
from cvbatch.inference.engines import Outputs


def read_outputs(
    config: LocalizationConfig,
    spec: ModelSpec,
    outputs: Outputs,  # box (K, 4), and the outputs of classification
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
) -> ModelPredictions:
    """Return the labels, boxes and, if configured, heatmaps of K images."""
    predictions = postprocess_classification.read_outputs(
        config, spec, outputs, image_index, placements
    )
    boxes = read_single_boxes(
        outputs["box"],
        outputs["scores"],
        image_index,
        placements,
        spec.input_key,
        box_format=config.box_format,
    )
    return replace(predictions, boxes=boxes)


def read_single_boxes(
    boxes: np.ndarray,  # (K, 4) float32 in box_format
    scores: np.ndarray,  # (K, C) float32
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
    key: InputKey,
    *,
    box_format: str,
) -> Boxes:
    """Return one box per image in original pixels, with class and score of the top class."""
    xyxy = to_xyxy(boxes, box_format, key.height, key.width)
    best = scores.argmax(axis=1)
    parts = [
        (
            boxes_to_original(xyxy[row : row + 1], placement),
            scores[row, best[row : row + 1]],
            best[[row]],
        )
        for row, placement in enumerate(placements)
    ]
    return join_boxes(parts, image_index)
