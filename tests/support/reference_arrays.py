"""Reference implementations: the definitions that faster code of cvbatch is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvbatch.geometry.anchors import shape_iou
from cvbatch.geometry.boxes import iou


def suppress_reference(
    boxes: np.ndarray,  # (N, 4) xyxy
    scores: np.ndarray,  # (N, C)
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    class_agnostic: bool = False,
    classes_kept: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # (K,) int64 rows, (K,) int32 class ids
    """Return the definition of non-maximum suppression, in plain loops."""
    classes = range(scores.shape[1]) if classes_kept is None else sorted(set(classes_kept))
    candidates = []  # (−score, row, class): ascending order is best first
    for row in range(len(scores)):
        of_row = [(-scores[row, c], row, c) for c in classes]
        candidates += sorted(of_row)[:1] if class_agnostic else of_row
    overlap = iou(boxes, boxes)
    kept: list[tuple[int, int]] = []
    for negative_score, row, class_id in sorted(candidates):
        if len(kept) == max_detections or -negative_score < score_threshold:
            break
        rivals = [r for r, c in kept if class_agnostic or c == class_id]
        if all(overlap[row, r] <= iou_threshold for r in rivals):
            kept.append((row, class_id))
    result = np.array(kept, np.int64).reshape(-1, 2)
    return result[:, 0], result[:, 1].astype(np.int32)


def grad_cam(
    features: np.ndarray,  # (h, w, c) output of a layer for one image
    gradients: np.ndarray,  # (h, w, c) of the class's score, with respect to the features
) -> np.ndarray:  # (h, w) float32 in 0..1
    """Return the class activation map: its maximum is 1, or it is 0 everywhere.

    The mean gradient of each channel is the weight of the channel; negative values of the weighted
    mean are cut off. A mean in place of the sum changes nothing: the map is divided by its maximum.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2.
    """
    weights = gradients.astype(np.float64).mean(axis=(0, 1))
    values: np.ndarray = np.maximum((features.astype(np.float64) * weights).mean(axis=-1), 0)
    maximum = values.max(initial=0)
    if maximum > 0:
        values /= maximum
    return values.astype(np.float32)


def mean_iou_of_anchors(
    boxes_hw: np.ndarray,  # (N, 2)
    anchors_hw: np.ndarray,  # (k, 2) in the same unit
) -> float:
    """Return the mean, over the boxes, of the IoU of a box with its most similar anchor."""
    return float(shape_iou(boxes_hw, anchors_hw).max(axis=1).mean())
