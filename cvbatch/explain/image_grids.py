"""What a network holds is laid out as pictures here: channels, patterns and kernels in rows."""

from __future__ import annotations

import math

import numpy as np

CHANNEL_COLUMNS = 16
PATTERN_COLUMNS = 8
PATTERN_GAP = 5
_MEAN, _DEVIATION = 128, 64
_MAX_KERNEL_SIDE = 4096  # of a picture of kernels, whose pixels are magnified while they fit
_MAX_KERNEL_SCALE = 8


def standardised(
    values: np.ndarray,  # any shape
    axis: tuple[int, ...] | None = None,
) -> np.ndarray:  # of the same shape, uint8
    """Return values brought to mean 128 and deviation 64 over the axes (None: all), cut to 0..255.

    Where all are the same they become 128.
    """
    exact = values.astype(np.float64)
    centred = exact - exact.mean(axis=axis, keepdims=True)
    deviation = centred.std(axis=axis, keepdims=True)
    # of equal numbers the mean may be off by rounding, and so seem to deviate
    is_flat = deviation <= 1e-7 * np.abs(exact).max(axis=axis, keepdims=True, initial=0)
    scaled = np.where(is_flat, 0, centred / np.where(is_flat, 1, deviation)) * _DEVIATION + _MEAN
    cut: np.ndarray = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return cut


def tiled(
    pictures: np.ndarray,  # (N, h, w) or (N, h, w, 3) uint8
    columns: int,
    gap: int,
) -> np.ndarray:  # (H, W) or (H, W, 3) uint8
    """Return pictures row by row with `gap` black pixels between them; fewer make a shorter row."""
    count, height, width = pictures.shape[:3]
    across = max(1, min(columns, count))
    down = max(1, math.ceil(count / columns))
    size = (down * (height + gap) - gap, across * (width + gap) - gap)
    page = np.zeros((*size, *pictures.shape[3:]), np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        page[top : top + height, left : left + width] = picture
    return page


def channel_grid(
    maps: np.ndarray,  # (h, w, c) float
) -> np.ndarray:  # (H, W) uint8
    """Return every channel of a layer's output, 16 a row, each at mean 128 and deviation 64."""
    channels = np.moveaxis(standardised(maps, axis=(0, 1)), -1, 0)
    return tiled(channels, CHANNEL_COLUMNS, gap=1)


def cropped(
    patterns: np.ndarray,  # (N, h, w, 3)
    crop: int,
) -> np.ndarray:  # (N, h', w', 3)
    """Return pictures without `crop` pixels a side, or without a quarter of a side if that is less.

    At the border a network saw padding, and gradient ascent made of it what it liked.
    """
    height, width = patterns.shape[1:3]
    top, left = min(crop, height // 4), min(crop, width // 4)
    return patterns[:, top : height - top, left : width - left]


def pattern_grid(
    patterns: np.ndarray,  # (N, h, w, 3) float
) -> np.ndarray:  # (H, W, 3) uint8 RGB
    """Return patterns, 8 a row, each at mean 128 and deviation 64."""
    return tiled(standardised(patterns, axis=(1, 2, 3)), PATTERN_COLUMNS, PATTERN_GAP)


def kernel_grid(
    kernels: np.ndarray,  # (kh, kw, inputs, filters) float
) -> np.ndarray:  # (H, W) uint8
    """Return a row for each filter with its kernel for each input channel, black 0 and white 1.

    0 is the layer's least weight and 1 its greatest. The pixels are magnified while that fits.
    """
    kh, kw, inputs, filters = kernels.shape
    least, most = kernels.min(initial=np.inf), kernels.max(initial=-np.inf)
    spread = most - least if most > least else 1.0
    grey = np.rint((kernels - least) / spread * 255).astype(np.uint8)
    columns = np.moveaxis(grey, (3, 2), (0, 1)).reshape(filters * inputs, kh, kw)
    longest = max(filters * (kh + 1), inputs * (kw + 1))
    scale = max(1, min(_MAX_KERNEL_SCALE, _MAX_KERNEL_SIDE // longest))
    return tiled(columns.repeat(scale, axis=1).repeat(scale, axis=2), inputs, gap=1)
