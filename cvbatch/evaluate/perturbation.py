"""Delete or insert pixels in the order of a heatmap, to measure its faithfulness.

Source: V. Petsiuk, A. Das and K. Saenko, RISE: Randomized Input Sampling for Explanation of
Black-box Models, BMVC 2018, section 4.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from cvbatch.geometry.resampling import heatmap_to_input
from cvbatch.geometry.resize import PADDING_GREY, Placement, divide_rounded

BLUR = 0.1  # standard deviation, as a fraction of the shorter side of the input


def seeded_rng(seed: int, name: str) -> np.random.Generator:
    """Return a generator whose numbers depend only on the seed and the name."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def mirror_and_shift(
    values: np.ndarray,  # (h, w)
    rng: np.random.Generator,
) -> np.ndarray:  # (h, w)
    """Return the map mirrored and shifted at random, cyclically: a random map to compare with.

    It has the same values and is as smooth; its maximum is equally likely in every cell.
    """
    for axis, side in enumerate(values.shape):
        values = np.flip(values, axis) if rng.integers(2) else values
        values = np.roll(values, int(rng.integers(side)), axis)
    return values


def pixel_order(
    values: np.ndarray,  # (h, w)
    placements: Sequence[Placement],  # T
    rng: np.random.Generator,
) -> np.ndarray:  # (P,) int64 positions in the T · H · W pixels of the input
    """Return the pixels of the image, highest heatmap value first; padding is left out.

    Pixels of equal value, often 0, are ordered by random noise on a grid as coarse as the heatmap.
    """
    inside = np.flatnonzero(_is_image(placements))
    strength = heatmap_to_input(values, placements).reshape(-1)[inside]
    noise = heatmap_to_input(rng.random(values.shape), placements).reshape(-1)[inside]
    return inside[np.lexsort((-noise, -strength))]


def blur(
    pixels: np.ndarray,  # (T, H, W, 3) uint8
    placements: Sequence[Placement],  # T
) -> np.ndarray:  # (T, H, W, 3) uint8
    """Return the image with strong Gaussian blur (`BLUR`); padding does not change."""
    result = pixels.copy()
    for tile, (rows, columns) in zip(result, _rectangles(placements), strict=True):
        sigma = BLUR * min(tile.shape[:2])
        tile[rows, columns] = cv2.GaussianBlur(tile[rows, columns], (0, 0), sigma)
    return result


def grey_like(pixels: np.ndarray) -> np.ndarray:  # (T, H, W, 3) uint8 → the same
    """Return an image filled with the grey of letterbox padding."""
    return np.full_like(pixels, PADDING_GREY)


def replace_pixels(
    pixels: np.ndarray,  # (T, H, W, 3) uint8
    replacement: np.ndarray,  # (T, H, W, 3) uint8
    order: np.ndarray,  # (P,) of `pixel_order`
    steps: int,
) -> Iterator[np.ndarray]:  # steps − 1 of (T, H, W, 3) uint8
    """Yield the image with the first s / steps of its pixels replaced, s = 1, ..., steps − 1."""
    current, source = pixels.reshape(-1, 3).copy(), replacement.reshape(-1, 3)
    start = 0
    for step in range(1, steps):
        end = divide_rounded(step * len(order), steps)
        current[order[start:end]] = source[order[start:end]]
        start = end
        yield current.reshape(pixels.shape).copy()


def area_under_curve(curve: np.ndarray) -> np.ndarray:  # (..., S + 1) → (...)
    """Return the area under a curve sampled evenly over 0..1, by the trapezoid rule."""
    area: np.ndarray = (curve[..., 1:] + curve[..., :-1]).mean(axis=-1) / 2
    return area


def _rectangles(placements: Sequence[Placement]) -> Iterator[tuple[slice, slice]]:
    for placement in placements:
        top, left, height, width = placement.target
        yield slice(max(0, top), top + height), slice(max(0, left), left + width)


def _is_image(placements: Sequence[Placement]) -> np.ndarray:  # (T, H, W) bool
    first = placements[0]
    is_image = np.zeros((len(placements), first.input_height, first.input_width), bool)
    for tile, (rows, columns) in zip(is_image, _rectangles(placements), strict=True):
        tile[rows, columns] = True
    return is_image
