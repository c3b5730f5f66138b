"""Areas and intersections of run-length encoded masks, without decoding them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_EDGES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class RunMasks:
    """Masks of any sizes, as the ends of their runs.

    Attributes:
        edges: (E,) int64, of all masks: first pixel of a run inside, pixel after it, first pixel of
            the next one, ..., counted column by column.
        first: (N + 1,) int64: mask m has `edges[first[m]:first[m + 1]]`.
        num_pixels: (N,) int64, height x width.
    """

    edges: np.ndarray
    first: np.ndarray
    num_pixels: np.ndarray

    @classmethod
    def of(cls, runs: Sequence[np.ndarray]) -> RunMasks:  # N of (R,) int64
        """Return masks from their run lengths, see `cvbatch.images.rle`."""
        edges = [np.cumsum(counts)[: len(counts) // 2 * 2] for counts in runs]
        none = np.zeros(0, np.int64)
        return cls(
            np.concatenate([none, *edges]),
            np.cumsum([0, *(len(part) for part in edges)]),
            np.array([counts.sum() for counts in runs], np.int64),
        )

    @property
    def areas(self) -> np.ndarray:  # (N,) float64
        """Return the pixels inside of each mask."""
        lengths = self.edges[1::2] - self.edges[::2]
        sums = np.concatenate([[0.0], np.cumsum(lengths)])[self.first // 2]
        areas: np.ndarray = np.diff(sums)
        return areas


def intersections(
    a: RunMasks,
    b: RunMasks,
    a_index: np.ndarray,  # (P,)
    b_index: np.ndarray,  # (P,)
) -> np.ndarray:  # (P,) float64, pixels
    """Return the pixels that two masks have in common, for pairs of masks of the same size."""
    ends = np.cumsum(np.diff(a.first)[a_index])
    shared = [np.zeros(0)]
    start = 0
    while start < len(a_index):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + _EDGES_AT_ONCE, "right")), start + 1)
        shared.append(_intersections(a, b, a_index[start:stop], b_index[start:stop]))
        start = stop
    return np.concatenate(shared)


def _intersections(
    a: RunMasks, b: RunMasks, a_index: np.ndarray, b_index: np.ndarray
) -> np.ndarray:  # (P,)
    """Sum the pixels of `b` in every run of `a`: a difference of cumulated pixels of `b`."""
    offset = np.concatenate([[0], np.cumsum(b.num_pixels)])  # the masks of b, one after the other
    position = b.edges + np.repeat(offset[:-1], np.diff(b.first))
    lengths = np.where(np.arange(len(position)) % 2 == 1, np.diff(position, prepend=0), 0)
    inside = np.cumsum(lengths)  # pixels of all masks of b before each edge
    counts = np.diff(a.first)[a_index]
    pair = np.repeat(np.arange(len(a_index)), counts)
    in_pair = np.arange(len(pair)) - np.repeat(np.cumsum(counts) - counts, counts)
    queried = a.edges[a.first[a_index][pair] + in_pair] + offset[b_index][pair]
    if not len(position):
        return np.zeros(len(a_index))
    before = np.interp(queried, position, inside)
    signed = np.where(in_pair % 2 == 1, before, -before)
    return np.bincount(pair, signed, minlength=len(a_index))
