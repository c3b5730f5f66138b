"""COCO run-length encoding (RLE) of masks: regions, run lengths, and the compressed string.

Run lengths count the pixels outside, inside, outside, ... of a region, column by column.

Source: cocodataset.org/#format-data; pycocotools, maskApi.c.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvbatch.images.orientation import Size

_MAX_CHARACTERS = 12  # of one number, 5 bits each; no image has longer runs
_MAX_RUN = 2**53


class Window(NamedTuple):
    """A part of a mask; the mask is empty elsewhere."""

    top: int
    left: int
    region: np.ndarray  # (h, w) bool


def encode_rle(
    region: np.ndarray,  # (h, w) bool
) -> np.ndarray:  # (R,) int64
    """Return the run lengths of a region."""
    return encode_window(Window(0, 0, region), (region.shape[0], region.shape[1]))


def encode_window(window: Window, size: Size) -> np.ndarray:  # (R,) int64
    """Return the run lengths of a mask of which only a part is in memory.

    Args:
        window: the part, inside the mask.
        size: height and width of the mask.
    """
    padded = np.pad(window.region.T, ((0, 0), (1, 1)))  # columns become rows
    edges = np.flatnonzero(padded[:, 1:] != padded[:, :-1])  # in turn into and out of the region
    column, row = np.divmod(edges, window.region.shape[0] + 1)
    positions = (window.left + column) * size[0] + window.top + row
    start, end = positions[::2], positions[1::2]
    is_new = np.ones(len(start), bool)  # a run may go on at the top of the next column
    is_new[1:] = start[1:] > end[:-1]
    bounds = np.stack([start[is_new], end[np.append(is_new[1:], True)[: len(end)]]], axis=1)
    runs = np.diff(bounds.reshape(-1), prepend=0, append=size[0] * size[1])
    return runs if runs[-1] or len(runs) == 1 else runs[:-1]


def decode_rle(counts: np.ndarray, size: Size) -> np.ndarray:  # (R,) → (h, w) bool
    """Return the region of run lengths.

    Raises:
        ValueError: the runs do not sum to the number of pixels.
    """
    height, width = size
    is_inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(is_inside, check_runs(counts, size)).reshape(width, height).T


def check_runs(counts: np.ndarray, size: Size) -> np.ndarray:  # (R,) → (R,)
    """Return run lengths of a mask.

    Raises:
        ValueError: they do not sum to the number of pixels.
    """
    num_pixels = size[0] * size[1]
    is_invalid = counts.min(initial=0) < 0 or counts.max(initial=0) > num_pixels
    if is_invalid or int(counts.sum()) != num_pixels:
        raise ValueError(f"the runs do not sum to {size[0]} x {size[1]} pixels")
    return counts


def compress_rle(
    counts: np.ndarray,  # (R,) int64
) -> str:
    """Return run lengths as the string of COCO's compressed RLE; see `parse_compressed_rle`."""
    rest = counts.astype(np.int64)
    rest[3:] -= counts[1:-2]
    characters, is_open = [], np.ones(len(rest), bool)
    while is_open.any():
        bits = rest & 31
        rest >>= 5
        is_last = rest == np.where(bits & 16, -1, 0)
        characters.append(np.where(is_open, bits + np.where(is_last, 0, 32) + 48, 0))
        is_open &= ~is_last
    if not characters:
        return ""
    letters = np.stack(characters, axis=1).astype(np.uint8)
    return letters[letters > 0].tobytes().decode()


def parse_compressed_rle(text: str) -> np.ndarray:  # (R,) int64
    """Return the run lengths of COCO's compressed string.

    A character contains five bits of a number, least significant first, as an offset from "0".
    Bit 5 is set if more characters follow; bit 4 of the last one is the sign. From the fourth
    number on it is the difference to the number two before.

    Source: pycocotools, maskApi.c, rleFrString.

    Raises:
        ValueError: the string is not valid.
    """
    bits = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64) - 48
    is_invalid = (bits < 0) | (bits >= 64)
    if is_invalid.any():
        character = text[int(is_invalid.argmax())]
        raise ValueError(f"{character!r} is not a character of a run length")
    is_last = bits & 32 == 0
    if not len(bits):
        return bits
    if not is_last[-1]:
        raise ValueError("the last run length is truncated")
    first = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    length = np.diff(first, append=len(bits))
    if length.max() > _MAX_CHARACTERS:
        raise ValueError("a run length is larger than any image")
    shift = 5 * (np.arange(len(bits)) - np.repeat(first, length))
    counts = np.add.reduceat((bits & 31) << shift, first)
    is_negative = bits[is_last] & 16 > 0
    counts -= np.where(is_negative, np.int64(1) << (5 * length), 0)
    if np.abs(counts.astype(np.float64)).sum() > _MAX_RUN:  # the sums below stay exact
        raise ValueError("a run length is larger than any image")
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts
