"""Post-processing of detection: candidate boxes to boxes, by thresholds and suppression."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from cvbatch.config.models import DetectionConfig
from cvbatch.core.types import Boxes, InputKey, ModelPredictions, ModelSpec, join_boxes
from cvbatch.geometry import boxes as box_arrays
from cvbatch.geometry.resize import Placement, boxes_to_original
from cvbatch.inference.engines import Outputs


def read_outputs(
    config: DetectionConfig,
    spec: ModelSpec,
    outputs: Outputs,  # boxes (K, N, 4) and scores (K, N, C)
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
) -> ModelPredictions:
    """Return the boxes of K images."""
    boxes = read_boxes(
        outputs["boxes"],
        outputs["scores"],
        image_index,
        placements,
        spec.input_key,
        config.box_format,
        _suppression(config, spec),
    )
    return ModelPredictions(boxes=boxes)


def merge_tiles(
    config: DetectionConfig,
    spec: ModelSpec,
    tiles: Iterator[Outputs],  # T, each a batch of one
    placements: Sequence[Placement],  # T
    position: int,  # of the image in its batch
) -> ModelPredictions:
    """Return the boxes of one image that was cut."""
    boxes = merge_boxes(
        ((row["boxes"][0], row["scores"][0]) for row in tiles),
        position,
        placements,
        spec.input_key,
        config.box_format,
        _suppression(config, spec),
    )
    return ModelPredictions(boxes=boxes)


def _suppression(config: DetectionConfig, spec: ModelSpec) -> box_arrays.NmsSettings:
    names = config.keep_classes
    return box_arrays.NmsSettings(
        config.score_threshold,
        config.iou_threshold,
        config.max_detections,
        config.class_agnostic,
        None if names is None else [spec.classes.index(name) for name in names],
    )


def read_boxes(
    boxes: np.ndarray,  # (K, N, 4) float32 in box_format
    scores: np.ndarray,  # (K, N, C) float32
    image_index: np.ndarray,  # (K,)
    placements: Sequence[Placement],  # K
    key: InputKey,
    box_format: str,
    rule: box_arrays.NmsSettings,
) -> Boxes:
    """Return what is left of each image's boxes after suppression, best first."""
    found = []
    for row, placement in enumerate(placements):
        xyxy = box_arrays.to_xyxy(boxes[row], box_format, key.height, key.width)
        kept, class_id = box_arrays.non_max_suppression(xyxy, scores[row], **rule._asdict())
        original = boxes_to_original(xyxy[kept], placement)
        found.append((original, scores[row, kept, class_id], class_id))
    return join_boxes(found, image_index)


def merge_boxes(
    tiles: Iterable[tuple[np.ndarray, np.ndarray]],  # T of (N, 4) in box_format and (N, C), float32
    position: int,  # of the image in its batch
    placements: Sequence[Placement],  # T
    key: InputKey,
    box_format: str,
    rule: box_arrays.NmsSettings,
) -> Boxes:
    """Return what is left of a cut image's boxes after one suppression over all its tiles.

    Suppressed are the boxes as they lie in the original, clipped to it, in the order of the tiles.
    The tiles are taken one at a time; of each only the boxes with a score over the threshold stay,
    which changes nothing: no other can stand, or make one fall.
    """
    boxes, scores = [], []
    for placement, (of_tile, tile_scores) in zip(placements, tiles, strict=True):
        candidates = _of_classes(tile_scores, rule.classes_kept)
        is_kept = (candidates >= np.float32(rule.score_threshold)).any(axis=1)
        xyxy = box_arrays.to_xyxy(of_tile[is_kept], box_format, key.height, key.width)
        boxes.append(boxes_to_original(xyxy, placement))
        scores.append(tile_scores[is_kept])
    xyxy, all_scores = np.concatenate(boxes), np.concatenate(scores)
    kept, class_id = box_arrays.non_max_suppression(xyxy, all_scores, **rule._asdict())
    found = (xyxy[kept], all_scores[kept, class_id], class_id)
    return join_boxes([found], np.array([position], np.int64))


def _of_classes(scores: np.ndarray, kept: Sequence[int] | None) -> np.ndarray:  # (N, C) → (N, K)
    return scores if kept is None else scores[:, list(kept)]
