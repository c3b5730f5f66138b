"""Aggregate heatmap scores: metrics compared with random maps, mean curves, heatmap boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.evaluate.heatmap_faithfulness import CURVES, HeatmapScore, HeatmapScores
from cvbatch.evaluate.metrics_table import MetricRow, bootstrapped_row
from cvbatch.evaluate.perturbation import area_under_curve
from cvbatch.evaluate.scoring import EvaluationSpec
from cvbatch.metrics.base import ratio
from cvbatch.metrics.counts import bootstrap_weights

METRICS = ("insertion_auc", "deletion_auc", "pointing_game", "box_iou", "box_iou_50")
_COLUMNS = [f"{prefix}{metric}" for metric in METRICS for prefix in ("", "random_")]
_BOXES = pa.schema(
    [
        ("image_id", pa.string()),
        *((side, pa.float32()) for side in ("x_min", "y_min", "x_max", "y_max")),
        ("class_id", pa.int32()),
        ("label", pa.string()),
        ("score", pa.float32()),  # of the class, in the image
        ("iou", pa.float64()),  # null: no ground-truth box of the class
    ]
)


def merge_heatmap_scores(parts: Sequence[HeatmapScores]) -> HeatmapScores:
    """Return the scores of all images, ordered by image; the order of the parts does not matter."""
    return HeatmapScores(
        sorted(
            (score for part in parts for score in part.scores),
            key=lambda score: (score.image_id, -score.score, score.class_id),
        ),
        dict(sorted(item for part in parts for item in part.excluded.items())),
    )


def heatmap_metric_rows(
    scores: Sequence[HeatmapScore], spec: EvaluationSpec
) -> Iterator[MetricRow]:
    """Yield the means over all heatmaps, then those of each class.

    The intervals resample images. A metric that no image has ground truth for is left out.
    """
    if not scores:
        return
    values = np.array([_metric_values(score) for score in scores])  # (M, metrics)
    image_ids = [score.image_id for score in scores]
    weights = bootstrap_weights(image_ids, spec.num_replicates, spec.seed)
    labels = np.array([score.label for score in scores])
    is_available = ~np.isnan(values).all(axis=0)
    for label in (None, *np.unique(labels).tolist()):
        rows = np.ones(len(labels), bool) if label is None else labels == label
        for column in np.flatnonzero(is_available):
            class_values, class_weights = values[rows, column], weights[rows]
            is_defined = ~np.isnan(class_values)
            defined = class_weights[is_defined]
            sums = (defined * class_values[is_defined, None]).sum(axis=0)  # (1 + R,)
            means = ratio(sums, defined.sum(axis=0))
            count = int(is_defined.sum())
            yield bootstrapped_row("heatmap", label, _COLUMNS[column], means, count)


def _metric_values(score: HeatmapScore) -> list[float]:
    """Return the values of `_COLUMNS` for one heatmap, NaN where undefined."""
    inserted, deleted, random_inserted, random_deleted = area_under_curve(score.curves).tolist()
    is_over_half = [np.nan if np.isnan(value) else float(value >= 0.5) for value in score.box_iou]
    pairs = ((inserted, random_inserted), (deleted, random_deleted), score.is_hit, score.box_iou)
    return [value for pair in (*pairs, is_over_half) for value in pair]


def heatmap_details(scores: HeatmapScores) -> dict[str, Any]:
    """Return the mean curves, and counts of excluded images by reason, as JSON-ready values."""
    kinds = Counter(f"{failure.stage}/{failure.kind}" for failure in scores.excluded.values())
    return {
        "curves": {name: curve.tolist() for name, curve in mean_curves(scores.scores).items()},
        "left_out": dict(sorted(kinds.items())),
    }


def mean_curves(scores: Sequence[HeatmapScore]) -> dict[str, np.ndarray]:  # each (S + 1,)
    """Return "share", the share of pixels that is replaced, and the mean of each of `CURVES`."""
    mean = np.mean([score.curves for score in scores], axis=0)
    share = np.linspace(0, 1, mean.shape[1])
    return {"share": share, **dict(zip(CURVES, mean, strict=True))}


def boxes_to_parquet(scores: Sequence[HeatmapScore]) -> pa.Buffer:
    """Return the boxes of the heatmaps as a Parquet file, one a row."""
    rows = [
        {
            "image_id": score.image_id,
            **dict(zip(_BOXES.names[1:5], box.tolist(), strict=True)),
            "class_id": score.class_id,
            "label": score.label,
            "score": score.score,
            "iou": None if np.isnan(score.box_iou[0]) else score.box_iou[0],
        }
        for score in scores
        for box in score.box_xyxy
    ]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, _BOXES), buffer, store_schema=False)
    return buffer.getvalue()
