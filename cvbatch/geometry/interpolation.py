"""Resize pixels as the libraries that evaluations are published with: Pillow, TensorFlow, Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from cvbatch.core.types import Interpolation

_PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class _Kernel(NamedTuple):
    """A weight as a function of the distance in pixels, 0 from `support` on."""

    weight: Callable[[np.ndarray], np.ndarray]
    support: int


def _cubic(x: np.ndarray) -> np.ndarray:
    """Return the cubic convolution kernel with a = −½ (R. Keys, 1981)."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_KERNELS = {
    "bilinear": _Kernel(lambda x: np.maximum(0, 1 - x), 1),
    "bicubic": _Kernel(_cubic, 2),
    "lanczos": _Kernel(lambda x: np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0), 3),
}


def resize_pixels(
    image: np.ndarray,  # (h, w, 3) uint8
    height: int,
    width: int,
    interpolation: Interpolation,
    antialias: bool,
) -> np.ndarray:  # (height, width, 3) uint8
    """Resize an image.

    Args:
        image: the image.
        height: of the result in pixels.
        width: likewise.
        interpolation: area averages sides that shrink over area and interpolates sides that grow
            linearly (`cv2.resize`); the others are those of `PIL.Image.resize`, bit by bit.
        antialias: false: the kernel of bilinear, bicubic or lanczos is not widened where sides
            shrink, as in `tf.image.resize(antialias=False)`; the result is rounded.
    """
    if image.shape[:2] == (height, width):
        return image
    if interpolation == "area":
        return _resize_area(image, height, width)
    if antialias:
        stored = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(stored.resize((width, height), _PILLOW[interpolation]))
    kernel = _KERNELS[interpolation]
    by_rows = _sample(image, height, kernel)
    resized = _sample(by_rows.swapaxes(0, 1), width, kernel).swapaxes(0, 1)
    rounded: np.ndarray = np.clip(np.rint(resized), 0, 255).astype(np.uint8)
    return rounded


def _resize_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    shrunk_hw = min(image.shape[0], height), min(image.shape[1], width)
    for rows, columns, method in (
        (*shrunk_hw, cv2.INTER_AREA),
        (height, width, cv2.INTER_LINEAR),
    ):
        if image.shape[:2] != (rows, columns):
            image = cv2.resize(image, (columns, rows), interpolation=method)
    return image


def _sample(
    values: np.ndarray,  # (n, m, 3)
    count: int,
    kernel: _Kernel,
) -> np.ndarray:  # (count, m, 3) float32
    """Sample at `count` centres along the first axis; the weights inside the image sum to 1."""
    length = len(values)
    centres = (np.arange(count) + 0.5) * length / count - 0.5
    taps = np.floor(centres).astype(np.int64)[:, None] + np.arange(
        1 - kernel.support, kernel.support + 1
    )
    weights = kernel.weight(np.abs(centres[:, None] - taps))
    weights[(taps < 0) | (taps >= length)] = 0
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    taps = taps.clip(0, length - 1)
    sampled = np.zeros((count, *values.shape[1:]), np.float32)
    for tap, weight in zip(taps.T, weights.T, strict=True):
        sampled += values.take(tap, axis=0) * weight[:, None, None]
    return sampled
