"""Box formats, IoU, clipping and non-maximum suppression.

Boxes are half-open `xyxy` in pixels, unless a box format is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np


class BoxFormat(NamedTuple):
    """Meaning of the four numbers of a box, read as two pairs."""

    first: Literal["corner", "center"]  # meaning of the first pair
    second: Literal["corner", "size"]  # meaning of the second pair
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
_KEPT_CHUNK = 32  # kept boxes that candidates are compared with at once
_BAND_GROWTH = 4


def to_xyxy(
    boxes: np.ndarray,  # (..., 4)
    box_format: str,
    height: int,
    width: int,
) -> np.ndarray:  # (..., 4) float32
    """Convert boxes to `xyxy` in pixels.

    Args:
        boxes: boxes in `box_format`.
        box_format: a key of `BOX_FORMATS`; the names are those of Keras.
        height: of the image in pixels; only relative formats use it.
        width: likewise.

    Raises:
        ValueError: the format is not in `BOX_FORMATS`.
    """
    if box_format not in BOX_FORMATS:
        known = ", ".join(BOX_FORMATS)
        raise ValueError(f"box format {box_format!r} is not known: use one of {known}")
    fields = BOX_FORMATS[box_format]
    pairs: np.ndarray = np.asarray(boxes, np.float32).reshape(*np.shape(boxes)[:-1], 2, 2)
    if fields.is_y_first:
        pairs = pairs[..., ::-1]
    if fields.is_relative:
        pairs = pairs * np.array([width, height], np.float32)
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    if fields.first == "center":
        first = first - second / 2
    if fields.second == "size":
        second = first + second
    return np.concatenate([first, second], axis=-1)


def clip_boxes(
    xyxy: np.ndarray,  # (..., 4)
    height: int,
    width: int,
) -> np.ndarray:  # (..., 4)
    """Clip boxes to the image; a box outside the image becomes empty."""
    clipped: np.ndarray = np.clip(xyxy, 0, np.array([width, height] * 2, xyxy.dtype))
    return clipped


def iou(
    a_xyxy: np.ndarray,  # (M, 4)
    b_xyxy: np.ndarray,  # (N, 4)
) -> np.ndarray:  # (M, N) float64
    """Return the intersection over union, in 0..1, of every box of `a` with every box of `b`.

    An empty box, or a box with swapped corners, has area 0, and IoU 0 with every box, itself
    included.
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
    union[union == 0] = 1  # both boxes are empty: the IoU is 0 / 1
    intersection /= union
    return intersection


def _area(corners: list[np.ndarray]) -> np.ndarray:
    area: np.ndarray = np.maximum(corners[2] - corners[0], 0) * np.maximum(
        corners[3] - corners[1], 0
    )
    return area


class NmsSettings(NamedTuple):
    """Settings of `non_max_suppression`."""

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
    """Keep the most confident boxes, by greedy non-maximum suppression.

    A candidate is a box with one of its classes. The best candidate is kept, and all candidates of
    the same class that overlap it are removed; this repeats with the remaining candidates. Of equal
    scores the lower row, then the lower class id, is the better one.

    Args:
        boxes: candidate boxes, finite.
        scores: scores of the boxes for C classes, finite.
        score_threshold: minimum score of a candidate.
        iou_threshold: a candidate with an IoU above it is removed.
        max_detections: maximum number of kept candidates, over all classes.
        class_agnostic: a box is a candidate once, with its best class, and boxes of different
            classes suppress each other.
        classes_kept: class ids; all other classes are ignored. None: all classes.

    Returns:
        Rows and class ids of the kept candidates, best first.

    Raises:
        ValueError: a score or a box is not finite.
    """
    _require_finite(boxes, scores)
    class_of_column = _class_of_column(scores, classes_kept)
    scores = scores if classes_kept is None else scores[:, class_of_column]
    if class_agnostic and scores.size:
        best = scores.argmax(axis=1)
        scores = np.take_along_axis(scores, best[:, None], axis=1)
    row, column = _greedy(boxes, scores, score_threshold, iou_threshold, max_detections)
    if class_agnostic and scores.size:
        column = best[row]
    return row, class_of_column[column]


