"""A grid detector guesses a box by stretching one of a few shapes; those are found here."""

from __future__ import annotations

import numpy as np

_RESTARTS = 64
_SAMPLE = 2048  # distinct boxes that the restarts look at
_PATIENCE = 5  # rounds of a descent without a better mean IoU


def fit_anchors(
    boxes_hw: np.ndarray,  # (N, 2) heights and widths, in any one unit
    k: int = 5,
    seed: int = 0,
) -> np.ndarray:  # (k, 2) float64, by ascending area
    """Return the k shapes that stand for the boxes: k-means with 1 − IoU as the distance.

    IoU is that of two boxes laid centre on centre, so large boxes weigh no more than small ones
    (Redmon and Farhadi, YOLO9000, 2017, section 2). Seeded as k-means++ many times over, on a
    sample where there are many boxes; the anchors with the best `mean_iou_of_anchors` go through
    all boxes once more. The same boxes and seed give the same anchors, in any order of the boxes.

    Raises:
        ValueError: a side is not positive and finite, or fewer than k boxes differ.
    """
    shapes, count = np.unique(_checked(boxes_hw), axis=0, return_counts=True)
    if not 1 <= k <= len(shapes):
        raise ValueError(
            f"k = {k} anchors of {len(shapes)} distinct boxes: there must be from 1 to as many "
            "anchors as distinct boxes; ask for fewer, or give more boxes"
        )
    weight = count / count.sum()
    rng = np.random.default_rng(seed)
    size = min(len(shapes), max(_SAMPLE, k))
    rows = np.sort(rng.choice(len(shapes), size, replace=False))
    some, some_weight = shapes[rows], weight[rows] / weight[rows].sum()
    tries = [
        _k_means(some, some_weight, _seeds(some, some_weight, k, rng)) for _ in range(_RESTARTS)
    ]
    best, _ = _k_means(shapes, weight, max(tries, key=lambda found: found[1])[0])
    return best[np.lexsort((best[:, 0], best.prod(axis=1)))]


def mean_iou_of_anchors(
    boxes_hw: np.ndarray,  # (N, 2)
    anchors_hw: np.ndarray,  # (k, 2) in the same unit
) -> float:
    """Return the IoU of a box and the anchor most like it, averaged over the boxes, in 0..1.

    Raises:
        ValueError: a side is not positive and finite, or there are no boxes or no anchors.
    """
    return float(shape_iou(_checked(boxes_hw), _checked(anchors_hw)).max(axis=1).mean())


def shape_iou(
    boxes_hw: np.ndarray,  # (N, 2)
    anchors_hw: np.ndarray,  # (k, 2)
) -> np.ndarray:  # (N, k)
    """Return the IoU of every box with every anchor, laid centre on centre."""
    (height, width), (anchor_height, anchor_width) = boxes_hw.T, anchors_hw.T
    overlap: np.ndarray = np.minimum(height[:, None], anchor_height)
    overlap = overlap * np.minimum(width[:, None], anchor_width)
    union = (height * width)[:, None] + anchor_height * anchor_width - overlap
    iou: np.ndarray = overlap / union
    return iou


def _checked(sides: np.ndarray) -> np.ndarray:  # (N, 2) → (N, 2) float64
    array = np.asarray(sides, np.float64)
    if array.ndim != 2 or array.shape[1:] != (2,) or not len(array):
        raise ValueError(
            f"boxes of shape {array.shape}: heights and widths must have the shape (N, 2), N at "
            "least 1; for boxes xyxy take xyxy[:, [3, 2]] - xyxy[:, [1, 0]]"
        )
    wrong = ~(np.isfinite(array) & (array > 0)).all(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"box {row} has the height and width {array[row].tolist()}: both must be positive and "
            "finite; leave empty boxes out"
        )
    return array


def _seeds(
    shapes: np.ndarray,  # (M, 2) distinct
    weight: np.ndarray,  # (M,)
    k: int,
    rng: np.random.Generator,
) -> np.ndarray:  # (k, 2) distinct
    """Return k of the shapes, each drawn with odds of its squared distance to those before."""
    chosen = [rng.choice(len(shapes), p=weight)]
    while len(chosen) < k:
        distance = 1 - shape_iou(shapes, shapes[chosen]).max(axis=1)
        distance[chosen] = 0  # 1 − IoU of equal boxes may miss 0 by a rounding
        odds = weight * distance**2
        chosen.append(rng.choice(len(shapes), p=odds / odds.sum()))
    return shapes[chosen]


def _k_means(
    shapes: np.ndarray,  # (M, 2)
    weight: np.ndarray,  # (M,)
    anchors: np.ndarray,  # (k, 2)
) -> tuple[np.ndarray, float]:  # (k, 2), their mean IoU
    """Return the best anchors of a descent; the mean of a cluster need not be its best shape."""
    best, best_iou, patience = anchors, -1.0, _PATIENCE
    while patience:
        likeness = shape_iou(shapes, anchors)
        reached = float(weight @ likeness.max(axis=1))
        patience = _PATIENCE if reached > best_iou + 1e-9 else patience - 1
        if reached > best_iou:
            best, best_iou = anchors, reached
        anchors = _centres(shapes, weight, likeness.argmax(axis=1), likeness)
    return best, best_iou


def _centres(
    shapes: np.ndarray,  # (M, 2)
    weight: np.ndarray,  # (M,)
    owner: np.ndarray,  # (M,) the cluster of each
    likeness: np.ndarray,  # (M, k)
) -> np.ndarray:  # (k, 2)
    """Return each cluster's mean shape; an empty one takes the shape least like its anchor."""
    k = likeness.shape[1]
    mass = np.bincount(owner, weight, k)
    is_empty = mass == 0
    sums = np.stack([np.bincount(owner, weight * side, k) for side in shapes.T], axis=1)
    anchors: np.ndarray = sums / np.where(is_empty, 1, mass)[:, None]
    lonely = np.argsort(likeness.max(axis=1), kind="stable")
    anchors[is_empty] = shapes[lonely[: is_empty.sum()]]
    return anchors
