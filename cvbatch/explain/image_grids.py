"""Arrange channels, filter patterns or kernels as a grid of images."""

from __future__ import annotations

import math

import numpy as np

CHANNEL_COLUMNS = 16
PATTERN_COLUMNS = 8
PATTERN_GAP = 5
_MEAN, _DEVIATION = 128, 64
_MAX_KERNEL_SIDE = 4096  # pixels of a grid of kernels; magnification is limited by it
_MAX_KERNEL_SCALE = 8


def standardize(
    values: np.ndarray,  # any shape
    axis: tuple[int, ...] | None = None,
) -> np.ndarray:  # of the same shape, uint8
    """Scale values to mean 128 and standard deviation 64 over the axes (None: all), clip to 0..255.

    Equal values become 128.
    """
    exact = values.astype(np.float64)
    centred = exact - exact.mean(axis=axis, keepdims=True)
    deviation = centred.std(axis=axis, keepdims=True)
    # The mean of equal values may have a rounding error, which must not count as deviation.
    is_flat = deviation <= 1e-7 * np.abs(exact).max(axis=axis, keepdims=True, initial=0)
    scaled = np.where(is_flat, 0, centred / np.where(is_flat, 1, deviation)) * _DEVIATION + _MEAN
    clipped: np.ndarray = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return clipped


def make_grid(
    images: np.ndarray,  # (N, h, w) or (N, h, w, 3) uint8
    columns: int,
    gap: int,
) -> np.ndarray:  # (H, W) or (H, W, 3) uint8
    """Arrange images row by row with `gap` black pixels between them.

    If there are fewer images than columns, the grid is narrower.
    """
    count, height, width = images.shape[:3]
    num_columns = max(1, min(columns, count))
    num_rows = max(1, math.ceil(count / columns))
    size = (num_rows * (height + gap) - gap, num_columns * (width + gap) - gap)
    grid = np.zeros((*size, *images.shape[3:]), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid


def channel_grid(
    maps: np.ndarray,  # (h, w, c) float
) -> np.ndarray:  # (H, W) uint8
    """Arrange the channels of a layer's output, 16 per row, each standardized."""
    channels = np.moveaxis(standardize(maps, axis=(0, 1)), -1, 0)
    return make_grid(channels, CHANNEL_COLUMNS, gap=1)


def crop_patterns(
    patterns: np.ndarray,  # (N, h, w, 3)
    crop: int,
) -> np.ndarray:  # (N, h', w', 3)
    """Remove `crop` pixels on each side, but at most a quarter of the side.

    The border of a pattern is an artefact of the padding in the network.
    """
    height, width = patterns.shape[1:3]
    top, left = min(crop, height // 4), min(crop, width // 4)
    return patterns[:, top : height - top, left : width - left]


def pattern_grid(
    patterns: np.ndarray,  # (N, h, w, 3) float
) -> np.ndarray:  # (H, W, 3) uint8 RGB
    """Arrange patterns, 8 per row, each standardized."""
    return make_grid(standardize(patterns, axis=(1, 2, 3)), PATTERN_COLUMNS, PATTERN_GAP)


def kernel_grid(
    kernels: np.ndarray,  # (kh, kw, inputs, filters) float
) -> np.ndarray:  # (H, W) uint8
    """Arrange kernels: one row per filter, one column per input channel.

    The smallest weight of the layer is black, the largest is white. Pixels are magnified up to 8
    times while the grid has at most 4096 pixels per side.
    """
    kh, kw, inputs, filters = kernels.shape
    smallest, largest = kernels.min(initial=np.inf), kernels.max(initial=-np.inf)
    spread = largest - smallest if largest > smallest else 1.0
    grey = np.rint((kernels - smallest) / spread * 255).astype(np.uint8)
    images = np.moveaxis(grey, (3, 2), (0, 1)).reshape(filters * inputs, kh, kw)
    longest = max(filters * (kh + 1), inputs * (kw + 1))
    scale = max(1, min(_MAX_KERNEL_SCALE, _MAX_KERNEL_SIDE // longest))
    return make_grid(images.repeat(scale, axis=1).repeat(scale, axis=2), inputs, gap=1)