def _require_finite(boxes: np.ndarray, scores: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        is_finite = np.isfinite(scores.sum())  # fast; a sum of finite scores may overflow
    if not is_finite and not np.isfinite(scores).all():
        row, class_id = np.argwhere(~np.isfinite(scores))[0]
        name, value = f"score of box {row}, class {class_id},", scores[row, class_id]
    elif not np.isfinite(boxes).all():
        row, column = np.argwhere(~np.isfinite(boxes))[0]
        name, value = f"corner {column} of box {row}", boxes[row, column]
    else:
        return
    raise ValueError(
        f"the {name} is {value}: boxes and scores must be finite; "
        "check the network and its precision for an overflow"
    )


def _class_of_column(
    scores: np.ndarray,  # (N, C)
    classes_kept: Sequence[int] | None,
) -> np.ndarray:  # (C',) int32, ascending
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
    """Return row and column of the kept candidates, best first.

    Candidates are processed in bands of falling score, until enough are kept, so that most scores
    are never sorted. Candidates of a band that kept boxes suppress are removed; the others are
    sorted and compared with each other in chunks.
    """
    num_classes = scores.shape[1]
    flat = np.ascontiguousarray(scores).reshape(-1)
    kept = np.zeros((0, 2), np.int64)  # row, column
    for band in _bands(flat, np.float32(score_threshold), 2 * max_detections):
        candidates = np.stack(np.divmod(band, num_classes), axis=1)
        remaining = _unsuppressed(candidates, kept, boxes, iou_threshold)
        remaining = remaining[np.argsort(-flat[band[remaining]], kind="stable")]
        for start in range(0, len(remaining), _CHUNK):
            chunk = candidates[remaining[start : start + _CHUNK]]
            if start > 0:
                chunk = chunk[_unsuppressed(chunk, kept, boxes, iou_threshold)]
            chunk = chunk[_keep_best(chunk, boxes, iou_threshold)]
            kept = np.concatenate([kept, chunk])
            if len(kept) >= max_detections:
                return kept[:max_detections, 0], kept[:max_detections, 1]
    return kept[:, 0], kept[:, 1]


def _bands(
    flat: np.ndarray,  # (S,) float32
    threshold: np.float32,
    size: int,
) -> Iterator[np.ndarray]:  # of (B,) int64
    """Yield the positions of all scores ≥ threshold in bands of falling score.

    The first band has about `size` positions. Every score of a band is below every score of the
    band before, so equal scores are in one band; positions ascend within a band.
    """
    positions = np.flatnonzero(flat >= threshold)  # few of many: nothing else reads all scores
    scores, upper = flat[positions], np.float32(np.inf)
    while 0 < size < len(positions):
        kth = len(positions) - size
        cut = np.partition(scores, kth)[kth]
        yield positions[(scores >= cut) & (scores < upper)]
        upper = cut
        size *= _BAND_GROWTH
    yield positions[scores < upper]


def _unsuppressed(
    candidates: np.ndarray,  # (M, 2) row, column
    kept: np.ndarray,  # (K, 2) row, column
    boxes: np.ndarray,  # (N, 4)
    iou_threshold: float,
) -> np.ndarray:  # (≤M,) int64
    """Return, ascending, the candidates that no kept box of their column suppresses."""
    is_kept = np.ones(len(candidates), bool)
    for column in np.unique(kept[:, 1]):
        members = np.flatnonzero(candidates[:, 1] == column)
        rivals = boxes[kept[kept[:, 1] == column, 0]]
        for start in range(0, len(rivals), _KEPT_CHUNK):
            overlap = iou(boxes[candidates[members, 0]], rivals[start : start + _KEPT_CHUNK])
            is_suppressed = (overlap > iou_threshold).any(axis=1)
            is_kept[members[is_suppressed]] = False
            members = members[~is_suppressed]
    return np.flatnonzero(is_kept)


def _keep_best(
    candidates: np.ndarray,  # (M, 2) row, column, best first
    boxes: np.ndarray,  # (N, 4)
    iou_threshold: float,
) -> np.ndarray:  # (≤M,) int64
    """Return, ascending, the candidates that no better one among them suppresses."""
    xyxy = boxes[candidates[:, 0]]
    column = candidates[:, 1]
    suppresses = np.triu((iou(xyxy, xyxy) > iou_threshold) & (column[:, None] == column), k=1)
    is_suppressed = np.zeros(len(candidates), bool)
    for better in np.flatnonzero(suppresses.any(axis=1)):
        if not is_suppressed[better]:
            is_suppressed |= suppresses[better]
    return np.flatnonzero(~is_suppressed)
