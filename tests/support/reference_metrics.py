"""Three figures tell whether the demo's networks are right; tests compute them here, plainly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cvbatch.geometry.boxes import iou


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of one image: the truth, or what a detector says."""

    xyxy: np.ndarray  # (M, 4) pixels
    class_id: np.ndarray  # (M,)
    score: np.ndarray  # (M,); of no meaning in the truth


def confusion(
    truth: np.ndarray, said: np.ndarray, num_classes: int
) -> np.ndarray:  # (H, W), (H, W) → (C, C) int64
    """Return how many pixels of each true class (rows) got each class (columns)."""
    pairs = truth.astype(np.int64).ravel() * num_classes + said.ravel()
    counts: np.ndarray = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def mean_iou(summed: np.ndarray) -> float:  # (C, C)
    """Return the mean, over the classes that occur, of intersection over union."""
    hit = np.diag(summed)
    union = summed.sum(axis=0) + summed.sum(axis=1) - hit
    return float(np.mean(hit[union > 0] / union[union > 0]))


def average_precision(
    truth: Sequence[ImageBoxes],
    said: Sequence[ImageBoxes],
    num_classes: int,
    iou_threshold: float = 0.5,
) -> float:
    """Return the mean, over the classes in the truth, of the average precision at one IoU.

    Both sequences run over the same images. Precision at a recall is the best at that recall
    or more, averaged over the 101 recalls 0, 0.01, ..., 1 (COCO's definition).
    """
    occurs = [k for k in range(num_classes) if any((image.class_id == k).any() for image in truth)]
    return float(np.mean([_of_class(truth, said, k, iou_threshold) for k in occurs]))


def _of_class(
    truth: Sequence[ImageBoxes], said: Sequence[ImageBoxes], class_id: int, iou_threshold: float
) -> float:
    scores, hits, total = [], [], 0
    for real, guess in zip(truth, said, strict=True):
        wanted = real.xyxy[real.class_id == class_id]
        mine = guess.class_id == class_id
        order = np.argsort(-guess.score[mine], kind="stable")
        total += len(wanted)
        scores.append(guess.score[mine][order])
        hits.append(_greedy_hits(iou(guess.xyxy[mine][order], wanted), iou_threshold))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit = np.cumsum(np.concatenate(hits)[order])
    recall = hit / total
    precision = np.append(hit / np.arange(1, len(hit) + 1), 0.0)
    best_from = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_from[np.searchsorted(recall, np.linspace(0, 1, 101))].mean())


def _greedy_hits(overlaps: np.ndarray, iou_threshold: float) -> np.ndarray:  # (M, N) → (M,) bool
    """Give each box, best first, the free true box it overlaps most; tell which got one."""
    hit = np.zeros(len(overlaps), bool)
    free = np.ones(overlaps.shape[1], bool)
    for i, row in enumerate(overlaps):
        row = np.where(free, row, 0.0)
        if row.size and row.max() >= iou_threshold:
            free[row.argmax()] = False
            hit[i] = True
    return hit
