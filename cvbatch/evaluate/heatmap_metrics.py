"""What the judgements on heatmaps come to: figures beside those of random maps, curves, boxes."""

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
_COLUMNS = [f"{who}{metric}" for metric in METRICS for who in ("", "random_")]
_BOXES = pa.schema(
    [
        ("image_id", pa.string()),
        *((side, pa.float32()) for side in ("x_min", "y_min", "x_max", "y_max")),
        ("class_id", pa.int32()),
        ("label", pa.string()),
        ("score", pa.float32()),  # of the class, in the image
        ("iou", pa.float64()),  # null: the truth has no such box
    ]
)


def merge_heatmap_scores(parts: Sequence[HeatmapScores]) -> HeatmapScores:
    """Return the judgements on all images, in the images' order whatever that of the parts."""
    return HeatmapScores(
        sorted(
            (one for part in parts for one in part.judged),
            key=lambda one: (one.image_id, -one.score, one.class_id),
        ),
        dict(sorted(item for part in parts for item in part.left_out.items())),
    )


def heatmap_metric_rows(
    judged: Sequence[HeatmapScore], order: EvaluationSpec
) -> Iterator[MetricRow]:
    """Yield the means over all heatmaps, then over those of each class; images are resampled.

    What no image has a truth for is left out.
    """
    if not judged:
        return
    values = np.array([_measured(one) for one in judged])  # (M, metrics)
    weights = bootstrap_weights([one.image_id for one in judged], order.num_replicates, order.seed)
    labels = np.array([one.label for one in judged])
    is_given = ~np.isnan(values).all(axis=0)
    for label in (None, *np.unique(labels).tolist()):
        rows = np.ones(len(labels), bool) if label is None else labels == label
        for column in np.flatnonzero(is_given):
            mine, own = values[rows, column], weights[rows]
            known = ~np.isnan(mine)
            above = (own[known] * mine[known, None]).sum(axis=0)  # (1 + R,)
            means = ratio(above, own[known].sum(axis=0))
            yield bootstrapped_row("heatmap", label, _COLUMNS[column], means, int(known.sum()))


def _measured(one: HeatmapScore) -> list[float]:
    """Return a heatmap's values of all metrics, NaN where undefined."""
    inserted, deleted, random_inserted, random_deleted = area_under_curve(one.curves).tolist()
    over_half = [np.nan if np.isnan(value) else float(value >= 0.5) for value in one.box_iou]
    pairs = ((inserted, random_inserted), (deleted, random_deleted), one.is_hit, one.box_iou)
    return [value for pair in (*pairs, over_half) for value in pair]


def heatmap_details(found: HeatmapScores) -> dict[str, Any]:
    """Return the mean curves, and why images were left out, as JSON-ready values."""
    kinds = Counter(f"{why.stage}/{why.kind}" for why in found.left_out.values())
    return {
        "curves": {name: curve.tolist() for name, curve in mean_curves(found.judged).items()},
        "left_out": dict(sorted(kinds.items())),
    }


def mean_curves(judged: Sequence[HeatmapScore]) -> dict[str, np.ndarray]:  # each (S + 1,)
    """Return the share of pixels that was exchanged, and the mean of each of `CURVES` there."""
    mean = np.mean([one.curves for one in judged], axis=0)
    share = np.linspace(0, 1, mean.shape[1])
    return {"share": share, **dict(zip(CURVES, mean, strict=True))}


def boxes_to_parquet(judged: Sequence[HeatmapScore]) -> pa.Buffer:
    """Return the boxes round the heatmaps as a Parquet file, a box a row."""
    rows = [
        {
            "image_id": one.image_id,
            **dict(zip(_BOXES.names[1:5], box.tolist(), strict=True)),
            "class_id": one.class_id,
            "label": one.label,
            "score": one.score,
            "iou": None if np.isnan(one.box_iou[0]) else one.box_iou[0],
        }
        for one in judged
        for box in one.box_xyxy
    ]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, _BOXES), buffer, store_schema=False)
    return buffer.getvalue()
