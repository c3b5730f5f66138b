"""Label maps as PNG: encode, decode, class areas; equal maps give equal bytes."""

from __future__ import annotations

import cv2
import numpy as np

# Of OpenCV's settings these were the fastest and nearly the smallest on label maps: run-length
# encoding of the difference to the row above. The strategy must be set after the level.
_PNG = (
    cv2.IMWRITE_PNG_COMPRESSION, 1,
    cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
    cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP,
)  # fmt: skip
_EXACT_PIXELS = 2**24  # OpenCV counts in float32, which is exact up to this number


def encode_png(
    mask: np.ndarray,  # (h, w) uint8
) -> bytes:
    """Encode a mask as 8-bit grey PNG."""
    _, encoded = cv2.imencode(".png", mask, _PNG)
    return encoded.tobytes()


def decode_png(
    data: bytes,
) -> np.ndarray:  # (h, w) uint8
    """Decode a mask.

    Raises:
        ValueError: the bytes are not an 8-bit grey PNG.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[24:26] != b"\x08\x00":
        raise ValueError(f"{len(data)} bytes are not a mask: a mask must be an 8-bit grey PNG")
    mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise ValueError(f"{len(data)} bytes of PNG cannot be decoded: the mask is damaged")
    return mask


def largest_first(
    area: np.ndarray,  # (C,) int64, pixels of each class
) -> tuple[np.ndarray, np.ndarray]:  # (K,) int32, (K,) int64
    """Return the ids of the classes that occur and their pixels, largest first, ties by id."""
    class_id = np.flatnonzero(area)
    class_id = class_id[np.argsort(-area[class_id], kind="stable")]
    return class_id.astype(np.int32), area[class_id]


def count_pixels(
    mask: np.ndarray,  # (h, w) uint8
    num_classes: int,
) -> np.ndarray:  # (C,) int64
    """Count the pixels of each class of a mask.

    Args:
        mask: class ids; larger ids than `num_classes − 1`, such as `VOID_CLASS`, are not counted.
        num_classes: at most `MAX_MASK_CLASSES`.
    """
    counts = np.zeros(256, np.int64)
    rows = max(1, _EXACT_PIXELS // mask.shape[1])
    for start in range(0, len(mask), rows):
        part = cv2.calcHist([mask[start : start + rows]], [0], None, [256], [0, 256])
        counts += part.reshape(-1).astype(np.int64)
    return counts[:num_classes]
