"""Compare the images of the gallery with their labels, and find those that differ most."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cvbatch.config.evaluate import EvaluationConfig
from cvbatch.datasets.schema import expand_label_columns
from cvbatch.evaluate.class_map import make_evaluation_spec
from cvbatch.evaluate.join import JoinedPart, join, load_ground_truth, read_joined_part
from cvbatch.evaluate.scoring import EvaluationSpec
from cvbatch.report.outcomes import LabelComparison, agreement_of, compare_image
from cvbatch.report.statistics import RowRef, equally_spaced
from cvbatch.results.result import Result

MAX_DIFFERENT = 32  # images with the lowest agreement that a sample contains
MAX_PARTS = 48  # part files that are searched for them
_ROWS_PER_PART = 24


@dataclass(frozen=True)
class Comparison:
    """The compared images.

    Attributes:
        num_searched: images among which `lowest` were found; 0 if all were chosen anyway.
        lowest: rows with the lowest agreement, lowest first; () if all were chosen anyway.
        rows: of the chosen images and of `lowest`, those that have labels.
    """

    num_searched: int
    lowest: tuple[RowRef, ...]
    rows: dict[RowRef, LabelComparison]


def compare_with_labels(
    result: Result,
    label_uris: Sequence[str],
    splits: Sequence[str] | None,
    evaluation: dict[str, Any],
    chosen: Collection[RowRef],
    *,
    is_sample: bool,
) -> Comparison:
    """Compare predictions with labels, image by image.

    Args:
        result: the predictions.
        label_uris: labelled Parquet.
        splits: of the labels; None: all.
        evaluation: `evaluation` section of a job file: thresholds, class map and join.
        chosen: rows to compare.
        is_sample: the result has other rows, among which those that differ most are searched.

    Raises:
        SourceError: predictions or labels cannot be read, or they have no image in common.
        ConfigError: the class tables differ.
    """
    config = EvaluationConfig(**{**evaluation, "bootstrap": 0})
    ground_truth = load_ground_truth(result.storage, label_uris, splits)
    spec = make_evaluation_spec(config, result, ground_truth)
    joined = join(result, ground_truth, config.join)
    searched = _sample(joined.parts) if is_sample else []
    lowest = _lowest_agreement(spec, searched)
    rows: dict[RowRef, LabelComparison] = {}
    wanted = {*chosen, *lowest}
    for part in joined.parts:
        is_wanted = [RowRef(part.ref, row) in wanted for row in part.part_row.tolist()]
        if any(is_wanted):
            rows |= _compare_part(spec, part.take(np.flatnonzero(is_wanted)))
    num_searched = sum(len(part.part_row) for part in searched)
    return Comparison(num_searched, tuple(lowest), rows)


def _sample(parts: Sequence[JoinedPart]) -> list[JoinedPart]:
    """Return rows and parts at equal distances."""
    sampled = [parts[i] for i in equally_spaced(len(parts), MAX_PARTS)]
    return [
        part.take(np.array(equally_spaced(len(part.part_row), _ROWS_PER_PART), np.int64))
        for part in sampled
    ]


def _lowest_agreement(spec: EvaluationSpec, parts: Sequence[JoinedPart]) -> list[RowRef]:
    """Return the rows of the lowest agreement below 1, lowest first."""
    ranked: list[tuple[float, int, RowRef]] = []
    for part in parts:
        predicted, labelled = _read(spec, part)
        for i, row in enumerate(part.part_row.tolist()):
            sides = predicted.slice(i, 1), labelled.slice(i, 1)
            agreement = agreement_of(spec, *sides, part.part_uri)
            if agreement < 1:
                ranked.append((agreement, len(ranked), RowRef(part.ref, row)))
    return [row_ref for _, _, row_ref in sorted(ranked)[:MAX_DIFFERENT]]


def _compare_part(spec: EvaluationSpec, part: JoinedPart) -> dict[RowRef, LabelComparison]:
    predicted, labelled = _read(spec, part)
    comparisons = {}
    for i, row in enumerate(part.part_row.tolist()):
        single = part.take(np.array([i]))

        def stored_image(single: JoinedPart = single) -> bytes | None:
            label_row = read_joined_part(single, ["image_id"], ["image"])[1].to_pylist()[0]
            return (label_row.get("image") or {}).get("bytes")

        comparisons[RowRef(part.ref, row)] = compare_image(
            spec, predicted.slice(i, 1), labelled.slice(i, 1), part.part_uri, stored_image
        )
    return comparisons


def _read(spec: EvaluationSpec, part: JoinedPart) -> tuple[pa.Table, pa.Table]:
    """Return the compared columns of predictions and labels."""
    columns = list(spec.classes)
    return read_joined_part(part, ["image_id", "status", *columns], expand_label_columns(columns))
