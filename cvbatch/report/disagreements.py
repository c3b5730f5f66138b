"""Find the images whose predictions differ most from their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cvbatch.config.evaluate import EvaluationConfig
from cvbatch.core.types import VOID_CLASS
from cvbatch.datasets.schema import expand_label_columns
from cvbatch.evaluate.class_map import make_evaluation_spec
from cvbatch.evaluate.columns import score_rows
from cvbatch.evaluate.join import JoinedPart, join, load_ground_truth, read_joined_part
from cvbatch.evaluate.scoring import EvaluationSpec
from cvbatch.images.masks import decode_png
from cvbatch.metrics.counts import ClassCounts
from cvbatch.report.statistics import RowRef
from cvbatch.results.parts import box_corners
from cvbatch.results.result import Result

MAX_DIFFERENT = 16  # images returned
MAX_PARTS = 48  # part files that are read
_ROWS_PER_PART = 24


@dataclass(frozen=True)
class LabelComparison:
    """The labels of an image, and the agreement of the predictions with them."""

    agreement: dict[str, float]  # column → F1 of its labels, boxes or pixels, 0..1
    labels: tuple[str, ...]
    xyxy: np.ndarray  # (M, 4) float32 pixels of the image
    names: tuple[str, ...]  # M, class names of the boxes
    mask: np.ndarray | None  # (h, w) uint8 true classes; VOID_CLASS: not counted
    predicted: np.ndarray | None  # (h, w) uint8 true classes of the predicted mask
    data: bytes | None  # the encoded image that is stored with the labels

    @property
    def disagreement(self) -> float:
        """Return 1 minus the mean agreement: 0 if all predictions are correct, 1 if none is."""
        return 1 - float(np.mean(list(self.agreement.values()))) if self.agreement else 0.0


@dataclass(frozen=True)
class Comparison:
    """The images that differ most from their labels."""

    num_images: int  # both predicted and labelled
    num_compared: int
    most_different: dict[RowRef, LabelComparison]  # the lowest agreement first


def compare_with_labels(
    result: Result,
    label_uris: Sequence[str],
    splits: Sequence[str] | None,
    evaluation: dict[str, Any],
) -> Comparison:
    """Compare predictions with labels, image by image; a sample of a large result.

    Args:
        result: the predictions.
        label_uris: labelled Parquet.
        splits: of the labels; None: all.
        evaluation: `evaluation` section of a job file: thresholds, class map and join.

    Raises:
        SourceError: predictions or labels cannot be read, or they have no image in common.
        ConfigError: the class tables differ.
    """
    config = EvaluationConfig(**{**evaluation, "bootstrap": 0})
    ground_truth = load_ground_truth(result.storage, label_uris, splits)
    spec = make_evaluation_spec(config, result, ground_truth)
    joined = join(result, ground_truth, config.join)
    parts = [_sample_rows(part) for part in _sample_parts(joined.parts)]
    ranked: list[tuple[float, int, int]] = []  # mean agreement, index into parts, row in the part
    for number, part in enumerate(parts):
        ranked += [
            (float(np.mean(list(agreement.values()))), number, i)
            for i, agreement in enumerate(_agreements(spec, part))
            if agreement
        ]
    ranked.sort()
    most_different = {}
    for mean_agreement, number, i in ranked[:MAX_DIFFERENT]:
        if mean_agreement < 1:
            part = parts[number]
            row_ref = RowRef(part.ref, int(part.part_row[i]))
            most_different[row_ref] = _compare_image(spec, part, i)
    num_compared = sum(len(part.part_row) for part in parts)
    return Comparison(joined.num_images, num_compared, most_different)


def _sample_parts(parts: list[JoinedPart]) -> list[JoinedPart]:
    indices = np.linspace(0, len(parts) - 1, min(len(parts), MAX_PARTS)).round().astype(int)
    return [parts[i] for i in np.unique(indices)]


def _sample_rows(part: JoinedPart) -> JoinedPart:
    count = min(len(part.part_row), _ROWS_PER_PART)
    return part.take(np.linspace(0, len(part.part_row) - 1, count).round().astype(int))


def _agreements(spec: EvaluationSpec, part: JoinedPart) -> list[dict[str, float]]:
    """Return the F1 of labels, boxes and pixels of each image of a part."""
    predicted, labelled = _read(spec, part)
    return [_agreement(spec, predicted.slice(i, 1), labelled.slice(i, 1), part.part_uri)
            for i in range(predicted.num_rows)]  # fmt: skip


def _read(spec: EvaluationSpec, part: JoinedPart, *extra: str) -> tuple[pa.Table, pa.Table]:
    """Return the compared columns of predictions and labels; of labels `extra` columns too."""
    columns = list(spec.classes)
    return read_joined_part(
        part, ["image_id", "status", *columns], [*expand_label_columns(columns), *extra]
    )


def _agreement(
    spec: EvaluationSpec, predicted: pa.Table, labelled: pa.Table, part_uri: str
) -> dict[str, float]:  # one row each
    scores = score_rows(spec, predicted.combine_chunks(), labelled.combine_chunks(), part_uri)
    agreement = {}
    for column in spec.classes:
        counts = scores.metric(f"{column}_tally", ClassCounts)
        hits, support, num_predicted = (
            int(values[0].sum()) for values in (counts.hits, counts.support, counts.predicted)
        )
        if support + num_predicted:
            agreement[column] = 2 * hits / (support + num_predicted)
    return agreement


def _compare_image(spec: EvaluationSpec, part: JoinedPart, index: int) -> LabelComparison:
    """Return the labels of one image of a part, compared with its predictions."""
    predicted, labelled = _read(spec, part.take(np.array([index])), "image")
    label_row = labelled.to_pylist()[0]
    boxes = label_row.get("boxes") or []
    mask, predicted_mask = _masks(spec, label_row, predicted.to_pylist()[0])
    label_names, box_names = (spec.classes.get(column, ()) for column in ("labels", "boxes"))
    return LabelComparison(
        agreement=_agreement(spec, predicted, labelled, part.part_uri),
        labels=tuple(label_names[label["class_id"]] for label in label_row.get("labels") or []),
        xyxy=box_corners(boxes).astype(np.float32),
        names=tuple(box_names[box["class_id"]] for box in boxes),
        mask=mask,
        predicted=predicted_mask,
        data=(label_row.get("image") or {}).get("bytes"),
    )


def _masks(
    spec: EvaluationSpec, label_row: dict[str, Any], predicted_row: dict[str, Any]
) -> tuple[np.ndarray | None, np.ndarray | None]:  # (h, w) uint8 each
    """Return the true mask, and the predicted one in true classes."""
    true_png, predicted_png = (
        (row.get("mask") or {}).get("bytes") for row in (label_row, predicted_row)
    )
    if true_png is None:
        return None, None
    mask = decode_png(true_png)
    if spec.ignored_class is not None:
        mask = np.where(mask == spec.ignored_class, np.uint8(VOID_CLASS), mask)
    if predicted_png is None:
        return mask, None
    true_class = np.full(256, VOID_CLASS, np.uint8)  # indexed by the predicted class
    class_of = spec.class_of["mask"]
    true_class[: len(class_of)] = np.where(class_of < 0, VOID_CLASS, class_of)
    predicted = true_class[decode_png(predicted_png)]
    return mask, predicted if predicted.shape == mask.shape else None
