"""Reference implementations of mean IoU and average precision, for the networks of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cvbatch.geometry.boxes import iou


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of one image: ground truth or detections."""

    xyxy: np.ndarray  # (M, 4) pixels
    class_id: np.ndarray  # (M,)
    score: np.ndarray  # (M,); unused in ground truth


def confusion(
    truth: np.ndarray, predicted: np.ndarray, num_classes: int
) -> np.ndarray:  # (H, W), (H, W) → (C, C) int64
    """Return the confusion matrix of pixels: true classes in rows, predicted in columns."""
    pairs = truth.astype(np.int64).ravel() * num_classes + predicted.ravel()
    counts: np.ndarray = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def mean_iou(matrix: np.ndarray) -> float:  # (C, C)
    """Return the mean, over the classes that occur, of intersection over union."""
    hit = np.diag(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hit
    return float(np.mean(hit[union > 0] / union[union > 0]))


def average_precision(
    truth: Sequence[ImageBoxes],
    detections: Sequence[ImageBoxes],
    num_classes: int,
    iou_threshold: float = 0.5,
) -> float:
    """Return the mean over the true classes of the average precision at one IoU threshold.

    Both sequences contain the same images. The precision at a recall is the maximum at this or a
    higher recall, averaged over the 101 recalls 0, 0.01, ..., 1.

    Source: COCO's evaluation, pycocotools.
    """
    occurs = [k for k in range(num_classes) if any((image.class_id == k).any() for image in truth)]
    return float(np.mean([_of_class(truth, detections, k, iou_threshold) for k in occurs]))


def _of_class(
    truth: Sequence[ImageBoxes],
    detections: Sequence[ImageBoxes],
    class_id: int,
    iou_threshold: float,
) -> float:
    scores, hits, total = [], [], 0
    for true, detected in zip(truth, detections, strict=True):
        true_boxes = true.xyxy[true.class_id == class_id]
        is_class = detected.class_id == class_id
        order = np.argsort(-detected.score[is_class], kind="stable")
        total += len(true_boxes)
        scores.append(detected.score[is_class][order])
        hits.append(_greedy_hits(iou(detected.xyxy[is_class][order], true_boxes), iou_threshold))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit = np.cumsum(np.concatenate(hits)[order])
    recall = hit / total
    precision = np.append(hit / np.arange(1, len(hit) + 1), 0.0)
    best_from = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_from[np.searchsorted(recall, np.linspace(0, 1, 101))].mean())


def _greedy_hits(overlaps: np.ndarray, iou_threshold: float) -> np.ndarray:  # (M, N) → (M,) bool
    """Match each box, best first, with the unmatched true box of highest IoU; return hits."""
    hit = np.zeros(len(overlaps), bool)
    free = np.ones(overlaps.shape[1], bool)
    for i, row in enumerate(overlaps):
        row = np.where(free, row, 0.0)
        if row.size and row.max() >= iou_threshold:
            free[row.argmax()] = False
            hit[i] = True
    return hit
