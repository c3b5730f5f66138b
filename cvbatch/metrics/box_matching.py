"""Match detections to ground truth by the COCO rule and by the Pascal VOC rule.

The overlap of two objects is that of their boxes or of their masks.

A criterion is one combination of a rule, an IoU threshold and an area range: the COCO rule has 40
(10 thresholds, 4 ranges), the VOC rule has one. Matching needs the boxes of one image only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cvbatch.core.types import Boxes
from cvbatch.metrics.mask_overlap import RunMasks, intersections

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # T
AREA_RANGES = {  # A: pixels², both ends included
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
NUM_COCO_CRITERIA = len(IOU_THRESHOLDS) * len(AREA_RANGES)  # criterion t · A + a
VOC_CRITERION = NUM_COCO_CRITERIA  # the last criterion
NUM_CRITERIA = NUM_COCO_CRITERIA + 1
_MIN_IOU = 0.5  # of both rules
_MAX_PAIRS = 1 << 20  # whose overlaps are computed at once


@dataclass(frozen=True)
class GroundTruthBoxes:
    """Labelled objects of images, as half-open boxes."""

    xyxy: np.ndarray  # (N, 4) pixels
    class_id: np.ndarray  # (N,)
    image_index: np.ndarray  # (N,)
    is_crowd: np.ndarray | None = None  # (N,) bool; VOC's "difficult". None: no object is
    area: np.ndarray | None = None  # (N,) pixels², of the outline. None, NaN: of box or mask

    @property
    def crowds(self) -> np.ndarray:  # (N,) bool
        """`is_crowd`; False for all objects if it is None."""
        none = np.zeros(len(self.xyxy), bool)
        return none if self.is_crowd is None else np.asarray(self.is_crowd, bool)


class Matches(NamedTuple):
    """Detections per criterion; rows by image, then class, best score first."""

    row: np.ndarray  # (M,) int64, of the detection in the input
    rank: np.ndarray  # (M,) int64, 0 for the best of its image and class
    is_true_positive: np.ndarray  # (M, 41) bool
    is_ignored: np.ndarray  # (M, 41) bool: neither a true nor a false positive
    counts_as_object: np.ndarray  # (N, 5) bool: of the ground truth, per area range and for VOC
    match: np.ndarray  # (M, 40) int32, row of the object taken by the COCO rule; −1: none


class MaskPair(NamedTuple):
    """Masks of all detections and of all objects, in their order."""

    detections: RunMasks  # M
    truth: RunMasks  # N


class _Shapes(NamedTuple):
    """Areas of the sorted detections and of the objects, and their intersections."""

    area: np.ndarray  # (M,) float64
    true_area: np.ndarray  # (N,) float64
    shared: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (P,), (P,) → (P,) of pairs


class _Pairs(NamedTuple):
    """Detections and objects of the same group with an overlap of at least half."""

    detection: np.ndarray  # (P,) int64, ascending: row of the sorted detections
    truth: np.ndarray  # (P,) int64
    iou: np.ndarray  # (P,) float64
    coco_overlap: np.ndarray  # (P,) float64: with a crowd, the share of the detection inside it


def match_boxes(
    detections: Boxes, truth: GroundTruthBoxes, masks: MaskPair | None = None
) -> Matches:
    """Match every detection to the ground truth by all criteria.

    COCO rule: in the order of their scores, detections take the free object with the largest
    overlap, of equals the last. An ignored object (a crowd, or an area out of the range) is taken
    only if no other is free; a crowd remains free. A detection is ignored if it takes an ignored
    object, or if it takes none and its own area is out of the range.

    VOC rule: each detection belongs to the object with the largest overlap, of equals the first.
    The best detection of an object is a true positive, the others are false positives; all
    detections of a crowd are ignored. Boxes of the VOC kit include their last pixel and equal these
    half-open ones.

    Args:
        detections: in any order; a box with swapped corners has area 0.
        truth: with the same `image_index`, in any order.
        masks: whose areas and overlaps count instead of those of boxes.

    Source: pycocotools, COCOeval.evaluateImg; Pascal VOC development kit, VOCevaldet.
    """
    row = np.lexsort((-detections.score, detections.class_id, detections.image_index))
    shapes = _box_shapes(detections.xyxy[row], truth.xyxy)
    if masks is not None:
        shapes = _mask_shapes(masks, row)
    group, true_group = _image_and_class(detections, truth)
    group, is_crowd = group[row], truth.crowds
    area = shapes.true_area
    if truth.area is not None:
        area = np.where(np.isnan(truth.area), area, truth.area)
    is_ignored_truth = is_crowd[:, None] | _is_outside(area)  # (N, A)

    pairs = _overlapping_pairs(shapes, group, true_group, is_crowd)
    match, has_ignored_match = _match_coco(pairs, group, is_crowd, is_ignored_truth)
    has_match = match >= 0
    is_outside = _is_outside(shapes.area)[:, None, :]
    coco_true = has_match & ~has_ignored_match
    coco_ignored = has_ignored_match | (~has_match & is_outside)
    voc_true, voc_ignored = _match_voc(pairs, is_crowd, len(row))
    return Matches(
        row,
        _position_in_run(group),
        np.column_stack([coco_true.reshape(-1, NUM_COCO_CRITERIA), voc_true]),
        np.column_stack([coco_ignored.reshape(-1, NUM_COCO_CRITERIA), voc_ignored]),
        np.column_stack([~is_ignored_truth, ~is_crowd]),
        match.reshape(-1, NUM_COCO_CRITERIA),
    )


def match_across_classes(
    detections: Boxes, truth: GroundTruthBoxes, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:  # (M,) int64, (M,) bool
    """Return the object of each detection, whatever its class, and which detections are ignored.

    First detections take objects of their own class by the COCO rule, so that the true positives
    are those of `match_boxes`; then the free pairs of different classes match, the largest overlap
    first. A detection without an object that is in a crowd of its class is ignored.

    Args:
        detections: M, in any order.
        truth: with the same `image_index`, in any order. No detection takes a crowd.
        iou_threshold: the nearest one of `IOU_THRESHOLDS` is used.

    Returns:
        Index of the object, −1 for none; whether the detection is ignored.
    """
    matches = match_boxes(detections, truth)
    criterion = coco_criterion(iou_threshold)
    matched, is_ignored = np.full(len(detections.score), -1), np.zeros(len(detections.score), bool)
    is_hit = matches.is_true_positive[:, criterion]
    matched[matches.row[is_hit]] = matches.match[is_hit, criterion]
    is_ignored[matches.row] = matches.is_ignored[:, criterion]
    is_taken = truth.crowds.copy()
    is_taken[matched[matched >= 0]] = True

    row = np.argsort(detections.image_index, kind="stable")
    pairs = _overlapping_pairs(
        _box_shapes(detections.xyxy[row], truth.xyxy),
        detections.image_index[row],
        truth.image_index,
        np.zeros_like(is_taken),
    )
    detection, true_box = row[pairs.detection], pairs.truth
    is_free = (matched[detection] < 0) & ~is_ignored[detection] & ~is_taken[true_box]
    is_free &= pairs.iou >= IOU_THRESHOLDS[criterion // len(AREA_RANGES)]
    order = np.lexsort((true_box, detection, -pairs.iou))
    for p in order[is_free[order]]:
        if matched[detection[p]] < 0 and not is_taken[true_box[p]]:
            matched[detection[p]], is_taken[true_box[p]] = true_box[p], True
    return matched, is_ignored


def coco_criterion(iou_threshold: float) -> int:
    """Return the COCO criterion of the nearest IoU threshold, for objects of any size."""
    return int(np.argmin(np.abs(IOU_THRESHOLDS - iou_threshold))) * len(AREA_RANGES)


def _image_and_class(
    detections: Boxes, truth: GroundTruthBoxes
) -> tuple[np.ndarray, np.ndarray]:  # (M,), (N,) int64
    """Return numbers of detections and objects, equal where image and class are."""
    num_classes = max(side.class_id.max(initial=0) for side in (detections, truth)) + 1
    number, true_number = (
        side.image_index.astype(np.int64) * num_classes + side.class_id
        for side in (detections, truth)
    )
    return number, true_number


def _box_shapes(
    xyxy: np.ndarray,  # (M, 4)
    true_xyxy: np.ndarray,  # (N, 4)
) -> _Shapes:
    def shared(detection: np.ndarray, truth: np.ndarray) -> np.ndarray:
        a, b = xyxy[detection].astype(np.float64), true_xyxy[truth].astype(np.float64)
        sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
        area: np.ndarray = sides[:, 0] * sides[:, 1]
        return area

    return _Shapes(box_areas(xyxy), box_areas(true_xyxy), shared)


def _mask_shapes(
    masks: MaskPair,
    row: np.ndarray,  # (M,) of the sorted detections
) -> _Shapes:
    def shared(detection: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return intersections(masks.detections, masks.truth, row[detection], truth)

    return _Shapes(masks.detections.areas[row], masks.truth.areas, shared)


def _overlapping_pairs(
    shapes: _Shapes,
    group: np.ndarray,  # (M,) ascending
    true_group: np.ndarray,  # (N,)
    is_crowd: np.ndarray,  # (N,)
) -> _Pairs:
    """Return the pairs of the same group that overlap by at least half."""
    true_row = np.argsort(true_group, kind="stable")
    start, end = (np.searchsorted(true_group[true_row], group, side) for side in ("left", "right"))
    ends = np.cumsum(end - start)  # of the pairs of each detection
    none = np.zeros(0, np.int64)
    parts = [(none, none, none.astype(np.float64), none.astype(np.float64))]
    first = 0
    while first < len(group):
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + _MAX_PAIRS, "right")), first + 1)
        counts = (end - start)[first:last]
        detection = np.repeat(np.arange(first, last), counts)
        row = true_row[np.repeat(start[first:last], counts) + _position_in_run(detection)]
        parts.append(_half_overlaps(detection, row, shapes, is_crowd))
        first = last
    return _Pairs(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _half_overlaps(
    detection: np.ndarray,  # (P,)
    truth: np.ndarray,  # (P,)
    shapes: _Shapes,
    is_crowd: np.ndarray,  # (N,)
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # each (Q,)
    """Return the pairs that overlap by at least half; IoU as in `cvbatch.geometry.boxes.iou`."""
    shared = shapes.shared(detection, truth)
    area = shapes.area[detection]
    union = area + shapes.true_area[truth] - shared
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    share = np.divide(shared, area, out=np.zeros_like(shared), where=area > 0)
    coco_overlap = np.where(is_crowd[truth], share, iou)
    is_half = np.maximum(iou, coco_overlap) >= _MIN_IOU
    return detection[is_half], truth[is_half], iou[is_half], coco_overlap[is_half]


def _match_coco(
    pairs: _Pairs,
    group: np.ndarray,  # (M,) ascending: equal in one image and class
    is_crowd: np.ndarray,  # (N,)
    is_ignored_truth: np.ndarray,  # (N, A)
) -> tuple[np.ndarray, np.ndarray]:  # (M, T, A): object or −1, int32; whether it is ignored, bool
    """Match the n-th detection of every image and class in step n, so that steps are vectorised."""
    shape = (len(IOU_THRESHOLDS), len(AREA_RANGES))
    match = np.full((len(group), *shape), -1, np.int32)
    has_ignored_match = np.zeros(match.shape, bool)
    is_taken = np.zeros((len(is_crowd), *shape), bool)
    candidates, candidate_of_pair = np.unique(pairs.detection, return_inverse=True)
    step = _position_in_run(group[candidates])[candidate_of_pair]
    order = np.lexsort((pairs.truth, pairs.coco_overlap, pairs.detection, step))
    detections, truths = pairs.detection[order], pairs.truth[order]
    overlap = pairs.coco_overlap[order]
    ends = np.cumsum(np.bincount(step)).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        detection, truth, count = detections[start:end], truths[start:end], end - start
        is_free = ~is_taken[truth] | is_crowd[truth, None, None]  # (P, T, A)
        is_free &= overlap[start:end, None, None] >= IOU_THRESHOLDS[:, None]
        # Pairs of one detection are sorted by overlap, so the largest number is the best match;
        # objects that count have larger numbers than all ignored ones.
        priority = np.arange(count)[:, None] + np.where(is_ignored_truth[truth], 0, count)  # (P, A)
        first = np.flatnonzero(_position_in_run(detection) == 0)
        best = np.maximum.reduceat(np.where(is_free, priority[:, None, :], -1), first)
        d, i, a = np.nonzero(best >= 0)
        taken = truth[best[d, i, a] % count]
        is_taken[taken, i, a] = True
        match[detection[first[d]], i, a] = taken
        has_ignored_match[detection[first[d]], i, a] = is_ignored_truth[taken, a]
    return match, has_ignored_match


def _match_voc(
    pairs: _Pairs,
    is_crowd: np.ndarray,  # (N,)
    num_detections: int,
) -> tuple[np.ndarray, np.ndarray]:  # (M,) bool: true positives; ignored
    half = np.flatnonzero(pairs.iou >= _MIN_IOU)
    order = half[np.lexsort((pairs.truth[half], -pairs.iou[half], pairs.detection[half]))]
    order = order[_position_in_run(pairs.detection[order]) == 0]
    detection, truth = pairs.detection[order], pairs.truth[order]
    is_true_positive, is_ignored = np.zeros((2, num_detections), bool)
    is_ignored[detection[is_crowd[truth]]] = True
    _, first = np.unique(truth, return_index=True)
    is_true_positive[detection[first]] = True
    return is_true_positive & ~is_ignored, is_ignored


def _position_in_run(values: np.ndarray) -> np.ndarray:  # (N,) → (N,) int64
    """Return 0, 1, 2, ... within each run of equal neighbours."""
    position = np.arange(len(values))
    is_first = np.ones(len(values), bool)
    is_first[1:] = values[1:] != values[:-1]
    in_run: np.ndarray = position - np.maximum.accumulate(np.where(is_first, position, 0))
    return in_run


def box_areas(xyxy: np.ndarray) -> np.ndarray:  # (N, 4) → (N,) float64
    """Return the areas of half-open boxes; 0 for swapped corners."""
    sides = np.maximum(xyxy[:, 2:].astype(np.float64) - xyxy[:, :2], 0)
    area: np.ndarray = sides[:, 0] * sides[:, 1]
    return area


def _is_outside(area: np.ndarray) -> np.ndarray:  # (N,) → (N, A) bool
    low, high = np.array(list(AREA_RANGES.values())).T
    is_outside: np.ndarray = (area[:, None] < low) | (area[:, None] > high)
    return is_outside
