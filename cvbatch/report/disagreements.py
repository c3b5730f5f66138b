"""Find the images whose predictions differ most from their labels, one by one in a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cvbatch.config.evaluate import EvaluationConfig
from cvbatch.core.types import VOID_CLASS
from cvbatch.datasets.schema import with_extras
from cvbatch.evaluate.class_map import make_evaluation_spec
from cvbatch.evaluate.columns import score_rows
from cvbatch.evaluate.join import JoinedPart, join, load_ground_truth, read_joined_part
from cvbatch.evaluate.scoring import EvaluationSpec
from cvbatch.images.masks import decode_png
from cvbatch.metrics.counts import ClassCounts
from cvbatch.report.statistics import Pick
from cvbatch.results.parts import box_corners
from cvbatch.results.result import Result

MOST_DIFFERENT = 16  # images kept
MAX_PIECES = 48
_ROWS_OF_PIECE = 24


@dataclass(frozen=True)
class Against:
    """The labels of an image, and how far the predictions agree with them."""

    agreement: dict[str, float]  # column → F1 of its labels, boxes or pixels, 0..1
    labels: tuple[str, ...]
    xyxy: np.ndarray  # (M, 4) float32 pixels of the image
    names: tuple[str, ...]  # M, of the boxes
    mask: np.ndarray | None  # (h, w) uint8 true classes; VOID_CLASS: not counted
    predicted: np.ndarray | None  # (h, w) uint8 true classes of the predicted mask
    data: bytes | None  # the encoded image that is stored with the labels

    @property
    def disagreement(self) -> float:
        """Return 1 minus the mean agreement: 0 where all predictions are right, 1 where none is."""
        return 1 - float(np.mean(list(self.agreement.values()))) if self.agreement else 0.0


@dataclass(frozen=True)
class Comparison:
    """The images that differ most from their labels, those that differ most first."""

    num_images: int  # on both sides
    num_compared: int
    differing: dict[Pick, Against]


def compare(
    result: Result,
    truth_uris: Sequence[str],
    splits: Sequence[str] | None,
    evaluation: dict[str, Any],
) -> Comparison:
    """Return some images that are on both sides, compared; of a large result a sample.

    Args:
        result: the predictions.
        truth_uris: labelled Parquet.
        splits: of the labels; None: all.
        evaluation: an evaluation section, whose thresholds, class map and join are used.

    Raises:
        SourceError: a side cannot be read, or no image is on both sides.
        ConfigError: the class tables differ.
    """
    config = EvaluationConfig(**{**evaluation, "bootstrap": 0})
    truth = load_ground_truth(result.storage, truth_uris, splits)
    order = make_evaluation_spec(config, result, truth)
    joined = join(result, truth, config.join)
    pieces = [_sample(piece) for piece in _spread(joined.parts)]
    ranked: list[tuple[float, int, int]] = []
    for number, piece in enumerate(pieces):
        agreements = _agreements(order, piece)
        ranked += [
            (float(np.mean(list(one.values()))), number, i)
            for i, one in enumerate(agreements)
            if one
        ]
    ranked.sort()
    differing = {}
    for agreement, number, i in ranked[:MOST_DIFFERENT]:
        if agreement < 1:
            piece = pieces[number]
            pick = Pick(piece.ref, int(piece.part_row[i]))
            differing[pick] = _against(order, piece, i)
    return Comparison(joined.num_images, sum(len(one.part_row) for one in pieces), differing)


def _spread(pieces: list[JoinedPart]) -> list[JoinedPart]:
    places = np.linspace(0, len(pieces) - 1, min(len(pieces), MAX_PIECES)).round().astype(int)
    return [pieces[i] for i in np.unique(places)]


def _sample(piece: JoinedPart) -> JoinedPart:
    count = min(len(piece.part_row), _ROWS_OF_PIECE)
    return piece.take(np.linspace(0, len(piece.part_row) - 1, count).round().astype(int))


def _agreements(order: EvaluationSpec, piece: JoinedPart) -> list[dict[str, float]]:
    """Return the F1 of labels, boxes and pixels of each image of a piece."""
    predicted, truth = _read(order, piece)
    return [_agreement(order, predicted.slice(i, 1), truth.slice(i, 1), piece.part_uri)
            for i in range(predicted.num_rows)]  # fmt: skip


def _read(order: EvaluationSpec, piece: JoinedPart, *extra: str) -> tuple[pa.Table, pa.Table]:
    """Return the compared columns of predictions and labels; of labels `extra` columns too."""
    columns = list(order.classes)
    return read_joined_part(
        piece, ["image_id", "status", *columns], [*with_extras(columns), *extra]
    )


def _agreement(
    order: EvaluationSpec, predicted: pa.Table, truth: pa.Table, name: str
) -> dict[str, float]:  # one row each
    scored = score_rows(order, predicted.combine_chunks(), truth.combine_chunks(), name)
    agreement = {}
    for column in order.classes:
        tally = scored.metric(f"{column}_tally", ClassCounts)
        hits, support, answered = (
            int(part[0].sum()) for part in (tally.hits, tally.support, tally.predicted)
        )
        if support + answered:
            agreement[column] = 2 * hits / (support + answered)
    return agreement


def _against(order: EvaluationSpec, piece: JoinedPart, index: int) -> Against:
    """Return the labels of one image, compared."""
    predicted, truth = _read(order, piece.take(np.array([index])), "image")
    row, answer = truth.to_pylist()[0], predicted.to_pylist()[0]
    boxes = row.get("boxes") or []
    mask, answered = _masks(order, row, answer)
    return Against(
        agreement=_agreement(order, predicted, truth, piece.part_uri),
        labels=tuple(order.classes["labels"][one["class_id"]] for one in row.get("labels") or []),
        xyxy=box_corners(boxes).astype(np.float32),
        names=tuple(order.classes["boxes"][box["class_id"]] for box in boxes),
        mask=mask,
        predicted=answered,
        data=(row.get("image") or {}).get("bytes"),
    )


def _masks(
    order: EvaluationSpec, row: dict[str, Any], answer: dict[str, Any]
) -> tuple[np.ndarray | None, np.ndarray | None]:  # (h, w) uint8 each
    true, predicted = ((one.get("mask") or {}).get("bytes") for one in (row, answer))
    if true is None:
        return None, None
    mask = decode_png(true)
    if order.ignored_class is not None:
        mask = np.where(mask == order.ignored_class, np.uint8(VOID_CLASS), mask)
    if predicted is None:
        return mask, None
    table = np.full(256, VOID_CLASS, np.uint8)
    class_of = order.class_of["mask"]
    table[: len(class_of)] = np.where(class_of < 0, VOID_CLASS, class_of)
    answered = table[decode_png(predicted)]
    return mask, answered if answered.shape == mask.shape else None
