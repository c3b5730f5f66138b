"""COCO and Pascal VOC average precision of detections, from mergeable parts.

A part stores the score of each detection and the criteria by which it is a true positive. Matching
needs one image only, so each worker computes a part of its images; the precision-recall curves are
computed from the merged parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np

from cvbatch.core.types import Boxes
from cvbatch.metrics.base import (
    Metric,
    nan_mean,
    nan_to_none,
    require_class_ids,
    require_finite,
    rows_of_class,
    summed,
)
from cvbatch.metrics.box_matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    NUM_CRITERIA,
    VOC_CRITERION,
    GroundTruthBoxes,
    MaskPair,
    coco_criterion,
    match_boxes,
)
from cvbatch.metrics.score_curves import ScoreCurve

RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100  # of an image and class, in COCO's metrics; VOC has no limit
RECALL_LIMITS = (1, 10, MAX_DETECTIONS)  # detections of an image and class that COCO's recall uses
_RECORDS = ("class_id", "score", "rank", "is_true_positive", "is_ignored")
_BITS = np.int64(1) << np.arange(NUM_CRITERIA)


class Curves(NamedTuple):
    """Precision and recall; NaN for a class without objects in the area range."""

    precision: np.ndarray  # (T, 101, C, A) maximum at that recall or more
    recall: np.ndarray  # (T, C, A, 3) of the best 1, 10 and 100 detections
    voc_precision: np.ndarray  # (11, C) maximum at that recall or more, by the VOC rule


@dataclass(frozen=True)
class AveragePrecision(Metric):
    """Detections with their match results, and the number of objects.

    Rows are sorted by class, descending score, image key and rank, so equal scores have the same
    order however the images were split. Match results are bits: bit c belongs to criterion c of
    `cvbatch.metrics.box_matching`.
    """

    num_classes: int
    image_key: np.ndarray = field(metadata=summed(np.str_))  # (I,) ascending, unique
    num_objects: np.ndarray = field(metadata=summed(np.int64))  # (C, A + 1) per area range; for VOC
    image_index: np.ndarray = field(metadata=summed(np.int64))  # (M,) into image_key
    class_id: np.ndarray = field(metadata=summed(np.int32))  # (M,)
    score: np.ndarray = field(metadata=summed(np.float64))  # (M,)
    rank: np.ndarray = field(metadata=summed(np.int32))  # (M,) from 0, within the image and class
    is_true_positive: np.ndarray = field(metadata=summed(np.int64))  # (M,) bits
    is_ignored: np.ndarray = field(metadata=summed(np.int64))  # (M,) bits

    @classmethod
    def empty(cls, num_classes: int) -> Self:
        """Return the metric of no images."""
        none = np.zeros(0, np.int64)
        return cls(
            num_classes,
            image_key=none.astype(np.str_),
            num_objects=np.zeros((num_classes, len(AREA_RANGES) + 1), np.int64),
            image_index=none,
            class_id=none.astype(np.int32),
            score=none.astype(np.float64),
            rank=none.astype(np.int32),
            is_true_positive=none,
            is_ignored=none,
        )

    def add(
        self,
        image_key: Sequence[str],
        detections: Boxes,
        truth: GroundTruthBoxes,
        masks: MaskPair | None = None,
    ) -> Self:
        """Return the metric with these images added.

        All stored rows are copied: for many batches, compute a part of each and merge them once.

        Args:
            image_key: unique name of each image, also of those without boxes; it gives the order of
                equal scores of different images.
            detections: `image_index` refers to `image_key`.
            truth: likewise.
            masks: whose overlaps count instead of those of boxes (COCO's iouType segm).

        Raises:
            ValueError: a value is not finite, a class id is unknown, or an image was added before.
        """
        require_finite(detections.xyxy, "corner of a detection")
        require_finite(detections.score, "score of a detection")
        require_finite(truth.xyxy, "corner of a true box")
        require_class_ids(detections.class_id, self.num_classes)
        require_class_ids(truth.class_id, self.num_classes)
        matches = match_boxes(detections, truth, masks)
        num_objects = np.zeros_like(self.num_objects)
        np.add.at(num_objects, truth.class_id, matches.counts_as_object)
        part = replace(
            self,
            image_key=np.array(image_key, np.str_),
            num_objects=num_objects,
            image_index=detections.image_index[matches.row],
            class_id=detections.class_id[matches.row],
            score=detections.score[matches.row].astype(np.float64) + 0.0,  # −0 becomes 0
            rank=matches.rank,
            is_true_positive=matches.is_true_positive @ _BITS,
            is_ignored=matches.is_ignored @ _BITS,
        )
        return self.merge(part)

    def merge(self, *others: Self) -> Self:
        """Return the metric over the images of all these metrics.

        Raises:
            ValueError: the numbers of classes differ, or two metrics have the same image.
        """
        self.require_same_settings(others)
        parts = (self, *others)
        keys = np.concatenate([part.image_key for part in parts])
        image_key, position = np.unique(keys, return_inverse=True)
        if len(image_key) < len(keys):
            duplicate = image_key[np.bincount(position).argmax()]
            raise ValueError(
                f"the image {str(duplicate)!r} occurs twice: each image must be counted once; "
                "merge metrics of different images"
            )
        offsets = np.cumsum([0, *(len(part.image_key) for part in parts[:-1])])
        old_index = [p.image_index + start for p, start in zip(parts, offsets, strict=True)]
        image_index = position[np.concatenate(old_index)]
        records: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in _RECORDS
        }
        order = np.lexsort((records["rank"], image_index, -records["score"], records["class_id"]))
        return replace(
            self,
            image_key=image_key,
            num_objects=np.sum([part.num_objects for part in parts], axis=0),
            image_index=image_index[order],
            **{
                name: values[order].astype(getattr(self, name).dtype)
                for name, values in records.items()
            },
        )

    @cached_property
    def curves(self) -> Curves:
        """Precision and recall for every IoU threshold, class and area range."""
        num_ious, num_areas = len(IOU_THRESHOLDS), len(AREA_RANGES)
        shape = (num_ious, len(RECALLS), self.num_classes, num_areas)
        precision = np.full(shape, np.nan)
        recall = np.full((num_ious, self.num_classes, num_areas, len(RECALL_LIMITS)), np.nan)
        voc_precision = np.full((11, self.num_classes), np.nan)
        for k in np.flatnonzero(self.num_objects.any(axis=1)).tolist():
            for a in np.flatnonzero(self.num_objects[k, :num_areas]).tolist():
                for t in range(num_ious):
                    precision[t, :, k, a], recall[t, k, a] = self._coco_curve(k, t, a)
            if self.num_objects[k, -1]:
                voc_precision[:, k] = self._voc_curve(k)
        return Curves(precision, recall, voc_precision)

    def _coco_curve(self, k: int, t: int, a: int) -> tuple[np.ndarray, np.ndarray]:  # (101,), (3,)
        is_true_positive, is_ignored, rank = self._matches(k, t * len(AREA_RANGES) + a)
        num_objects = self.num_objects[k, a]
        hits = np.cumsum(is_true_positive[~is_ignored & (rank < MAX_DETECTIONS)])
        positions = np.searchsorted(hits / num_objects, RECALLS)
        found = [is_true_positive[rank < limit].sum() for limit in RECALL_LIMITS]
        return _max_precision(hits)[positions], np.array(found) / num_objects

    def _voc_curve(self, k: int) -> np.ndarray:  # (11,)
        is_true_positive, is_ignored, _ = self._matches(k, VOC_CRITERION)
        hits = np.cumsum(is_true_positive[~is_ignored])
        # In whole numbers: as floats, 3 / 10 is not equal to 3 × 0.1.
        positions = np.searchsorted(hits * 10, np.arange(11) * self.num_objects[k, -1])
        precision: np.ndarray = _max_precision(hits)[positions]
        return precision

    def _matches(self, k: int, criterion: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return is_true_positive, is_ignored and rank of a class's detections, each (m,)."""
        rows = rows_of_class(self.class_id, k)
        bit = _BITS[criterion]
        is_true_positive = self.is_true_positive[rows] & bit != 0
        return is_true_positive, self.is_ignored[rows] & bit != 0, self.rank[rows]

    def per_class(self) -> dict[str, np.ndarray]:  # each (C,)
        """Return ap, ap50, ap75, voc_ap, recall (NaN without objects) and num_objects.

        recall: at IoU 0.5, of the best 100 detections of each image.
        """
        recall = self.curves.recall[0, :, 0, -1]
        return _per_class(self.curves) | {"recall": recall, "num_objects": self.num_objects[:, 0]}

    def resampled(
        self,
        weight: np.ndarray,  # (I,) int64
        num_objects: np.ndarray,  # (C,)
    ) -> dict[str, np.ndarray]:  # each (C,)
        """Return ap, ap50, ap75 and voc_ap of a bootstrap replicate of the images.

        They equal those of a data set in which each image occurs as often as its weight. Copies of
        a detection are neighbours, so the precision after the last copy is the relevant one.

        Args:
            weight: how often each image of `image_key` occurs in the replicate.
            num_objects: objects of each class in the replicate, without crowds.
        """
        precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), self.num_classes), np.nan)
        voc_precision = np.full((11, self.num_classes), np.nan)
        criteria = [t * len(AREA_RANGES) for t in range(len(IOU_THRESHOLDS))]
        row_weight = weight[self.image_index]
        for k in np.flatnonzero(num_objects).tolist():
            rows = rows_of_class(self.class_id, k)
            limited_weight = row_weight[rows] * (self.rank[rows] < MAX_DETECTIONS)
            for t, criterion in enumerate(criteria):
                best, hits = self._weighted_precision(rows, criterion, limited_weight)
                positions = np.searchsorted(hits / num_objects[k], RECALLS)
                precision[t, :, k] = best[positions]
            best, hits = self._weighted_precision(rows, VOC_CRITERION, row_weight[rows])
            positions = np.searchsorted(hits * 10, np.arange(11) * num_objects[k])
            voc_precision[:, k] = best[positions]
        return _means(precision, voc_precision)

    def _weighted_precision(
        self,
        rows: slice,
        criterion: int,
        weight: np.ndarray,  # (m,)
    ) -> tuple[np.ndarray, np.ndarray]:  # (n + 1,) maximum precision, (n,) cumulative hits
        """Return `_max_precision` of weighted detections, and their true positives."""
        bit = _BITS[criterion]
        is_counted = (weight > 0) & (self.is_ignored[rows] & bit == 0)
        counts = weight[is_counted]
        hits = np.cumsum(counts * (self.is_true_positive[rows][is_counted] & bit != 0))
        precision = np.append(hits / np.cumsum(counts), 0.0)
        return np.maximum.accumulate(precision[::-1])[::-1], hits

    def curve(self, k: int) -> np.ndarray:  # (101,) float64
        """Return COCO's precision of class `k` at `RECALLS`, IoU 0.5; NaN without objects."""
        precision: np.ndarray = self.curves.precision[0, :, k, 0]
        return precision

    def score_curve(self, k: int, iou_threshold: float) -> ScoreCurve:
        """Return the counts of class `k` at each of its scores, for objects of any size.

        Args:
            k: the class.
            iou_threshold: the nearest one of `IOU_THRESHOLDS` is used.
        """
        is_true_positive, is_ignored, _ = self._matches(k, coco_criterion(iou_threshold))
        score = self.score[rows_of_class(self.class_id, k)][~is_ignored]
        hits = is_true_positive[~is_ignored]
        return ScoreCurve.of(score, hits, np.ones_like(hits, int), int(self.num_objects[k, 0]))

    def as_dict(self) -> dict[str, float | None]:
        """Return COCO's twelve metrics and VOC's AP, as means over the classes with objects.

        ap (mean over the IoU thresholds .50, .55, ..., .95), ap50, ap75, ap_small, ap_medium,
        ap_large; ar_1, ar_10, ar_100 (recall of so many detections per image and class), ar_small,
        ar_medium, ar_large; voc_ap (IoU .50, at the recalls 0, .1, ..., 1). None where there are no
        objects.
        """
        curves = self.curves
        areas = list(AREA_RANGES)
        result = {name: nan_mean(values) for name, values in _per_class(curves).items()}
        for name in areas[1:]:
            result[f"ap_{name}"] = nan_mean(curves.precision[..., areas.index(name)])
            result[f"ar_{name}"] = nan_mean(curves.recall[:, :, areas.index(name), -1])
        for i, limit in enumerate(RECALL_LIMITS):
            result[f"ar_{limit}"] = nan_mean(curves.recall[:, :, areas.index("all"), i])
        return nan_to_none(result)


def _max_precision(hits: np.ndarray) -> np.ndarray:  # (n,) → (n + 1,) float64
    """Return the maximum precision after each number of detections or more; 0 after the last."""
    precision = np.append(hits / np.arange(1, len(hits) + 1), 0.0)
    return np.maximum.accumulate(precision[::-1])[::-1]


def _per_class(curves: Curves) -> dict[str, np.ndarray]:  # each (C,)
    return _means(curves.precision[..., 0], curves.voc_precision)


def _means(
    precision: np.ndarray,  # (T, 101, C), of all areas
    voc_precision: np.ndarray,  # (11, C)
) -> dict[str, np.ndarray]:  # each (C,)
    index = {round(100 * threshold): t for t, threshold in enumerate(IOU_THRESHOLDS)}
    return {
        "ap": precision.mean(axis=(0, 1)),
        "ap50": precision[index[50]].mean(axis=0),
        "ap75": precision[index[75]].mean(axis=0),
        "voc_ap": voc_precision.mean(axis=0),
    }
