"""Boxes are compared, converted and thinned out here, once, for every model and every score.

Boxes are half-open `xyxy` in pixels. Suppression has a definition, `suppress_reference`, and a
fast equal of it, `suppress`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np


class BoxFormat(NamedTuple):
    """How the four numbers of a box are to be read."""

    first: Literal["corner", "center"]  # what the first pair is
    second: Literal["corner", "size"]  # what the second pair is
    is_y_first: bool  # pairs are (y, x) and (height, width)
    is_relative: bool  # fractions of the image's height and width


BOX_FORMATS: dict[str, BoxFormat] = {
    "xyxy": BoxFormat("corner", "corner", is_y_first=False, is_relative=False),
    "yxyx": BoxFormat("corner", "corner", is_y_first=True, is_relative=False),
    "xywh": BoxFormat("corner", "size", is_y_first=False, is_relative=False),
    "center_xywh": BoxFormat("center", "size", is_y_first=False, is_relative=False),
    "center_yxhw": BoxFormat("center", "size", is_y_first=True, is_relative=False),
    "rel_xyxy": BoxFormat("corner", "corner", is_y_first=False, is_relative=True),
    "rel_yxyx": BoxFormat("corner", "corner", is_y_first=True, is_relative=True),
    "rel_xywh": BoxFormat("corner", "size", is_y_first=False, is_relative=True),
    "rel_center_xywh": BoxFormat("center", "size", is_y_first=False, is_relative=True),
}

_CHUNK = 256  # candidates that are compared with each other at once
_KEPT_SLICE = 32  # kept boxes that candidates are compared with at once
_BAND_GROWTH = 4


def to_xyxy(
    boxes: np.ndarray,  # (..., 4)
    box_format: str,
    height: int,
    width: int,
) -> np.ndarray:  # (..., 4) float32
    """Return boxes as `xyxy` pixels of an image of `height` × `width`.

    box_format: a key of `BOX_FORMATS`, named as Keras names them; height and width matter to
    the relative ones alone.

    Raises:
        ValueError: the format is not in the table.
    """
    if box_format not in BOX_FORMATS:
        known = ", ".join(BOX_FORMATS)
        raise ValueError(f"box format {box_format!r} is not known: use one of {known}")
    reading = BOX_FORMATS[box_format]
    pairs: np.ndarray = np.asarray(boxes, np.float32).reshape(*np.shape(boxes)[:-1], 2, 2)
    if reading.is_y_first:
        pairs = pairs[..., ::-1]
    if reading.is_relative:
        pairs = pairs * np.array([width, height], np.float32)
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    if reading.first == "center":
        first = first - second / 2
    if reading.second == "size":
        second = first + second
    return np.concatenate([first, second], axis=-1)


def clip_boxes(
    xyxy: np.ndarray,  # (..., 4)
    height: int,
    width: int,
) -> np.ndarray:  # (..., 4)
    """Return the boxes cut off at the image's border; one wholly outside becomes empty."""
    clipped: np.ndarray = np.clip(xyxy, 0, np.array([width, height] * 2, xyxy.dtype))
    return clipped


def iou(
    a_xyxy: np.ndarray,  # (M, 4)
    b_xyxy: np.ndarray,  # (N, 4)
) -> np.ndarray:  # (M, N) float64
    """Return the intersection over union of every a with every b, in 0..1.

    A box without an area (empty, or its corners swapped) has area 0, and IoU 0 with anything,
    itself included.
    """
    a = [column[:, None] for column in a_xyxy.astype(np.float64).T]
    b = [column[None, :] for column in b_xyxy.astype(np.float64).T]
    width: np.ndarray = np.minimum(a[2], b[2])
    width -= np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3])
    height -= np.maximum(a[1], b[1])
    intersection: np.ndarray = np.maximum(width, 0, out=width)
    intersection *= np.maximum(height, 0, out=height)
    union = np.subtract(_area(a) + _area(b), intersection, out=height)
    union[union == 0] = 1  # both are empty: 0 / 1
    intersection /= union
    return intersection


