"""Candidate boxes read as detections: thresholds, suppression, original pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def merge_boxes(
    tiles: Iterable[tuple[np.ndarray, np.ndarray]],  # T of (N, 4) in box_format and (N, C), float32
    position: int,  # of the image in its batch
    placements: Sequence[Placement],  # T
    key: InputKey,
    *,
    box_format: str,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    class_agnostic: bool,
    classes_kept: Sequence[int] | None,
) -> Boxes:
    """Return what is left of a cut image's boxes after one suppression over all its tiles.

    Suppressed are the boxes as they lie in the original, clipped to it, in the order of the tiles.
    The tiles are taken one at a time; of each only the boxes with a score over the threshold stay,
    which changes nothing: no other can stand, or make one fall.
    """
    boxes, scores = [], []
    for placement, (of_tile, tile_scores) in zip(placements, tiles, strict=True):
        candidates = tile_scores if classes_kept is None else tile_scores[:, list(classes_kept)]
        is_kept = (candidates >= np.float32(score_threshold)).any(axis=1)
        xyxy = box_arrays.to_xyxy(of_tile[is_kept], box_format, key.height, key.width)
        boxes.append(to_original(xyxy, placement))
        scores.append(tile_scores[is_kept])
    xyxy, all_scores = np.concatenate(boxes), np.concatenate(scores)
    kept, class_id = box_arrays.suppress(
        xyxy,
        all_scores,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        class_agnostic=class_agnostic,
        classes_kept=classes_kept,
    )
    found = (xyxy[kept], all_scores[kept, class_id], class_id)
    return _joined([found], np.array([position], np.int64))


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
