"""Candidate boxes read as detections: thresholds, suppression, original pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvbatch.arrays import boxes as box_arrays
from cvbatch.arrays.pixels import Placement, to_original
from cvbatch.types import Boxes, InputKey


def read_boxes(
    boxes: np.ndarray,  # (K, N, 4) float32 in box_format
    scores: np.ndarray,  # (K, N, C) float32
    image_index: np.ndarray,  # (K,)
    placements: Sequence[Placement],  # K
    key: InputKey,
    *,
    box_format: str,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    class_agnostic: bool,
    classes_kept: Sequence[int] | None,
) -> Boxes:
    """Return what is left of each image's boxes after suppression, best first."""
    found = []
    for row, placement in enumerate(placements):
        xyxy = box_arrays.to_xyxy(boxes[row], box_format, key.height, key.width)
        kept, class_id = box_arrays.suppress(
            xyxy,
            scores[row],
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
            class_agnostic=class_agnostic,
            classes_kept=classes_kept,
        )
        original = to_original(xyxy[kept], placement)
        found.append((original, scores[row, kept, class_id], class_id))
    return _joined(found, image_index)


def read_single_boxes(
    boxes: np.ndarray,  # (K, 4) float32 in box_format
    scores: np.ndarray,  # (K, C) float32
    image_index: np.ndarray,  # (K,)
    placements: Sequence[Placement],  # K
    key: InputKey,
    *,
    box_format: str,
) -> Boxes:
    """Return a localizer's one box of each image, with the image's best class."""
    xyxy = box_arrays.to_xyxy(boxes, box_format, key.height, key.width)
    best = scores.argmax(axis=1)
    found = [
        (to_original(xyxy[row : row + 1], placement), scores[row, best[row : row + 1]], best[[row]])
        for row, placement in enumerate(placements)
    ]
    return _joined(found, image_index)


def _joined(
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]], image_index: np.ndarray
) -> Boxes:
    counts = [len(score) for _, score, _ in found]
    empty = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    xyxy, score, class_id = (np.concatenate(part) for part in zip(empty, *found, strict=True))
    return Boxes(
        xyxy=xyxy.astype(np.float32),
        score=score.astype(np.float32),
        class_id=class_id.astype(np.int32),
        image_index=np.repeat(image_index, counts),
    )
