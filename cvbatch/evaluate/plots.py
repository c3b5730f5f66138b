"""Pictures of an evaluation: precision-recall curves, confusion matrices, insertion curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cvbatch.evaluate.perturbation import area_under_curve
from cvbatch.images.drawing import TILE_HW, contact_sheet, to_png, write_text
from cvbatch.metrics.base import ratio
from cvbatch.metrics.classification import Confusion

MAX_CURVES = 24  # classes drawn, those with most objects
CURVES_FILE = "insertion_deletion.png"
MAX_NAMED = 40  # classes that a confusion picture has room to name
_COLUMNS = 4
_EDGE = 12  # pixels between a curve and its tile's border
_INK, _LINE = (0, 114, 178), (210, 210, 210)
_OTHER_INK = (213, 94, 0)  # of random heatmaps
_SIDE = 640  # pixels of a confusion picture's square
_MARGIN = 150  # for the names
_TEXT, _GAP = 13, 4


class ClassCaptions(NamedTuple):
    """What stands under the curve of each of C classes."""

    metric: str
    values: np.ndarray  # (C,) float64 of the metric
    support: np.ndarray  # (C,) int64 objects or images of the class
    names: Sequence[str]  # C


def draw_precision_recall(
    curve: Callable[[int], tuple[np.ndarray, np.ndarray]],  # class → recall (P,), precision (P,)
    captions: ClassCaptions,
) -> np.ndarray:  # (h, w, 3) uint8 RGB
    """Return a sheet with a curve for each class, those with most objects first."""
    metric, values, support, names = captions
    tiles, texts = [], []
    for k in np.argsort(-support, kind="stable")[:MAX_CURVES].tolist():
        tiles.append(_plot([(*curve(k), _INK)]))
        value = "none" if np.isnan(values[k]) else f"{values[k]:.3f}"
        texts.append(f"{names[k]}: {metric} {value}, {support[k]:,}")
    return contact_sheet(tiles, texts, _COLUMNS)


def draw_faithfulness_curves(
    mean: dict[str, np.ndarray],  # each (S + 1,)
) -> bytes:
    """Return the scores over the share of pixels that came in or went, as PNG; random in orange.

    mean: of `heatmapcard.mean_curves`.
    """
    tiles, captions = [], []
    for name in ("insertion", "deletion"):
        own, other = mean[name], mean[f"random_{name}"]
        tiles.append(_plot([(mean["share"], other, _OTHER_INK), (mean["share"], own, _INK)]))
        captions.append(
            f"{name}: {area_under_curve(own):.3f}, random {area_under_curve(other):.3f}"
        )
    return to_png(contact_sheet(tiles, captions, len(tiles)))


def _plot(
    lines: Sequence[tuple[np.ndarray, np.ndarray, tuple[int, int, int]]],  # (n,), (n,), RGB
) -> np.ndarray:  # (h, w, 3) uint8 RGB
    """Return a tile with lines from 0 to 1 either way, over a grid of quarters."""
    tile = np.full((*TILE_HW, 3), 255, np.uint8)
    height, width = (side - 2 * _EDGE for side in TILE_HW)
    for quarter in range(5):
        x, y = _EDGE + quarter * width // 4, _EDGE + quarter * height // 4
        cv2.line(tile, (x, _EDGE), (x, _EDGE + height), _LINE)
        cv2.line(tile, (_EDGE, y), (_EDGE + width, y), _LINE)
    for across, up, ink in lines:
        is_known = np.isfinite(across) & np.isfinite(up)
        points = np.stack([_EDGE + across * width, _EDGE + (1 - up) * height], axis=-1)
        line = points[is_known].round().astype(np.int32)
        if len(line):
            cv2.polylines(tile, [line[:, None]], isClosed=False, color=ink, thickness=2)
    return tile


def draw_confusion(score: Confusion, names: Sequence[str]) -> np.ndarray:  # (h, w, 3) uint8 RGB
    """Return a matrix, a row for each true class, darker where more of it was so predicted.

    The last column is "none": no class was predicted.
    """
    share = np.nan_to_num(ratio(score.counts, score.support[:, None] + np.zeros_like(score.counts)))
    shade = 255 - np.outer(share.reshape(-1), 255 - np.array(_INK))
    cells = shade.round().astype(np.uint8).reshape(*share.shape, 3)
    square = cv2.resize(cells, (_SIDE, _SIDE), interpolation=cv2.INTER_NEAREST)
    if len(names) > MAX_NAMED:
        return np.asarray(square)
    whole = _MARGIN + _SIDE
    canvas = np.full((whole, whole, 3), 255, np.uint8)
    canvas[_MARGIN:, _MARGIN:] = square
    rows, columns = names, (*names, "none")
    _name(canvas, {_center(i, len(rows)): name for i, name in enumerate(rows)})
    turned = np.ascontiguousarray(np.rot90(canvas))
    _name(turned, {whole - _center(j, len(columns)): name for j, name in enumerate(columns)})
    return np.ascontiguousarray(np.rot90(turned, -1))


def _center(place: int, count: int) -> int:
    """Return the pixel in the middle of a row or column of the matrix."""
    return _MARGIN + (2 * place + 1) * _SIDE // (2 * count)


def _name(canvas: np.ndarray, names: dict[int, str]) -> None:  # (h, w, 3) uint8, drawn upon
    for y, name in names.items():
        write_text(canvas, name, (_GAP, y + _TEXT // 3), _MARGIN - 2 * _GAP, _TEXT)
