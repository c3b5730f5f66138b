"""Average precision of detections, COCO's and Pascal VOC's, from parts that merge.

A part holds each detection with its score and the verdicts on it. What a verdict is depends on one
image only, so parts are made where the images are; curves are drawn when all have come together.
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
    summed,
)
from cvbatch.metrics.box_matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    NUM_CRITERIA,
    VOC_CRITERION,
    GroundTruthBoxes,
    match_boxes,
)

RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100  # of an image and class, in COCO's figures; VOC's has no limit
RECALL_LIMITS = (1, 10, MAX_DETECTIONS)  # best detections of an image and class that recall sees
_RECORDS = ("class_id", "score", "rank", "is_true", "is_ignored")
_BITS = np.int64(1) << np.arange(NUM_CRITERIA)


class Curves(NamedTuple):
    """What the summary is made of; NaN for a class without objects in the range of area."""

    precision: np.ndarray  # (T, 101, C, A) the best at that recall or more
    recall: np.ndarray  # (T, C, A, 3) reached by the best 1, 10 and 100
    voc_precision: np.ndarray  # (11, C) likewise, by VOC's rule


@dataclass(frozen=True)
class AveragePrecision(Metric):
    """Detections with the verdicts on them, and how many objects there were.

    Rows are ordered by class, score (highest first), image key and rank, whatever way the images
    came, so equal scores fall in one order. Verdicts are bits of one number: bit t · A + a is
    COCO's at `IOU_THRESHOLDS[t]` in the a-th of `AREA_RANGES`, the last is VOC's.
    """

    num_classes: int
    image_key: np.ndarray = field(metadata=summed(np.str_))  # (I,) ascending, all different
    num_objects: np.ndarray = field(metadata=summed(np.int64))  # (C, A + 1) by area; for VOC
    image_index: np.ndarray = field(metadata=summed(np.int64))  # (M,) into image_key
    class_id: np.ndarray = field(metadata=summed(np.int32))  # (M,)
    score: np.ndarray = field(metadata=summed(np.float64))  # (M,)
    rank: np.ndarray = field(metadata=summed(np.int32))  # (M,) from 0, in the image and class
    is_true_positive: np.ndarray = field(metadata=summed(np.int64))  # (M,) bits
    is_ignored: np.ndarray = field(metadata=summed(np.int64))  # (M,) bits

    @classmethod
    def empty(cls, num_classes: int) -> Self:
        """Return the score of no image."""
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

    def add(self, image_key: Sequence[str], found: Boxes, truth: GroundTruthBoxes) -> Self:
        """Return the score with these images in it.

        image_key: names each image that both `image_index` count, also one without boxes, and
        decides between equal scores of two images. Adding copies what is there: of many batches
        make a part each and merge them once.

        Raises:
            ValueError: a number is not finite, a class unknown, or an image was seen before.
        """
        require_finite(found.xyxy, "corner of a detection")
        require_finite(found.score, "score of a detection")
        require_finite(truth.xyxy, "corner of a true box")
        require_class_ids(found.class_id, self.num_classes)
        require_class_ids(truth.class_id, self.num_classes)
        verdicts = match_boxes(found, truth)
        num_objects = np.zeros_like(self.num_objects)
        np.add.at(num_objects, truth.class_id, verdicts.counts_as_object)
        part = replace(
            self,
            image_key=np.array(image_key, np.str_),
            num_objects=num_objects,
            image_index=found.image_index[verdicts.row],
            class_id=found.class_id[verdicts.row],
            score=found.score[verdicts.row].astype(np.float64) + 0.0,  # −0 becomes 0
            rank=verdicts.rank,
            is_true_positive=verdicts.is_true_positive @ _BITS,
            is_ignored=verdicts.is_ignored @ _BITS,
        )
        return self.merge(part)

    def merge(self, *others: Self) -> Self:
        """Return the score of all the images.

        Raises:
            ValueError: the numbers of classes differ, or an image is in two of the scores.
        """
        self.require_same_settings(others)
        parts = (self, *others)
        keys = np.concatenate([part.image_key for part in parts])
        image_key, place = np.unique(keys, return_inverse=True)
        if len(image_key) < len(keys):
            twice = image_key[np.bincount(place).argmax()]
            raise ValueError(
                f"the image {str(twice)!r} is there twice: each image must be counted once; merge "
                "scores of different images"
            )
        offsets = np.cumsum([0, *(len(part.image_key) for part in parts[:-1])])
        image_index = place[
            np.concatenate([p.image_index + at for p, at in zip(parts, offsets, strict=True)])
        ]
        records: dict[str, Any] = {
            n: np.concatenate([getattr(p, n) for p in parts]) for n in _RECORDS
        }
        order = np.lexsort((records["rank"], image_index, -records["score"], records["class_id"]))
        return replace(
            self,
            image_key=image_key,
            num_objects=np.sum([part.num_objects for part in parts], axis=0),
            image_index=image_index[order],
            **{n: values[order].astype(getattr(self, n).dtype) for n, values in records.items()},
        )

    def curves(self) -> Curves:
        """Return precision over recall for every IoU, class and range of area."""
        return self._drawn

    @cached_property
    def _drawn(self) -> Curves:
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
        is_true, is_ignored, rank = self._verdicts(k, t * len(AREA_RANGES) + a)
        num_objects = self.num_objects[k, a]
        hits = np.cumsum(is_true[~is_ignored & (rank < MAX_DETECTIONS)])
        places = np.searchsorted(hits / num_objects, RECALLS)
        reached = [is_true[rank < limit].sum() for limit in RECALL_LIMITS]
        return _best_from(hits)[places], np.array(reached) / num_objects

    def _voc_curve(self, k: int) -> np.ndarray:  # (11,)
        is_true, is_ignored, _ = self._verdicts(k, VOC_CRITERION)
        hits = np.cumsum(is_true[~is_ignored])
        # In whole numbers: as floats, 3 / 10 is not 3 × 0.1.
        places = np.searchsorted(hits * 10, np.arange(11) * self.num_objects[k, -1])
        precision: np.ndarray = _best_from(hits)[places]
        return precision

    def _verdicts(self, k: int, bit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, of the class's detections, is_true, is_ignored and rank, each (m,)."""
        rows = self._rows_of(k)
        mask = _BITS[bit]
        is_true, is_ignored = self.is_true_positive[rows] & mask, self.is_ignored[rows] & mask
        return is_true != 0, is_ignored != 0, self.rank[rows]

    def _rows_of(self, k: int) -> slice:
        """Return where a class's detections stand."""
        # Of the column's own type: NumPy would make a copy of the column for every other.
        ends = np.array([k, k + 1], self.class_id.dtype)
        return slice(*np.searchsorted(self.class_id, ends).tolist())

    def per_class(self) -> dict[str, np.ndarray]:  # each (C,)
        """Return ap, ap50, ap75 and voc_ap, NaN for a class without objects, and their number."""
        return _per_class(self.curves()) | {"num_objects": self.num_objects[:, 0]}

    def resampled(
        self,
        weight: np.ndarray,  # (I,) int64: how often each image counts
        num_objects: np.ndarray,  # (C,) so counted, without crowds
    ) -> dict[str, np.ndarray]:  # each (C,)
        """Return `ap`, `ap50`, `ap75` and `voc_ap` of `per_class` over a replicate of the images.

        They are those of images that are there as often as their weights say. The copies of a
        detection stand side by side, so the best precision from there on is that behind the last.
        """
        precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), self.num_classes), np.nan)
        voc_precision = np.full((11, self.num_classes), np.nan)
        bits = [t * len(AREA_RANGES) for t in range(len(IOU_THRESHOLDS))]
        of_row = weight[self.image_index]
        for k in np.flatnonzero(num_objects).tolist():
            rows = self._rows_of(k)
            ranked = of_row[rows] * (self.rank[rows] < MAX_DETECTIONS)
            for t, bit in enumerate(bits):
                best, hits = self._weighted(rows, bit, ranked)
                places = np.searchsorted(hits / num_objects[k], RECALLS)
                precision[t, :, k] = best[places]
            best, hits = self._weighted(rows, VOC_CRITERION, of_row[rows])
            voc_precision[:, k] = best[np.searchsorted(hits * 10, np.arange(11) * num_objects[k])]
        return _means(precision, voc_precision)

    def _weighted(
        self,
        rows: slice,
        bit: int,
        weight: np.ndarray,  # (m,)
    ) -> tuple[np.ndarray, np.ndarray]:  # (n + 1,) best precision, (n,) hits up to there
        """Return what `_best_from` says of detections that count so often."""
        is_said = (weight > 0) & (self.is_ignored[rows] & _BITS[bit] == 0)
        said = weight[is_said]
        hits = np.cumsum(said * (self.is_true_positive[rows][is_said] & _BITS[bit] != 0))
        precision = np.append(hits / np.cumsum(said), 0.0)
        return np.maximum.accumulate(precision[::-1])[::-1], hits

    def curve(self, k: int) -> np.ndarray:  # (101,) float64
        """Return COCO's precision over the recalls for a class at IoU .50; NaN without objects."""
        precision: np.ndarray = self.curves().precision[0, :, k, 0]
        return precision

    def as_dict(self) -> dict[str, float | None]:
        """Return the twelve figures of COCO and VOC's; None where there are no objects.

        ap (mean over the IoUs .50, .55, ..., .95), ap50, ap75, ap_small, ap_medium, ap_large;
        ar_1, ar_10, ar_100 (recall of so many boxes an image and class), ar_small, ar_medium,
        ar_large; voc_ap (IoU .50, at the recalls 0, .1, ..., 1). Means over the classes that
        have objects.
        """
        curves = self.curves()
        areas = list(AREA_RANGES)
        result = {name: nan_mean(values) for name, values in _per_class(curves).items()}
        for name in areas[1:]:
            result[f"ap_{name}"] = nan_mean(curves.precision[..., areas.index(name)])
            result[f"ar_{name}"] = nan_mean(curves.recall[:, :, areas.index(name), -1])
        for place, limit in enumerate(RECALL_LIMITS):
            result[f"ar_{limit}"] = nan_mean(curves.recall[:, :, areas.index("all"), place])
        return nan_to_none(result)


