"""Which detections are right, by COCO's rule and by Pascal VOC's, is decided image by image here.

COCO's rule is asked at ten IoUs and in four ranges of area, VOC's once: 41 verdicts a detection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cvbatch.core.types import Boxes

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # T
AREA_RANGES = {  # A: pixels², both ends belong to the range
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
NUM_COCO_CRITERIA = len(IOU_THRESHOLDS) * len(AREA_RANGES)  # verdict t · A + a
VOC_CRITERION = NUM_COCO_CRITERIA  # the last verdict
NUM_CRITERIA = NUM_COCO_CRITERIA + 1
_MIN_IOU = 0.5  # of both rules
_PAIRS = 1 << 20  # whose overlaps are computed at once


@dataclass(frozen=True)
class GroundTruthBoxes:
    """The objects that are in images, half-open boxes."""

    xyxy: np.ndarray  # (N, 4) pixels
    class_id: np.ndarray  # (N,)
    image_index: np.ndarray  # (N,)
    is_crowd: np.ndarray | None = None  # (N,) bool; VOC's "difficult". None: none is
    area: np.ndarray | None = None  # (N,) pixels², of the outline. None: of the box


class Matches(NamedTuple):
    """What was decided; rows by image, then class, best first."""

    row: np.ndarray  # (M,) int64 of the detections as they were given
    rank: np.ndarray  # (M,) int64, 0 for the best of its image and class
    is_true_positive: np.ndarray  # (M, 41) bool: found an object that counts
    is_ignored: np.ndarray  # (M, 41) bool: neither right nor wrong
    counts_as_object: np.ndarray  # (N, 5) bool: of the truths as given, per area range and for VOC


class _Pairs(NamedTuple):
    """Detections and truths of one image and class that overlap by half or more."""

    found: np.ndarray  # (P,) int64, ascending: place among the sorted detections
    truth: np.ndarray  # (P,) int64
    iou: np.ndarray  # (P,) float64
    coco_overlap: np.ndarray  # (P,) float64: with a crowd, the share of the detection inside it


def match_boxes(found: Boxes, truth: GroundTruthBoxes) -> Matches:
    """Return the verdict on every detection; both index the same images, in any order.

    COCO: best first, a detection takes the free truth it overlaps most, of equals the last; one
    that is ignored (a crowd, or its area out of the range) only where no other is left. A crowd is
    never used up. Taking an ignored one, or none while its own area is out of the range, a
    detection is ignored (pycocotools, COCOeval.evaluateImg).

    VOC: a detection goes to the truth it overlaps most, of equals the first; the best one to come
    is right, the next are wrong; all that come to a crowd are ignored (VOCevaldet of the Pascal
    VOC development kit, whose boxes with their last pixel are these half-open ones).

    A box whose corners are swapped has area 0.
    """
    row = np.lexsort((-found.score, found.class_id, found.image_index))
    image, class_id = found.image_index[row], found.class_id[row]
    xyxy = found.xyxy[row]
    is_first = np.ones(len(row), bool)
    is_first[1:] = (image[1:] != image[:-1]) | (class_id[1:] != class_id[:-1])
    group = np.cumsum(is_first)
    rank = _place_in_run(group)
    is_crowd = np.zeros(len(truth.xyxy), bool)
    if truth.is_crowd is not None:
        is_crowd = np.asarray(truth.is_crowd, bool)
    area = _areas(truth.xyxy) if truth.area is None else np.asarray(truth.area, np.float64)
    is_void = is_crowd[:, None] | _is_outside(area)  # (N, A)

    pairs = _overlapping(xyxy, class_id, image, truth, is_crowd)
    has_match, is_on_void = _coco(pairs, group, is_crowd, is_void)
    is_outside = _is_outside(_areas(xyxy))[:, None, :]
    is_true = np.zeros((len(row), NUM_CRITERIA), bool)
    is_ignored = np.zeros((len(row), NUM_CRITERIA), bool)
    is_true[:, :VOC_CRITERION] = (has_match & ~is_on_void).reshape(-1, NUM_COCO_CRITERIA)
    is_ignored[:, :VOC_CRITERION] = (is_on_void | (~has_match & is_outside)).reshape(
        -1, NUM_COCO_CRITERIA
    )
    is_true[:, VOC_CRITERION], is_ignored[:, VOC_CRITERION] = _voc(pairs, is_crowd, len(row))
    return Matches(row, rank, is_true, is_ignored, np.column_stack([~is_void, ~is_crowd]))


def _overlapping(
    xyxy: np.ndarray,  # (M, 4)
    class_id: np.ndarray,  # (M,)
    image: np.ndarray,  # (M,) ascending
    truth: GroundTruthBoxes,
    is_crowd: np.ndarray,  # (N,)
) -> _Pairs:
    num_classes = max(class_id.max(initial=0), truth.class_id.max(initial=0)) + 1
    key = image.astype(np.int64) * num_classes + class_id
    true_key = truth.image_index.astype(np.int64) * num_classes + truth.class_id
    true_row = np.argsort(true_key, kind="stable")  # of one image and class in the order given
    start, end = (np.searchsorted(true_key[true_row], key, side) for side in ("left", "right"))
    ends = np.cumsum(end - start)  # of each detection's pairs
    none = np.zeros(0, np.int64)
    parts = [(none, none, none.astype(np.float64), none.astype(np.float64))]
    first = 0
    while first < len(key):
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + _PAIRS, "right")), first + 1)
        counts = (end - start)[first:last]
        found = np.repeat(np.arange(first, last), counts)
        row = true_row[np.repeat(start[first:last], counts) + _place_in_run(found)]
        parts.append(_near(found, row, xyxy[found], truth.xyxy[row], is_crowd[row]))
        first = last
    return _Pairs(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _near(
    found: np.ndarray,  # (P,)
    truth: np.ndarray,  # (P,)
    xyxy: np.ndarray,  # (P, 4)
    true_xyxy: np.ndarray,  # (P, 4)
    is_crowd: np.ndarray,  # (P,)
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # each (Q,)
    """Return the pairs that overlap by half or more; IoU as in `cvbatch.geometry.boxes.iou`."""
    a, b = xyxy.astype(np.float64), true_xyxy.astype(np.float64)
    side = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
    shared = side[:, 0] * side[:, 1]
    area = _areas(xyxy)
    union = area + _areas(true_xyxy) - shared
    ordinary = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    inside = np.divide(shared, area, out=np.zeros_like(shared), where=area > 0)
    overlap = np.where(is_crowd, inside, ordinary)
    is_near = np.maximum(ordinary, overlap) >= _MIN_IOU
    return found[is_near], truth[is_near], ordinary[is_near], overlap[is_near]


def _coco(
    pairs: _Pairs,
    group: np.ndarray,  # (M,) ascending: equal in one image and class
    is_crowd: np.ndarray,  # (N,)
    is_void: np.ndarray,  # (N, A)
) -> tuple[np.ndarray, np.ndarray]:  # (M, T, A) bool: took a truth; took one that is ignored
    """Go through all images and classes at once, in each from the best detection down."""
    shape = (len(IOU_THRESHOLDS), len(AREA_RANGES))
    has_match, is_on_void = np.zeros((2, len(group), *shape), bool)
    is_taken = np.zeros((len(is_crowd), *shape), bool)
    rivals, of_rival = np.unique(pairs.found, return_inverse=True)
    turn = _place_in_run(group[rivals])[of_rival]
    order = np.lexsort((pairs.truth, pairs.coco_overlap, pairs.found, turn))
    found, truth, overlap = pairs.found[order], pairs.truth[order], pairs.coco_overlap[order]
    ends = np.cumsum(np.bincount(turn)).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        detection, t, count = found[start:end], truth[start:end], end - start
        is_free = ~is_taken[t] | is_crowd[t, None, None]  # (P, T, A)
        is_free &= overlap[start:end, None, None] >= IOU_THRESHOLDS[:, None]
        # Rows of one detection stand by overlap, so the largest number is the one to take;
        # truths that count are lifted above all that are ignored.
        worth = np.arange(count)[:, None] + np.where(is_void[t], 0, count)  # (P, A)
        first = np.flatnonzero(_place_in_run(detection) == 0)
        best = np.maximum.reduceat(np.where(is_free, worth[:, None, :], -1), first)
        d, i, a = np.nonzero(best >= 0)
        taken = t[best[d, i, a] % count]
        is_taken[taken, i, a] = True
        has_match[detection[first[d]], i, a] = True
        is_on_void[detection[first[d]], i, a] = is_void[taken, a]
    return has_match, is_on_void


def _voc(
    pairs: _Pairs,
    is_crowd: np.ndarray,  # (N,)
    num_found: int,
) -> tuple[np.ndarray, np.ndarray]:  # (M,) bool: right; ignored
    near = np.flatnonzero(pairs.iou >= _MIN_IOU)
    order = near[np.lexsort((pairs.truth[near], -pairs.iou[near], pairs.found[near]))]
    order = order[_place_in_run(pairs.found[order]) == 0]
    found, truth = pairs.found[order], pairs.truth[order]
    is_true, is_ignored = np.zeros((2, num_found), bool)
    is_ignored[found[is_crowd[truth]]] = True
    _, first_to_come = np.unique(truth, return_index=True)
    is_true[found[first_to_come]] = True
    return is_true & ~is_ignored, is_ignored


def _place_in_run(values: np.ndarray) -> np.ndarray:  # (N,) → (N,) int64
    """Return 0, 1, 2, ... within each run of equal neighbours."""
    place = np.arange(len(values))
    is_first = np.ones(len(values), bool)
    is_first[1:] = values[1:] != values[:-1]
    in_run: np.ndarray = place - np.maximum.accumulate(np.where(is_first, place, 0))
    return in_run


def _areas(xyxy: np.ndarray) -> np.ndarray:  # (N, 4) → (N,) float64
    sides = np.maximum(xyxy[:, 2:].astype(np.float64) - xyxy[:, :2], 0)
    area: np.ndarray = sides[:, 0] * sides[:, 1]
    return area


def _is_outside(area: np.ndarray) -> np.ndarray:  # (N,) → (N, A) bool
    low, high = np.array(list(AREA_RANGES.values())).T
    is_outside: np.ndarray = (area[:, None] < low) | (area[:, None] > high)
    return is_outside
