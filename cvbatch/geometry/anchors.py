"""Anchor shapes for grid detectors, fitted to labelled boxes by k-means."""

from __future__ import annotations

import numpy as np

_RESTARTS = 64
_SAMPLE = 2048  # distinct boxes that the restarts use
_PATIENCE = 5  # iterations without a better mean IoU


def fit_anchors(
    boxes_hw: np.ndarray,  # (N, 2)
    k: int = 5,
    seed: int = 0,
) -> np.ndarray:  # (k, 2) float64
    """Fit anchor shapes to boxes: k-means with 1 − IoU as the distance.

    The IoU is that of two boxes with the same centre, so large boxes have no more weight than
    small ones. k-means runs from many k-means++ seedings, on a sample where there are many boxes;
    the anchors with the best mean IoU are refined once more on all boxes. The order of the boxes
    does not change the result.

    Args:
        boxes_hw: heights and widths, positive and finite, in any one unit.
        k: number of anchors, from 1 to the number of distinct boxes.
        seed: seed of the sample and of the seedings.

    Returns:
        Heights and widths in the unit of the boxes, by ascending area.

    Raises:
        ValueError: a side is not positive and finite, or there are fewer than k distinct boxes.

    Source: Redmon and Farhadi, YOLO9000, 2017, section 2.
    """
    shapes, count = np.unique(_validated(boxes_hw), axis=0, return_counts=True)
    if not 1 <= k <= len(shapes):
        raise ValueError(
            f"k = {k} anchors of {len(shapes)} distinct boxes: k must be from 1 to the number of "
            "distinct boxes; set fewer anchors or label more boxes"
        )
    weight = count / count.sum()
    rng = np.random.default_rng(seed)
    size = min(len(shapes), max(_SAMPLE, k))
    rows = np.sort(rng.choice(len(shapes), size, replace=False))
    sample, sample_weight = shapes[rows], weight[rows] / weight[rows].sum()
    fits = [
        _k_means(sample, sample_weight, _seeds(sample, sample_weight, k, rng))
        for _ in range(_RESTARTS)
    ]
    best, _ = _k_means(shapes, weight, max(fits, key=lambda fit: fit[1])[0])
    return best[np.lexsort((best[:, 0], best.prod(axis=1)))]


def shape_iou(
    boxes_hw: np.ndarray,  # (N, 2)
    anchors_hw: np.ndarray,  # (k, 2)
) -> np.ndarray:  # (N, k)
    """Return the IoU, in 0..1, of every box with every anchor, both with the same centre."""
    (height, width), (anchor_height, anchor_width) = boxes_hw.T, anchors_hw.T
    overlap: np.ndarray = np.minimum(height[:, None], anchor_height)
    overlap = overlap * np.minimum(width[:, None], anchor_width)
    union = (height * width)[:, None] + anchor_height * anchor_width - overlap
    iou: np.ndarray = overlap / union
    return iou


def _validated(sides: np.ndarray) -> np.ndarray:  # (N, 2) → (N, 2) float64
    array = np.asarray(sides, np.float64)
    if array.ndim != 2 or array.shape[1:] != (2,) or not len(array):
        raise ValueError(
            f"boxes of shape {array.shape}: heights and widths must have the shape (N, 2), N at "
            "least 1; from boxes xyxy compute xyxy[:, [3, 2]] - xyxy[:, [1, 0]]"
        )
    is_invalid = ~(np.isfinite(array) & (array > 0)).all(axis=1)
    if is_invalid.any():
        row = int(is_invalid.argmax())
        raise ValueError(
            f"box {row} has the height and width {array[row].tolist()}: both must be positive and "
            "finite; remove empty boxes"
        )
    return array


def _seeds(
    shapes: np.ndarray,  # (M, 2) distinct
    weight: np.ndarray,  # (M,)
    k: int,
    rng: np.random.Generator,
) -> np.ndarray:  # (k, 2) distinct
    """Draw k shapes by k-means++: the odds are the squared distance to the shapes drawn before."""
    chosen = [rng.choice(len(shapes), p=weight)]
    while len(chosen) < k:
        distance = 1 - shape_iou(shapes, shapes[chosen]).max(axis=1)
        distance[chosen] = 0  # 1 − IoU of equal boxes may differ from 0 by a rounding error
        odds = weight * distance**2
        chosen.append(rng.choice(len(shapes), p=odds / odds.sum()))
    return shapes[chosen]


def _k_means(
    shapes: np.ndarray,  # (M, 2)
    weight: np.ndarray,  # (M,)
    anchors: np.ndarray,  # (k, 2)
) -> tuple[np.ndarray, float]:  # (k, 2), their mean IoU
    """Run k-means; return the best anchors, as the mean of a cluster may lower its mean IoU."""
    best, best_iou, patience = anchors, -1.0, _PATIENCE
    while patience:
        ious = shape_iou(shapes, anchors)
        mean_iou = float(weight @ ious.max(axis=1))
        patience = _PATIENCE if mean_iou > best_iou + 1e-9 else patience - 1
        if mean_iou > best_iou:
            best, best_iou = anchors, mean_iou
        anchors = _cluster_means(shapes, weight, ious.argmax(axis=1), ious)
    return best, best_iou


def _cluster_means(
    shapes: np.ndarray,  # (M, 2)
    weight: np.ndarray,  # (M,)
    cluster: np.ndarray,  # (M,) of each shape
    ious: np.ndarray,  # (M, k)
) -> np.ndarray:  # (k, 2)
    """Return the mean shape of each cluster; an empty cluster gets the worst fitted shape."""
    k = ious.shape[1]
    mass = np.bincount(cluster, weight, k)
    is_empty = mass == 0
    sums = np.stack([np.bincount(cluster, weight * side, k) for side in shapes.T], axis=1)
    anchors: np.ndarray = sums / np.where(is_empty, 1, mass)[:, None]
    worst_fitted = np.argsort(ious.max(axis=1), kind="stable")
    anchors[is_empty] = shapes[worst_fitted[: is_empty.sum()]]
    return anchors