def average_precision_of_image(
    image_key: str,
    xyxy: np.ndarray,  # (M, 4)
    score: np.ndarray,  # (M,)
    class_id: np.ndarray,  # (M,)
    truth_xyxy: np.ndarray,  # (N, 4)
    truth_class_id: np.ndarray,  # (N,)
    *,
    num_classes: int,
    is_crowd: np.ndarray | None = None,  # (N,) bool
    area: np.ndarray | None = None,  # (N,)
) -> AveragePrecision:
    """Return the score of one image; the arrays are those of `Boxes` and `TrueBoxes`."""
    found = Boxes(xyxy, score, class_id, np.zeros(len(xyxy), np.int64))
    none = np.zeros(len(truth_xyxy), np.int64)
    truth = GroundTruthBoxes(truth_xyxy, truth_class_id, none, is_crowd, area)
    return AveragePrecision.empty(num_classes).add([image_key], found, truth)


def _best_from(hits: np.ndarray) -> np.ndarray:  # (n,) → (n + 1,) float64
    """Return the best precision after so many detections or more; 0 behind the last."""
    precision = np.append(hits / np.arange(1, len(hits) + 1), 0.0)
    return np.maximum.accumulate(precision[::-1])[::-1]


def _per_class(curves: Curves) -> dict[str, np.ndarray]:  # each (C,)
    return _means(curves.precision[..., 0], curves.voc_precision)


def _means(
    precision: np.ndarray,  # (T, 101, C), any area
    voc_precision: np.ndarray,  # (11, C)
) -> dict[str, np.ndarray]:  # each (C,)
    at = {round(100 * threshold): t for t, threshold in enumerate(IOU_THRESHOLDS)}
    return {
        "ap": precision.mean(axis=(0, 1)),
        "ap50": precision[at[50]].mean(axis=0),
        "ap75": precision[at[75]].mean(axis=0),
        "voc_ap": voc_precision.mean(axis=0),
    }
