"""Class of each pixel of an original, from class probabilities on the grid of a network.

Probabilities are interpolated linearly between the centres of the cells, then the largest one is
chosen. Where the cells around a pixel agree, so does the pixel, and few classes can win elsewhere:
the work depends on the length of the boundaries, hardly on the number of classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cvbatch.config.models import ADD_BACKGROUND, SegmentationConfig
from cvbatch.core.types import VOID_CLASS
from cvbatch.geometry.resampling import Taps, bilinear_taps, interpolate
from cvbatch.geometry.resize import Placement

_BLOCK = 256  # pixels of the original along each side that are classified at once
# Pixels of the original × channels, of which 32 are counted at least: planes of 8 MiB in float32.
_MAX_WHOLE_VALUES = 64 << 20
_ABOVE_HALF = float(np.nextafter(np.float32(0.5), np.float32(1)))
_ROUNDING = 1e-6  # of the mean of float32 scores
_BELOW = -1  # in place of the class of a cell whose best score is below the threshold


class ClassRule(NamedTuple):
    """How channels become class ids.

    Attributes:
        threshold: pixels whose best score is below it are background; None: no pixel.
        background: class id of these pixels.
        offset: class id of channel 0.
    """

    threshold: float | None
    background: int
    offset: int

    @staticmethod
    def of(config: SegmentationConfig, classes: Sequence[str], channels: int) -> ClassRule:
        """Return the rule of a job; without a threshold in it, one half separates two classes."""
        threshold = config.score_threshold
        if channels == 1:
            return ClassRule(_ABOVE_HALF if threshold is None else threshold, 0, 1)
        if config.background == ADD_BACKGROUND:
            return ClassRule(0.5 if threshold is None else threshold, 0, 1)
        if threshold is None:
            return ClassRule(None, 0, 0)
        return ClassRule(threshold, classes.index(str(config.background)), 0)

    def classes(
        self,
        channel: np.ndarray,  # (...) best channel
        best: np.ndarray,  # (...) its score, or the sum of several scores
        count: np.ndarray | int = 1,  # (...) number of scores in the sum
    ) -> np.ndarray:  # (...) of the type of `channel`
        """Return class ids; of equal scores the first channel is the best."""
        ids = channel + self.offset
        if self.threshold is None:
            return ids
        return np.where(best < np.float32(self.threshold) * count, self.background, ids)


def classify(
    probabilities: np.ndarray,  # (h, w, C) float32
    placement: Placement,
    rule: ClassRule,
) -> np.ndarray:  # (height, width) uint8
    """Return the class of every pixel, evaluated at its centre.

    Pixels outside a centre crop are `VOID_CLASS`. Padding has no influence: beyond the outermost
    centres inside the original, the nearest probabilities are used.

    Args:
        probabilities: of every channel, on a grid of any size over the network's input.
        placement: position of the original in the input.
        rule: how channels become class ids.
    """
    if _is_small_and_whole(probabilities, placement):
        size = placement.width, placement.height
        planes = (cv2.resize(plane, size) for plane in _channels_first(probabilities))  # linear
        return _best_of(planes, range(probabilities.shape[2]), rule)
    top, rows, left, columns = bilinear_taps(placement, probabilities.shape)
    channel = probabilities.argmax(axis=2)
    best = np.take_along_axis(probabilities, channel[..., None], axis=2)[..., 0]
    mask = np.full((placement.height, placement.width), VOID_CLASS, np.uint8)
    inside = mask[top : top + len(rows), left : left + len(columns)]
    if not (rows.weight.any() or columns.weight.any()):  # pixels are at the centres of cells
        ids = rule.classes(channel, best).astype(np.uint8)
        inside[:] = ids.take(rows.low, axis=0).take(columns.low, axis=1)
        return mask
    if rule.threshold is not None:
        channel = np.where(best < np.float32(rule.threshold), _BELOW, channel)
    for y in _blocks(rows):
        for x in _blocks(columns):
            inside[y, x] = _classify_block(
                probabilities, channel, rows.part(y), columns.part(x), rule
            )
    return mask


def _blocks(taps: Taps) -> Iterator[slice]:
    """Divide an axis: blocks of few cells and of many pixels are both slow."""
    for start in range(0, len(taps), _BLOCK):
        yield slice(start, min(start + _BLOCK, len(taps)))


def _classify_block(
    probabilities: np.ndarray,  # (h, w, C) float32
    channel: np.ndarray,  # (h, w) best channel of each cell, or _BELOW
    rows: Taps,
    columns: Taps,
    rule: ClassRule,
) -> np.ndarray:  # (R, S), or a number where all are equal
    cells = slice(rows.low[0], rows.high[-1] + 1), slice(columns.low[0], columns.high[-1] + 1)
    present = np.unique(channel[cells])
    if len(present) == 1:
        is_below = present[0] == _BELOW
        return np.array(rule.background if is_below else present[0] + rule.offset)
    values = probabilities[cells]
    candidates = _candidates(values, present[present != _BELOW])
    planes = _channels_first(values[..., candidates])
    planes = interpolate(planes, columns.from_first(), axis=2)  # there are fewer rows before
    planes = interpolate(planes, rows.from_first(), axis=1)
    return _best_of(planes, candidates, rule)


def _best_of(
    planes: Iterable[np.ndarray],  # K of (R, S) float32: scores of some channels
    numbers: Iterable[int],  # K, of these channels, ascending
    rule: ClassRule,
) -> np.ndarray:  # (R, S) uint8
    """Return the classes of pixels; only a few planes are in memory at a time."""
    pairs = zip(numbers, planes, strict=True)
    first, best = next(pairs)
    winner = np.full(best.shape, first, np.uint8)
    for number, plane in pairs:
        winner = np.maximum(winner, (plane > best) * np.uint8(number))
        best = np.maximum(best, plane)
    return rule.classes(winner, best)


def _channels_first(values: np.ndarray) -> np.ndarray:  # (h, w, K) → (K, h, w)
    """Return the planes of channels, which `cv2.split` returns for up to 128 of them only."""
    return np.ascontiguousarray(np.moveaxis(values, 2, 0))


def _is_small_and_whole(probabilities: np.ndarray, placement: Placement) -> bool:
    """Return whether OpenCV may resize whole planes: faster than blocks, if they are not large."""
    height, width, channels = placement.height, placement.width, probabilities.shape[2]
    is_whole = placement.source == (0, 0, height, width)
    is_whole &= placement.target == (0, 0, placement.input_height, placement.input_width)
    is_resized = probabilities.shape[:2] != (height, width)
    return is_whole and is_resized and height * width * max(channels, 32) <= _MAX_WHOLE_VALUES


def _candidates(
    values: np.ndarray,  # (h, w, C)
    present: np.ndarray,  # channels that are the best of a cell
) -> np.ndarray:  # (K,) ascending
    """Return the channels that can be the best between the cells.

    A channel that is nowhere above the mean of some channels is nowhere above the best of them, and
    an interpolated value is between the smallest and the largest of its cells.
    """
    channels = present if len(present) else slice(None)
    lowest = values[..., channels].mean(axis=2).min() - _ROUNDING
    return np.flatnonzero(values.max(axis=(0, 1)) >= lowest)
