"""Plots of an evaluation: precision-recall, confusion matrix, insertion and deletion curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cvbatch.evaluate.perturbation import area_under_curve
from cvbatch.images.drawing import TILE_HW, contact_sheet, to_png, write_text
from cvbatch.metrics.base import ratio
from cvbatch.metrics.classification import Confusion

MAX_CURVES = 24  # classes, those with most objects
CURVES_FILE = "insertion_deletion.png"
MAX_NAMED = 40  # classes; a larger confusion matrix has no names
_COLUMNS = 4
_EDGE = 12  # pixels between a curve and the border of its tile
_BLUE, _GRID = (0, 114, 178), (210, 210, 210)  # RGB
_ORANGE = (213, 94, 0)  # RGB; random heatmaps
_SIDE = 640  # pixels of the confusion matrix
_MARGIN = 150  # pixels for the names
_TEXT, _GAP = 13, 4  # pixels


class ClassCaptions(NamedTuple):
    """Captions under the curves of C classes."""

    metric: str
    values: np.ndarray  # (C,) float64
    support: np.ndarray  # (C,) int64 objects or images of the class
    names: Sequence[str]  # C


def draw_precision_recall(
    curve: Callable[[int], tuple[np.ndarray, np.ndarray]],  # class → recall (P,), precision (P,)
    captions: ClassCaptions,
) -> np.ndarray:  # (h, w, 3) uint8 RGB
    """Return a contact sheet with a curve for each class, those with most objects first."""
    metric, values, support, names = captions
    tiles, texts = [], []
    for k in np.argsort(-support, kind="stable")[:MAX_CURVES].tolist():
        tiles.append(_plot([(*curve(k), _BLUE)]))
        value = "none" if np.isnan(values[k]) else f"{values[k]:.3f}"
        texts.append(f"{names[k]}: {metric} {value}, {support[k]:,}")
    return contact_sheet(tiles, texts, _COLUMNS)


def draw_faithfulness_curves(
    mean: dict[str, np.ndarray],  # each (S + 1,)
) -> bytes:
    """Return score over share of replaced pixels as PNG; heatmaps in blue, random maps in orange.

    Args:
        mean: of `cvbatch.evaluate.heatmap_metrics.mean_curves`.
    """
    tiles, captions = [], []
    for name in ("insertion", "deletion"):
        curve, random = mean[name], mean[f"random_{name}"]
        tiles.append(_plot([(mean["share"], random, _ORANGE), (mean["share"], curve, _BLUE)]))
        auc, random_auc = area_under_curve(curve), area_under_curve(random)
        captions.append(f"{name}: {auc:.3f}, random {random_auc:.3f}")
    return to_png(contact_sheet(tiles, captions, len(tiles)))


def _plot(
    lines: Sequence[tuple[np.ndarray, np.ndarray, tuple[int, int, int]]],  # x (n,), y (n,), RGB
) -> np.ndarray:  # (h, w, 3) uint8 RGB
    """Return a tile with lines over 0..1 on both axes and a grid of quarters."""
    tile = np.full((*TILE_HW, 3), 255, np.uint8)
    height, width = (side - 2 * _EDGE for side in TILE_HW)
    for quarter in range(5):
        x, y = _EDGE + quarter * width // 4, _EDGE + quarter * height // 4
        cv2.line(tile, (x, _EDGE), (x, _EDGE + height), _GRID)
        cv2.line(tile, (_EDGE, y), (_EDGE + width, y), _GRID)
    for xs, ys, color in lines:
        is_defined = np.isfinite(xs) & np.isfinite(ys)
        points = np.stack([_EDGE + xs * width, _EDGE + (1 - ys) * height], axis=-1)
        line = points[is_defined].round().astype(np.int32)
        if len(line):
            cv2.polylines(tile, [line[:, None]], isClosed=False, color=color, thickness=2)
    return tile


def draw_confusion(confusion: Confusion, names: Sequence[str]) -> np.ndarray:  # (h, w, 3) uint8 RGB
    """Return a matrix with a row for each true class; the darker, the larger the share of it.

    The last column is "none": no class was predicted.
    """
    totals = confusion.support[:, None] + np.zeros_like(confusion.counts)
    share = np.nan_to_num(ratio(confusion.counts, totals))
    shade = 255 - np.outer(share.reshape(-1), 255 - np.array(_BLUE))
    cells = shade.round().astype(np.uint8).reshape(*share.shape, 3)
    matrix = cv2.resize(cells, (_SIDE, _SIDE), interpolation=cv2.INTER_NEAREST)
    if len(names) > MAX_NAMED:
        return np.asarray(matrix)
    side = _MARGIN + _SIDE
    canvas = np.full((side, side, 3), 255, np.uint8)
    canvas[_MARGIN:, _MARGIN:] = matrix
    rows, columns = names, (*names, "none")
    _write_names(canvas, {_center(i, len(rows)): name for i, name in enumerate(rows)})
    turned = np.ascontiguousarray(np.rot90(canvas))
    _write_names(turned, {side - _center(j, len(columns)): name for j, name in enumerate(columns)})
    return np.ascontiguousarray(np.rot90(turned, -1))


def _center(index: int, count: int) -> int:
    """Return the pixel in the middle of a row or column of the matrix."""
    return _MARGIN + (2 * index + 1) * _SIDE // (2 * count)


def _write_names(
    canvas: np.ndarray,  # (h, w, 3) uint8; changed
    names: dict[int, str],  # by y
) -> None:
    for y, name in names.items():
        write_text(canvas, name, (_GAP, y + _TEXT // 3), _MARGIN - 2 * _GAP, _TEXT)
