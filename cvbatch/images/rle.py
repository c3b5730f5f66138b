"""COCO run-length encoding (RLE) of a mask; `cvbatch.importers.polygons` decodes it."""

from __future__ import annotations

import numpy as np


def encode_rle(
    region: np.ndarray,  # (h, w) bool
) -> np.ndarray:  # (R,) int64
    """Return the run lengths of a region, column by column: outside, inside, outside, ..."""
    flat = region.T.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return np.concatenate([[0], runs]) if flat[0] else runs


def compress_rle(
    counts: np.ndarray,  # (R,) int64
) -> str:
    """Return run lengths as the string of COCO's compressed RLE.

    Source: pycocotools, maskApi.c, rleToString.
    """
    differences = counts.astype(np.int64)
    differences[3:] -= counts[1:-2]
    letters = bytearray()
    for value in differences.tolist():
        while True:
            bits = value & 31
            value >>= 5
            is_last = value == (-1 if bits & 16 else 0)
            letters.append(bits + (0 if is_last else 32) + 48)
            if is_last:
                break
    return letters.decode()
