"""Metrics per epoch as JSON, Parquet, curves (PNG), TensorBoard events and lines of text.

A row is a flat dict of numbers and strings for one epoch. Rows of a run may have different keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.images.drawing import TILE_HW, contact_sheet, to_png

Row = dict[str, Any]

# The columns of every row, first and in this order; the loss terms and the metrics follow.
LEADING = ("epoch", "step", "phase", "seconds", "waited_seconds", "learning_rate", "loss")
_WITHOUT_CURVE = {"epoch", "step", "phase", "seconds", "waited_seconds"}
_COLUMNS = 3
_CURVE_RGB, _PHASE_RGB, _BEST_RGB = (0, 114, 178), (210, 210, 210), (213, 94, 0)
_MARGIN = 12  # pixels between a curve and its tile's border


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the keys of all rows: `LEADING` first, then the others in order of appearance."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in LEADING if key in keys] + [key for key in keys if key not in LEADING]


def to_json(rows: Sequence[Row]) -> bytes:
    """Return the rows as a JSON array of objects; NaN and infinity become null."""
    values = [{key: _finite_or_none(row.get(key)) for key in columns_of(rows)} for row in rows]
    return json.dumps(values, indent=1).encode()


def to_parquet(rows: Sequence[Row]) -> bytes:
    """Return the rows as a Parquet file: int64, double and string columns, null if missing."""
    columns = {key: pa.array([row.get(key) for row in rows]) for key in columns_of(rows)}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def curves_png(rows: Sequence[Row], best_epoch: int = 0) -> bytes:
    """Return a PNG image with one curve over the epochs for each numeric column.

    A grey line separates two phases; a dot marks the best epoch. The y axis of each curve is scaled
    from its minimum to its maximum.

    Args:
        rows: one row per epoch.
        best_epoch: value of the column "epoch" of the best row; 0: none.
    """
    names = [key for key in columns_of(rows) if key not in _WITHOUT_CURVE]
    starts = [i for i in range(1, len(rows)) if rows[i].get("phase") != rows[i - 1].get("phase")]
    best = next((i for i, row in enumerate(rows) if row.get("epoch") == best_epoch), None)
    tiles, captions = [], []
    for name in names:
        values = np.array([_number(row.get(name)) for row in rows])
        tiles.append(_curve(values, starts, best))
        finite = values[np.isfinite(values)]
        at_best = "" if best is None else f", best epoch {values[best]:.4g}"
        captions.append(f"{name}: {finite[-1]:.4g}{at_best}" if finite.size else f"{name}: none")
    sheet = contact_sheet(tiles, captions, _COLUMNS)
    return to_png(sheet)


def write_tensorboard(rows: Sequence[Row], folder: Path) -> None:
    """Write every number of the rows as a TensorBoard scalar over the steps."""
    from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

    with SummaryWriter(str(folder)) as writer:
        for row in rows:
            for key in columns_of([row]):
                value = _number(row[key])
                if key not in ("epoch", "step") and math.isfinite(value):
                    writer.add_scalar(key, value, row["step"])


def format_row(row: Row) -> str:
    """Return an epoch's metrics as a line of text."""
    fields = [f"epoch {row['epoch']}", f"step {row['step']}", f"{row['seconds']:.0f} s"]
    fields += [
        f"{key} {row[key]:.4g}"
        for key in columns_of([row])
        if key not in _WITHOUT_CURVE and math.isfinite(_number(row[key]))
    ]
    return " · ".join(fields)


def _curve(
    values: np.ndarray,  # (epochs,)
    phase_starts: Sequence[int],
    best: int | None,
) -> np.ndarray:  # (h, w, 3) uint8
    """Return a tile with a line through the finite values; `best` is an index of `values`."""
    tile = np.full((*TILE_HW, 3), 255, np.uint8)
    is_finite = np.isfinite(values)
    if not is_finite.any():
        return tile
    low, high = values[is_finite].min(), values[is_finite].max()
    height, width = (side - 2 * _MARGIN for side in TILE_HW)
    x = _MARGIN + np.arange(len(values)) * width / max(len(values) - 1, 1)
    relative = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    y = _MARGIN + (1 - relative) * height
    for start in phase_starts:
        middle = round(float(x[start - 1] + x[start]) / 2)
        cv2.line(tile, (middle, 0), (middle, TILE_HW[0]), _PHASE_RGB)
    points = np.stack([x, y], axis=-1)[is_finite].round().astype(np.int32)
    cv2.polylines(tile, [points[:, None]], isClosed=False, color=_CURVE_RGB, thickness=2)
    for point in points if len(points) == 1 else ():
        cv2.circle(tile, point.tolist(), 2, _CURVE_RGB, cv2.FILLED)
    if best is not None and is_finite[best]:
        center = round(float(x[best])), round(float(y[best]))
        cv2.circle(tile, center, 4, _BEST_RGB, cv2.FILLED)
    return tile


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
