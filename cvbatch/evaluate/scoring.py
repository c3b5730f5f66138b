"""Predictions are held against the truth here, some images at a time, by sums that merge.

Nothing here knows Ray: a piece of the work goes in, its scores come out, and what they come to does
not depend on how the images were cut into pieces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import SourceError
from cvbatch.core.types import VOID_CLASS, Boxes
from cvbatch.evaluate.join import Piece, read_piece
from cvbatch.images.masks import decode_png
from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.base import Score
from cvbatch.metrics.box_matching import AREA_RANGES, IOU_THRESHOLDS, TrueBoxes
from cvbatch.metrics.classification import Calibration, Confusion, MultiLabelPrecision, TopK
from cvbatch.metrics.counts import Tally, counted, image_weights

TASKS = {"labels": "classification", "mask": "segmentation", "boxes": "detection"}
MAX_CONFUSION_CLASSES = 1000  # beyond, the matrix is larger than all else
_SIDES = ("x_min", "y_min", "x_max", "y_max")
_NEVER = np.iinfo(np.int64).max  # a rank that no k reaches
_UNSAID = -np.finfo(np.float64).max  # what was not answered stands behind all that was
_RECORDS = (AveragePrecision, MultiLabelPrecision)  # grow with the images; merged once


@dataclass(frozen=True)
class Order:
    """What is scored, and how."""

    classes: dict[str, tuple[str, ...]]  # column → the true classes; the columns that are scored
    class_of: dict[str, np.ndarray]  # column → (P,) true class of each predicted one; −1: none
    ks: tuple[int, ...]
    is_multi_label: bool
    ignored: int | None  # class of the true masks
    score_threshold: float
    iou_threshold: float
    num_replicates: int
    seed: int


@dataclass
class Scored:
    """The scores of some images, by the names of their kinds, and what was odd with them."""

    scores: dict[str, Score] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)  # ids of images without an answer


@dataclass(frozen=True)
class _Rows:
    """Predicted rows and their truths, which stand in the same order, and what they come to."""

    order: Order
    said: pa.Table  # n rows
    truth: pa.Table  # n rows
    weights: np.ndarray  # (n, 1 + R)
    scored: Scored

    def of(self, column: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray, int]:
        """Return the answers of a column, their truths, and how many classes these have."""
        return self.said[column], self.truth[column], len(self.order.classes[column])

    def tally(self, num_classes: int) -> Tally:
        """Return the counts of nothing, for as many replicates as are asked for."""
        return Tally.empty(num_classes, self.order.num_replicates)


def score_piece(order: Order, piece: Piece) -> Scored:
    """Return the scores of a piece's images. A failed row counts as no answer.

    Raises:
        SourceError: a file cannot be read any more, or holds what no cvbatch writes.
    """
    columns = list(order.classes)
    extra = ["box_is_crowd"] if "boxes" in columns else []
    said, truth = read_piece(piece, ["image_id", "status", *columns], [*columns, *extra])
    return score_rows(order, said, truth, piece.part_uri)


def score_rows(order: Order, said: pa.Table, truth: pa.Table, name: str) -> Scored:  # n, n rows
    """Return the scores of predicted rows and their truths, which stand in the same order.

    Raises:
        SourceError: they hold what no cvbatch writes; name: where they come from.
    """
    names = said["image_id"].to_pylist()
    weights = image_weights(names, order.num_replicates, order.seed)
    is_failed = pc.not_equal(said["status"], "ok").to_numpy()
    scored = Scored(failed=[names[i] for i in np.flatnonzero(is_failed)])
    scored.counts.update(images=len(names), failed=int(is_failed.sum()))
    rows = _Rows(order, said, truth, weights, scored)
    try:
        if "labels" in order.classes:
            (_several_labels if order.is_multi_label else _one_label)(rows)
        if "mask" in order.classes:
            _masks(rows)
        if "boxes" in order.classes:
            _boxes(rows)
    except (ValueError, IndexError, KeyError) as error:
        raise SourceError(f"{name} or its truth is damaged: {error}") from None
    return scored


def merged(parts: Iterable[Scored]) -> Scored:
    """Return the scores of all the images; parts in any order give the same."""
    total, records = Scored(), dict[str, list[Score]]()
    for part in parts:
        total.counts.update(part.counts)
        total.failed += part.failed
        for name, score in part.scores.items():
            if isinstance(score, _RECORDS):
                records.setdefault(name, []).append(score)
            elif name in total.scores:
                total.scores[name] = total.scores[name].merge(score)
            else:
                total.scores[name] = score
    for name, (first, *others) in records.items():
        total.scores[name] = first.merge(*others)
    total.failed.sort()
    return total


def _flat(column: pa.ChunkedArray) -> tuple[Any, np.ndarray]:  # M structs, (M,) image index
    """Return the elements of a list column, one after the other."""
    lists = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    return lists.flatten(), np.repeat(np.arange(len(lists)), lengths)


def _values(structs: Any, name: str) -> np.ndarray:  # (M,)
    values: np.ndarray = pc.struct_field(structs, name).to_numpy(zero_copy_only=False)
    return values


def _said_labels(
    order: Order, column: pa.ChunkedArray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # (M,) image index, true class, score
    """Return the answers in their order; of a true class that two stand for, the better one."""
    structs, image = _flat(column)
    class_id = order.class_of["labels"][_values(structs, "class_id")]
    key = image * len(order.classes["labels"]) + class_id
    _, first = np.unique(key, return_index=True)
    kept = np.sort(first[class_id[first] >= 0])
    return image[kept], class_id[kept], _values(structs, "score")[kept].astype(np.float64)


def _one_label(rows: _Rows) -> None:
    said, truth, num_classes = rows.of("labels")
    structs, of_image = _flat(truth)
    is_used = np.bincount(of_image, minlength=len(truth)) == 1
    rows.scored.counts["classification_unlabelled"] += int((~is_used).sum())
    true_class = np.full(len(truth), -1)
    true_class[of_image] = _values(structs, "class_id")
    image, class_id, score = _said_labels(rows.order, said)
    best = np.full(len(truth), num_classes)  # no class
    best_score, own_score = np.full(len(truth), np.nan), np.full(len(truth), np.nan)
    _, first = np.unique(image, return_index=True)
    best[image[first]], best_score[image[first]] = class_id[first], score[first]
    is_own = class_id == true_class[image]
    own_score[image[is_own]] = score[is_own]
    beaten_by = np.bincount(image[score > own_score[image]], minlength=len(truth))
    rank = np.where(np.isnan(own_score), _NEVER, beaten_by)

    used = np.flatnonzero(is_used)
    true, answer, ranks, own = true_class[used], best[used], rank[used], rows.weights[used]
    ks = rows.order.ks
    rows.scored.scores["top_k"] = TopK.empty(ks).add_ranks(ranks)
    if num_classes <= MAX_CONFUSION_CLASSES:
        rows.scored.scores["confusion"] = Confusion.empty(num_classes).add(true, answer)
    is_hit, is_said = answer == true, answer < num_classes
    everyone = np.arange(len(used))
    rows.scored.scores["labels_tally"] = rows.tally(num_classes).add(
        hits=counted(own, everyone[is_hit], true[is_hit], num_classes),
        support=counted(own, everyone, true, num_classes),
        answered=counted(own, everyone[is_said], answer[is_said], num_classes),
    )
    at, place = np.nonzero(ranks[:, None] < np.array(ks))
    whole = np.repeat(own.sum(axis=0)[:, None], len(ks), axis=1)
    rows.scored.scores["top_k_tally"] = rows.tally(len(ks)).add(
        hits=counted(own, at, place, len(ks)), support=whole
    )
    is_sure = is_said & (best_score[used] >= 0) & (best_score[used] <= 1)
    rows.scored.counts["scores_outside_0_1"] += int((is_said & ~is_sure).sum())
    sure = Calibration.empty().add_answers(is_hit[is_sure], best_score[used][is_sure])
    rows.scored.scores["calibration"] = sure


def _several_labels(rows: _Rows) -> None:
    said, truth, num_classes = rows.of("labels")
    used = np.flatnonzero(truth.is_valid().to_numpy())
    rows.scored.counts["classification_unlabelled"] += len(truth) - len(used)
    structs, of_image = _flat(truth)
    is_positive = np.zeros((len(truth), num_classes), bool)
    is_positive[of_image, _values(structs, "class_id")] = True
    image, class_id, score = _said_labels(rows.order, said)
    scores = np.full((len(truth), num_classes), _UNSAID)
    scores[image, class_id] = score
    is_positive, scores, own = is_positive[used], scores[used], rows.weights[used]
    rows.scored.scores["precision"] = MultiLabelPrecision.empty(num_classes).add(
        is_positive, scores
    )
    is_said = scores >= rows.order.score_threshold

    def events(where: np.ndarray) -> np.ndarray:  # (n, C) bool → (1 + R, C)
        image_index, classes = np.nonzero(where)
        return counted(own, image_index, classes, num_classes)

    rows.scored.scores["labels_tally"] = rows.tally(num_classes).add(
        events(is_positive & is_said), events(is_positive), events(is_said)
    )
    rows.scored.counts["classification_images"] += len(used)


def _masks(rows: _Rows) -> None:
    said, truth, num_classes = rows.of("mask")
    lut = np.full(256, num_classes, np.uint8)  # no class
    class_of = rows.order.class_of["mask"]
    lut[: len(class_of)] = np.where(class_of < 0, num_classes, class_of)
    total = Confusion.empty(num_classes)
    tally = rows.tally(num_classes)
    for i, (answer, true) in enumerate(zip(said, truth, strict=True)):
        true_png = true["bytes"].as_py() if true.is_valid else None
        if true_png is None:
            rows.scored.counts["segmentation_unlabelled"] += 1
            continue
        mask = decode_png(true_png)
        answered = np.full(mask.shape, num_classes, np.uint8)
        if answer.is_valid:
            found = decode_png(answer["bytes"].as_py())
            if found.shape == mask.shape:
                answered = lut[found]
            else:
                rows.scored.counts["mask_size_differs"] += 1
        counts = _pixel_counts(mask, answered, num_classes, rows.order.ignored)
        total = total.add_counts(counts)
        image, own, every = (
            np.zeros(num_classes, np.int64),
            rows.weights[i : i + 1],
            range(num_classes),
        )
        amounts = (np.diagonal(counts), counts.sum(axis=1), counts[:, :-1].sum(axis=0))
        tally = tally.add(
            *(counted(own, image, np.array(every), num_classes, amount) for amount in amounts)
        )
        rows.scored.counts["segmentation_images"] += 1
    rows.scored.scores["pixels"] = total
    rows.scored.scores["mask_tally"] = tally


def _pixel_counts(
    truth: np.ndarray,  # (h, w) uint8
    said: np.ndarray,  # (h, w) uint8, num_classes: none
    num_classes: int,
    ignored: int | None,
) -> np.ndarray:  # (C, C + 1) int64
    pairs = truth.astype(np.uint16) << 8 | said
    counts = np.bincount(pairs.reshape(-1), minlength=1 << 16).reshape(256, 256)
    if counts[num_classes:VOID_CLASS].any():
        wrong = int(np.flatnonzero(counts[num_classes:VOID_CLASS].any(axis=1))[0]) + num_classes
        raise ValueError(f"a mask has class {wrong}, and its table ends at {num_classes - 1}")
    counts = counts[:num_classes, : num_classes + 1]
    if ignored is not None:
        counts[ignored] = 0
    return counts


def _boxes(rows: _Rows) -> None:
    order, scored = rows.order, rows.scored
    num_classes = len(order.classes["boxes"])
    used = rows.truth["boxes"].is_valid()
    scored.counts["detection_unlabelled"] += rows.truth["boxes"].null_count
    said, truth = rows.said.filter(used), rows.truth.filter(used)
    names = said["image_id"].to_pylist()
    structs, image = _flat(said["boxes"])
    class_id = order.class_of["boxes"][_values(structs, "class_id")]
    kept = class_id >= 0
    found = Boxes(
        _corners(structs)[kept], _values(structs, "score")[kept], class_id[kept], image[kept]
    )
    structs, image = _flat(truth["boxes"])
    is_crowd = np.zeros(len(image), bool)
    if "box_is_crowd" in truth.column_names:
        flags, of_image = _flat(truth["box_is_crowd"])
        if np.array_equal(of_image, image):
            is_crowd = flags.to_numpy(zero_copy_only=False).astype(bool)
    true = TrueBoxes(_corners(structs), _values(structs, "class_id"), image, is_crowd)
    part = AveragePrecision.empty(num_classes).add(names, found, true)
    scored.scores["average_precision"] = part
    scored.scores["boxes_tally"] = _box_tally(order, part, true, names)
    scored.counts["detection_images"] += len(names)


def _corners(structs: Any) -> np.ndarray:  # (M, 4) float32
    return np.stack([_values(structs, side) for side in _SIDES], axis=1).astype(np.float32)


def _box_tally(
    order: Order, part: AveragePrecision, truth: TrueBoxes, names: Sequence[str]
) -> Tally:
    """Return the counts at the thresholds of score and IoU; crowds are neither right nor wrong."""
    num_classes = part.num_classes
    weights = image_weights(part.image_key.tolist(), order.num_replicates, order.seed)
    bit = int(np.argmin(np.abs(IOU_THRESHOLDS - order.iou_threshold))) * len(AREA_RANGES)
    is_said = (part.score >= order.score_threshold) & (part.is_ignored >> bit & 1 == 0)
    is_hit = is_said & (part.is_true >> bit & 1 == 1)
    counts = ~np.asarray(truth.is_crowd, bool)
    place = np.searchsorted(part.image_key, np.array(names, np.str_))[truth.image_index]
    return Tally.empty(num_classes, order.num_replicates).add(
        hits=counted(weights, part.image_index[is_hit], part.class_id[is_hit], num_classes),
        support=counted(weights, place[counts], truth.class_id[counts], num_classes),
        answered=counted(weights, part.image_index[is_said], part.class_id[is_said], num_classes),
    )
