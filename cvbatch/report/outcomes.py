"""Outcomes of one image against its labels: agreement, true positives, misses, confusions, loss.

Everything follows from the functions of `cvbatch.evaluate`, so it adds up to their metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cvbatch.core.types import VOID_CLASS
from cvbatch.evaluate.boxes import labelled_boxes, predicted_boxes
from cvbatch.evaluate.columns import score_rows
from cvbatch.evaluate.plots import BACKGROUND
from cvbatch.evaluate.scoring import EvaluationSpec
from cvbatch.images.masks import decode_png
from cvbatch.metrics.box_matching import coco_criterion, match_boxes
from cvbatch.metrics.classification import Confusion
from cvbatch.metrics.counts import ClassCounts
from cvbatch.report.overlays import difference_layer, thumbnail_hw

# Column → name of the metric with its confusion matrix in `Scores`.
_CONFUSIONS = {"labels": "confusion", "mask": "pixels", "boxes": "box_confusion"}


class Cell(NamedTuple):
    """A cell of a confusion matrix."""

    column: str
    true: str  # "": another result has no label
    predicted: str  # "": no prediction


class TrueBox(NamedTuple):
    """A labelled box and the detection that finds it."""

    xyxy: tuple[float, float, float, float]  # pixels of the image
    label: str
    found: float | None  # score of the detection; None: missed
    is_crowd: bool  # a crowd, which is not a miss


class MaskDifference(NamedTuple):
    """Where a predicted mask is wrong."""

    png: bytes  # overlay of thumbnail size
    share: float  # of the counted pixels, 0..1


@dataclass(frozen=True)
class LabelComparison:
    """The labels of an image, and the outcomes of the predictions.

    Attributes:
        agreement: column → F1 of its labels, boxes or pixels, 0..1.
        score_threshold: minimum score of the boxes and independent labels that it counts.
        labels: names of the true labels.
        outcomes: of every predicted box: "tp", "fp", or "" if it does not count.
        true_boxes: the labelled boxes.
        cells: those of the confusion matrices that the image adds to.
        loss: cross-entropy of the true label; None: not known.
        is_loss_bound: the true label is not stored, so `loss` is the smallest possible one.
        difference: of the masks; None: there are not two masks of one size.
        stored_image: reads the encoded image that is stored with the labels, if there is one.
    """

    agreement: dict[str, float]
    score_threshold: float = 0.5
    labels: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    true_boxes: tuple[TrueBox, ...] = ()
    cells: tuple[Cell, ...] = ()
    loss: float | None = None
    is_loss_bound: bool = False
    difference: MaskDifference | None = None
    stored_image: Callable[[], bytes | None] = lambda: None

    @property
    def mean_agreement(self) -> float:
        """Return the mean over the columns: 1 if all predictions are correct; NaN without any."""
        return _mean(self.agreement)

    @property
    def is_correct(self) -> bool | None:
        """Return whether the best label is the true one; None: there is no single true label."""
        cells = [cell for cell in self.cells if cell.column == "labels"]
        return cells[0].true == cells[0].predicted if cells else None


def compare_image(
    spec: EvaluationSpec,
    predicted: pa.Table,
    labelled: pa.Table,
    name: str,
    stored_image: Callable[[], bytes | None] = lambda: None,
) -> LabelComparison:
    """Compare the predictions of an image with its labels.

    Args:
        spec: columns, classes and options of the evaluation.
        predicted: one row of a result.
        labelled: its row of labelled data.
        name: source of the rows, for messages.
        stored_image: as the attribute of LabelComparison.

    Raises:
        SourceError: the rows have values that cvbatch never writes.
    """
    predicted, labelled = predicted.combine_chunks(), labelled.combine_chunks()
    agreement, cells = _scores(spec, predicted, labelled, name)
    row, label_row = predicted.to_pylist()[0], labelled.to_pylist()[0]
    true_labels = [label["class_id"] for label in label_row.get("labels") or []]
    names = spec.classes.get("labels", ())
    outcomes, true_boxes = _box_outcomes(spec, predicted, labelled)
    loss, is_bound = _loss(spec, row.get("labels") or [], true_labels)
    return LabelComparison(
        agreement,
        spec.score_threshold,
        tuple(names[class_id] for class_id in true_labels) if names else (),
        outcomes,
        true_boxes,
        cells,
        loss,
        is_bound,
        _mask_difference(spec, label_row, row),
        stored_image,
    )


def _scores(
    spec: EvaluationSpec, predicted: pa.Table, labelled: pa.Table, name: str
) -> tuple[dict[str, float], tuple[Cell, ...]]:
    """Return the F1 of each column, and the cells of the confusion matrices."""
    scores = score_rows(spec, predicted.combine_chunks(), labelled.combine_chunks(), name)
    agreement, cells = {}, []
    for column, names in spec.classes.items():
        counts = scores.metric(f"{column}_tally", ClassCounts)
        hits, support, num_predicted = (
            int(values[0].sum()) for values in (counts.hits, counts.support, counts.predicted)
        )
        if support + num_predicted:
            agreement[column] = 2 * hits / (support + num_predicted)
        confusion = scores.metrics.get(_CONFUSIONS.get(column, ""))
        if isinstance(confusion, Confusion):
            named = [*names, BACKGROUND][: confusion.num_classes]
            cells += [
                Cell(column, named[true], [*named, ""][predicted_class])
                for true, predicted_class in np.argwhere(confusion.counts).tolist()
            ]
    return agreement, tuple(cells)


def agreement_of(spec: EvaluationSpec, predicted: pa.Table, labelled: pa.Table, name: str) -> float:
    """Return `mean_agreement` of one image without its other outcomes; NaN without any column."""
    return _mean(_scores(spec, predicted, labelled, name)[0])


def _mean(agreement: Mapping[str, float]) -> float:
    return float(np.mean(list(agreement.values()))) if agreement else math.nan


def _box_outcomes(
    spec: EvaluationSpec, predicted: pa.Table, labelled: pa.Table
) -> tuple[tuple[str, ...], tuple[TrueBox, ...]]:
    """Return the outcome of every predicted box, and the labelled boxes; () without labels.

    Detections take objects in the order of their scores, so an outcome is the same for every
    minimum score below that of the box, and an object is missed above the score that finds it.
    """
    if "boxes" not in spec.classes or labelled["boxes"].null_count:
        return (), ()
    boxes, is_used, _ = predicted_boxes(spec, predicted)
    truth, numbers = labelled_boxes(labelled), np.flatnonzero(is_used)
    matches = match_boxes(boxes, truth)
    # As in cvbatch.evaluate.boxes: area range "all" at the threshold of IoU.
    bit = coco_criterion(spec.iou_threshold)
    outcomes, found = [""] * len(is_used), [None] * len(truth.class_id)
    for i, row in enumerate(matches.row.tolist()):
        if matches.is_ignored[i, bit]:
            continue
        outcomes[numbers[row]] = "tp" if matches.is_true_positive[i, bit] else "fp"
        if matches.is_true_positive[i, bit]:
            found[int(matches.match[i, bit])] = boxes.score[row].item()
    names, is_crowd = spec.classes["boxes"], np.asarray(truth.is_crowd).tolist()
    return tuple(outcomes), tuple(
        TrueBox(tuple(corners), names[class_id], score, crowd)
        for corners, class_id, score, crowd in zip(
            truth.xyxy.tolist(), truth.class_id.tolist(), found, is_crowd, strict=True
        )
    )


def _loss(
    spec: EvaluationSpec, labels: Sequence[Mapping[str, Any]], true_labels: Sequence[int]
) -> tuple[float | None, bool]:
    """Return the cross-entropy of the true label, and whether it is only a lower bound.

    A result stores the best labels only. The probability of another one is at most the smallest
    stored one, and at most what they leave of 1.
    """
    scores = [label["score"] for label in labels]
    is_distribution = scores and min(scores) >= 0 and math.fsum(scores) <= 1.001
    if "labels" not in spec.classes or spec.is_multi_label or len(true_labels) != 1:
        return None, False
    if not is_distribution:
        return None, False
    class_of = spec.class_of["labels"]
    for label in labels:
        if class_of[label["class_id"]] == true_labels[0]:
            return abs(math.log(min(max(label["score"], 1e-12), 1))), False
    remainder = min(*scores, 1 - math.fsum(scores)) if len(scores) > 1 else 1 - scores[0]
    return abs(math.log(min(max(remainder, 1e-12), 1))), True


def _mask_difference(
    spec: EvaluationSpec, label_row: Mapping[str, Any], row: Mapping[str, Any]
) -> MaskDifference | None:
    """Return where the predicted mask, in true classes, differs from the true one."""
    true_png, png = ((side.get("mask") or {}).get("bytes") for side in (label_row, row))
    if true_png is None or png is None or "mask" not in spec.classes:
        return None
    mask = decode_png(true_png)
    if spec.ignored_class is not None:
        mask = np.where(mask == spec.ignored_class, np.uint8(VOID_CLASS), mask)
    true_class = np.full(256, VOID_CLASS, np.uint8)  # indexed by the predicted class
    class_of = spec.class_of["mask"]
    true_class[: len(class_of)] = np.where(class_of < 0, VOID_CLASS, class_of)
    predicted = true_class[decode_png(png)]
    if predicted.shape != mask.shape:
        return None
    is_counted = mask != VOID_CLASS
    is_wrong = is_counted & (mask != predicted)
    share = float(is_wrong.sum() / max(is_counted.sum(), 1))
    return MaskDifference(difference_layer(is_wrong, thumbnail_hw(*mask.shape)), share)