def _area(corners: list[np.ndarray]) -> np.ndarray:
    area: np.ndarray = np.maximum(corners[2] - corners[0], 0) * np.maximum(
        corners[3] - corners[1], 0
    )
    return area


class NmsSettings(NamedTuple):
    """What `suppress` lets stand."""

    score_threshold: float
    iou_threshold: float
    max_detections: int
    class_agnostic: bool = False
    classes_kept: Sequence[int] | None = None


def non_max_suppression(
    boxes: np.ndarray,  # (N, 4) float32 xyxy
    scores: np.ndarray,  # (N, C) float32
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    class_agnostic: bool = False,
    classes_kept: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # (K,) int64, (K,) int32
    """Return the row and the class of the boxes that stand, best first.

    Greedy non-maximum suppression. A candidate is a box with one of its classes, its score at
    least `score_threshold`. The best candidate stands; those of the same class that overlap it by
    an IoU above `iou_threshold` fall; and so on, until `max_detections` stand. Of equal scores the
    lower box row, then the lower class id, is the better one.

    With `class_agnostic` a box is a candidate once, with the best of its classes, and falls
    whatever the class of the box it overlaps. `classes_kept` leaves out all other classes
    before anything else. Equal to `suppress_reference`, always.

    Raises:
        ValueError: a score or a box is not finite.
    """
    _require_finite(boxes, scores)
    class_of_column = _columns(scores, classes_kept)
    scores = scores if classes_kept is None else scores[:, class_of_column]
    if class_agnostic and scores.size:
        best = scores.argmax(axis=1)
        scores = np.take_along_axis(scores, best[:, None], axis=1)
    row, column = _greedy(boxes, scores, score_threshold, iou_threshold, max_detections)
    if class_agnostic and scores.size:
        column = best[row]
    return row, class_of_column[column]


def suppress_reference(
    boxes: np.ndarray,  # (N, 4) float32 xyxy
    scores: np.ndarray,  # (N, C) float32
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    class_agnostic: bool = False,
    classes_kept: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # (K,) int64, (K,) int32
    """Return what `suppress` must return: its definition, in plain loops, slow.

    Raises:
        ValueError: a score or a box is not finite.
    """
    _require_finite(boxes, scores)
    classes = _columns(scores, classes_kept).tolist()
    candidates = []  # (−score, row, class): ascending is best first
    for row in range(len(scores)):
        of_row = [(-scores[row, c], row, c) for c in classes]
        candidates += sorted(of_row)[:1] if class_agnostic else of_row
    overlap = iou(boxes, boxes)
    standing: list[tuple[int, int]] = []
    for negative_score, row, class_id in sorted(candidates):
        if len(standing) == max_detections or -negative_score < score_threshold:
            break
        rivals = [r for r, c in standing if class_agnostic or c == class_id]
        if all(overlap[row, r] <= iou_threshold for r in rivals):
            standing.append((row, class_id))
    result = np.array(standing, np.int64).reshape(-1, 2)
    return result[:, 0], result[:, 1].astype(np.int32)


def _require_finite(boxes: np.ndarray, scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        row, class_id = np.argwhere(~np.isfinite(scores))[0]
        at, value = f"score of box {row}, class {class_id},", scores[row, class_id]
    elif not np.isfinite(boxes).all():
        row, column = np.argwhere(~np.isfinite(boxes))[0]
        at, value = f"corner {column} of box {row}", boxes[row, column]
    else:
        return
    raise ValueError(
        f"the {at} is {value}: boxes and scores must be finite; "
        "look for an overflow in the network or its precision"
    )


def _columns(scores: np.ndarray, classes_kept: Sequence[int] | None) -> np.ndarray:  # → (C',) int32
    """Return the classes that may be found, ascending."""
    if classes_kept is None:
        return np.arange(scores.shape[1], dtype=np.int32)
    return np.unique(np.array(classes_kept, np.int32))


def _greedy(
    boxes: np.ndarray,  # (N, 4)
    scores: np.ndarray,  # (N, C)
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[np.ndarray, np.ndarray]:  # (K,) int64, (K,) int64
    """Return row and column of what stands, best first.

    Greedy goes best first, so the best are looked at first and the others only while too few
    stand: in bands of falling score, each thinned by what stands already, then sorted, then
    resolved in chunks.
    """
    num_classes = scores.shape[1]
    flat = np.ascontiguousarray(scores).reshape(-1)
    standing = np.zeros((0, 2), np.int64)  # row, column
    for band in _bands(flat, np.float32(score_threshold), 2 * max_detections):
        candidates = np.stack(np.divmod(band, num_classes), axis=1)
        alive = _not_fallen(candidates, standing, boxes, iou_threshold)
        alive = alive[np.argsort(-flat[band[alive]], kind="stable")]
        for start in range(0, len(alive), _CHUNK):
            chunk = candidates[alive[start : start + _CHUNK]]
            if start > 0:
                chunk = chunk[_not_fallen(chunk, standing, boxes, iou_threshold)]
            chunk = chunk[_resolve(chunk, boxes, iou_threshold)]
            standing = np.concatenate([standing, chunk])
            if len(standing) >= max_detections:
                return standing[:max_detections, 0], standing[:max_detections, 1]
    return standing[:, 0], standing[:, 1]


def _bands(
    flat: np.ndarray,  # (S,) float32
    threshold: np.float32,
    size: int,
) -> Iterator[np.ndarray]:  # of (B,) int64
    """Yield the positions of all scores ≥ threshold in bands, the first of about `size`.

    Every score in a band is below every score of the band before, so equal scores are never
    parted; positions ascend within a band.
    """
    upper = np.float32(np.inf)
    while flat.size and size:
        size = min(size, flat.size)
        kth = flat.size - size
        cut = max(np.partition(flat, kth)[kth], threshold)
        yield np.flatnonzero((flat >= cut) & (flat < upper))
        if cut == threshold or size == flat.size:
            return
        upper = cut
        size *= _BAND_GROWTH


def _not_fallen(
    candidates: np.ndarray,  # (M, 2) row, column
    standing: np.ndarray,  # (K, 2) row, column
    boxes: np.ndarray,  # (N, 4)
    iou_threshold: float,
) -> np.ndarray:  # (≤M,) int64
    """Return, ascending, the candidates that no standing box of their column overlaps."""
    is_alive = np.ones(len(candidates), bool)
    for column in np.unique(standing[:, 1]):
        members = np.flatnonzero(candidates[:, 1] == column)
        rivals = boxes[standing[standing[:, 1] == column, 0]]
        for start in range(0, len(rivals), _KEPT_SLICE):
            overlap = iou(boxes[candidates[members, 0]], rivals[start : start + _KEPT_SLICE])
            has_fallen = (overlap > iou_threshold).any(axis=1)
            is_alive[members[has_fallen]] = False
            members = members[~has_fallen]
    return np.flatnonzero(is_alive)


def _resolve(
    candidates: np.ndarray,  # (M, 2) row, column, best first
    boxes: np.ndarray,  # (N, 4)
    iou_threshold: float,
) -> np.ndarray:  # (≤M,) int64
    """Return, ascending, the candidates that stand among themselves."""
    own = boxes[candidates[:, 0]]
    column = candidates[:, 1]
    beats = np.triu((iou(own, own) > iou_threshold) & (column[:, None] == column), k=1)
    has_fallen = np.zeros(len(candidates), bool)
    for better in np.flatnonzero(beats.any(axis=1)):
        if not has_fallen[better]:
            has_fallen |= beats[better]
    return np.flatnonzero(~has_fallen)
