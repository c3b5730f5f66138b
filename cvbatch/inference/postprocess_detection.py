"""Post-processing of detection: score threshold, non-maximum suppression, original pixels."""

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
    outputs: Outputs,  # boxes (K, N, 4) and scores (K, N, C), or scores and class_ids (K, N)
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
) -> ModelPredictions:
    """Return the boxes of K images. Boxes with class ids are not suppressed again."""
    read = read_suppressed if "class_ids" in outputs else read_boxes
    boxes = read(
        outputs["boxes"],
        _scores(outputs, len(spec.classes)),
        image_index,
        placements,
        spec.input_key,
        config.box_format,
        _nms_settings(config, spec),
    )
    return ModelPredictions(boxes=boxes)


def merge_tiles(
    config: DetectionConfig,
    spec: ModelSpec,
    tiles: Iterator[Outputs],  # T, each a batch of one
    placements: Sequence[Placement],  # T
    position: int,  # of the image in its batch
) -> ModelPredictions:
    """Return the boxes of one tiled image."""
    boxes = merge_boxes(
        ((tile["boxes"][0], _scores(tile, len(spec.classes))[0]) for tile in tiles),
        position,
        placements,
        spec.input_key,
        config.box_format,
        _nms_settings(config, spec),
    )
    return ModelPredictions(boxes=boxes)


def _nms_settings(config: DetectionConfig, spec: ModelSpec) -> box_arrays.NmsSettings:
    names = config.keep_classes
    return box_arrays.NmsSettings(
        config.score_threshold,
        config.iou_threshold,
        config.max_detections,
        config.class_agnostic,
        None if names is None else [spec.classes.index(name) for name in names],
    )


def _scores(outputs: Outputs, num_classes: int) -> np.ndarray:  # (K, N, C) float32
    """Return a score for each class; −1 for all but the class id of a box that has one."""
    scores = outputs["scores"]
    if "class_ids" not in outputs:
        return scores
    is_class = outputs["class_ids"][..., None] == np.arange(num_classes)
    dense: np.ndarray = np.where(is_class, scores[..., None], np.float32(-1))
    return dense


def read_suppressed(
    boxes: np.ndarray,  # (K, N, 4) float32 in box_format
    scores: np.ndarray,  # (K, N, C) float32, −1 for all classes but one
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
    key: InputKey,
    box_format: str,
    settings: box_arrays.NmsSettings,
) -> Boxes:
    """Select the boxes over the score threshold and map them to the original; best first."""
    parts = []
    for row, placement in enumerate(placements):
        class_id = scores[row].argmax(axis=1).astype(np.int32)
        score = scores[row].max(axis=1)
        is_kept = score >= np.float32(settings.score_threshold)
        if settings.classes_kept is not None:
            is_kept &= np.isin(class_id, list(settings.classes_kept))
        kept = np.flatnonzero(is_kept)
        kept = kept[np.argsort(-score[kept], kind="stable")][: settings.max_detections]
        xyxy = box_arrays.to_xyxy(boxes[row, kept], box_format, key.height, key.width)
        parts.append((boxes_to_original(xyxy, placement), score[kept], class_id[kept]))
    return join_boxes(parts, image_index)


def read_boxes(
    boxes: np.ndarray,  # (K, N, 4) float32 in box_format
    scores: np.ndarray,  # (K, N, C) float32
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
    key: InputKey,
    box_format: str,
    settings: box_arrays.NmsSettings,
) -> Boxes:
    """Suppress the candidates of each image and map the boxes to the original; best first."""
    parts = []
    for row, placement in enumerate(placements):
        xyxy = box_arrays.to_xyxy(boxes[row], box_format, key.height, key.width)
        kept, class_id = box_arrays.non_max_suppression(xyxy, scores[row], **settings._asdict())
        original = boxes_to_original(xyxy[kept], placement)
        parts.append((original, scores[row, kept, class_id], class_id))
    return join_boxes(parts, image_index)


def merge_boxes(
    tiles: Iterable[tuple[np.ndarray, np.ndarray]],  # T of (N, 4) in box_format and (N, C), float32
    position: int,  # of the image in its batch
    placements: Sequence[Placement],  # T
    key: InputKey,
    box_format: str,
    settings: box_arrays.NmsSettings,
) -> Boxes:
    """Map the boxes of all tiles to the original, clip them, and suppress them together.

    To save memory, tiles are processed one at a time and boxes below the score threshold are
    dropped at once. The result is the same, because these boxes neither remain nor suppress others.
    """
    boxes, scores = [], []
    for placement, (tile_boxes, tile_scores) in zip(placements, tiles, strict=True):
        candidates = tile_scores
        if settings.classes_kept is not None:
            candidates = tile_scores[:, list(settings.classes_kept)]
        is_kept = (candidates >= np.float32(settings.score_threshold)).any(axis=1)
        xyxy = box_arrays.to_xyxy(tile_boxes[is_kept], box_format, key.height, key.width)
        boxes.append(boxes_to_original(xyxy, placement))
        scores.append(tile_scores[is_kept])
    xyxy, all_scores = np.concatenate(boxes), np.concatenate(scores)
    kept, class_id = box_arrays.non_max_suppression(xyxy, all_scores, **settings._asdict())
    part = (xyxy[kept], all_scores[kept, class_id], class_id)
    return join_boxes([part], np.array([position], np.int64))
