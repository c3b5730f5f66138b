"""What a training came to, epoch by epoch, for people and for programs.

A row is a flat dict of numbers and words. Rows of one run need not have the same keys.
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

# What every row of a training has, first and in this order; behind them stand the parts of the
# loss and the metrics.
LEADING = ("epoch", "step", "phase", "seconds", "waited_seconds", "learning_rate", "loss")
_NOT_DRAWN = {"epoch", "step", "phase", "seconds", "waited_seconds"}
_COLUMNS = 3
_INK, _LINE, _BEST = (0, 114, 178), (210, 210, 210), (213, 94, 0)
_EDGE = 12  # pixels between a curve and its tile's border


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the keys of all rows: the leading ones, then the others as they first came."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in LEADING if key in keys] + [key for key in keys if key not in LEADING]


def to_json(rows: Sequence[Row]) -> bytes:
    """Return the rows as a JSON array of objects; what is no finite number is null."""
    plain = [{key: _plain(row.get(key)) for key in columns_of(rows)} for row in rows]
    return json.dumps(plain, indent=1).encode()


def to_parquet(rows: Sequence[Row]) -> bytes:
    """Return the rows as a Parquet file: int64, double and string columns, null for what lacks."""
    columns = {key: pa.array([row.get(key) for row in rows]) for key in columns_of(rows)}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def curves_png(rows: Sequence[Row], best_epoch: int = 0) -> bytes:
    """Return a picture with a curve over the epochs for each number, lowest to highest.

    A grey line stands between two phases, a dot at the best epoch (0: none).
    """
    names = [key for key in columns_of(rows) if key not in _NOT_DRAWN]
    begun = [i for i in range(1, len(rows)) if rows[i].get("phase") != rows[i - 1].get("phase")]
    best = next((i for i, row in enumerate(rows) if row.get("epoch") == best_epoch), None)
    tiles, captions = [], []
    for name in names:
        values = np.array([_number(row.get(name)) for row in rows])
        tiles.append(_curve(values, begun, best))
        known = values[np.isfinite(values)]
        at_best = "" if best is None else f", best epoch {values[best]:.4g}"
        captions.append(f"{name}: {known[-1]:.4g}{at_best}" if known.size else f"{name}: none")
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
    """Return what is said of an epoch on a terminal."""
    said = [f"epoch {row['epoch']}", f"step {row['step']}", f"{row['seconds']:.0f} s"]
    return " · ".join(
        said
        + [f"{key} {row[key]:.4g}" for key in columns_of([row])
           if key not in _NOT_DRAWN and math.isfinite(_number(row[key]))]
    )  # fmt: skip


def _curve(values: np.ndarray, begun: Sequence[int], best: int | None) -> np.ndarray:
    """Return a tile, (h, w, 3) uint8, with a line through the values that are finite."""
    tile = np.full((*TILE_HW, 3), 255, np.uint8)
    is_known = np.isfinite(values)
    if not is_known.any():
        return tile
    low, high = values[is_known].min(), values[is_known].max()
    height, width = (side - 2 * _EDGE for side in TILE_HW)
    x = _EDGE + np.arange(len(values)) * width / max(len(values) - 1, 1)
    part = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    y = _EDGE + (1 - part) * height
    for at in begun:
        middle = round(float(x[at - 1] + x[at]) / 2)
        cv2.line(tile, (middle, 0), (middle, TILE_HW[0]), _LINE)
    points = np.stack([x, y], axis=-1)[is_known].round().astype(np.int32)
    cv2.polylines(tile, [points[:, None]], isClosed=False, color=_INK, thickness=2)
    for point in points if len(points) == 1 else ():
        cv2.circle(tile, point.tolist(), 2, _INK, cv2.FILLED)
    if best is not None and is_known[best]:
        cv2.circle(tile, (round(float(x[best])), round(float(y[best]))), 4, _BEST, cv2.FILLED)
    return tile


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
