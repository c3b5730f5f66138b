"""How an image lies in a network's input is decided here once, so that boxes and masks find back.

In each of the three modes one rectangle of the original, in whole pixels, fills one rectangle of
the input, in whole pixels. Every mapping follows from those two. Of an image that is cut, each
tile (`cvbatch.geometry.tiling`) lies in an input of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from cvbatch.core.types import VOID_CLASS, InputKey
from cvbatch.geometry.boxes import clip_boxes

JPEG_REDUCTIONS = (8, 4, 2, 1)
PADDING_GREY = 114


class Rectangle(NamedTuple):
    """Whole pixels of an image: `top:top + height, left:left + width`."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Placement:
    """How an original of `height` × `width` lies in a network's input.

    The rectangle `source` of the original fills the rectangle `target` of the input.
    """

    height: int
    width: int
    source: Rectangle
    input_height: int
    input_width: int
    target: Rectangle


def make_placement(height: int, width: int, key: InputKey) -> Placement:
    """Return how an original of `height` × `width` is laid, uncut, into the input `key`.

    stretch: all of it fills the input, whatever its shape. letterbox: all of it, its shape kept,
    in the middle; sides are rounded to whole pixels, at least one. crop: the largest middle part
    with the input's shape fills the input: the rectangle that Keras takes in
    `keras.layers.Resizing(crop_to_aspect_ratio=True)`.
    """
    source = Rectangle(0, 0, height, width)
    target = Rectangle(0, 0, key.height, key.width)
    if key.resize == "letterbox":
        target = _centred(
            max(1, min(key.height, divide_rounded(height * key.width, width))),
            max(1, min(key.width, divide_rounded(width * key.height, height))),
            within=target,
        )
    elif key.resize == "crop":
        source = _centred(
            max(1, min(height, width * key.height // key.width)),
            max(1, min(width, height * key.width // key.height)),
            within=source,
        )
    return Placement(height, width, source, key.height, key.width, target)


def window_size(height: int, width: int, key: InputKey) -> tuple[int, int]:
    """Return the (height, width) of what fills one input: the original, or one of its tiles."""
    if key.tiling is None:
        return height, width
    return min(height, key.tiling.tile_height), min(width, key.tiling.tile_width)


def required_size(height: int, width: int, key: InputKey) -> tuple[int, int]:
    """Return the (height, width) that all of the original has at the input's scale.

    An original decoded at a reduced size loses nothing the network would get as long as neither
    side is shorter than this. All tiles have one scale.
    """
    placement = make_placement(*window_size(height, width, key), key)
    source, target = placement.source, placement.target
    return (
        -(-height * target.height // source.height),
        -(-width * target.width // source.width),
    )


def jpeg_reduction(height: int, width: int, keys: Iterable[InputKey]) -> int:
    """Return the largest of 1, 2, 4, 8 by which a JPEG may be reduced for all networks `keys`.

    A JPEG reduced by f has sides ⌈height / f⌉ and ⌈width / f⌉.
    """
    required = [required_size(height, width, key) for key in keys]
    for factor in JPEG_REDUCTIONS:
        reduced = -(-height // factor), -(-width // factor)
        if all(reduced[0] >= needed[0] and reduced[1] >= needed[1] for needed in required):
            return factor
    return 1


def resize_image(
    image: np.ndarray,  # (h, w, 3) uint8
    placement: Placement,
) -> np.ndarray:  # (H, W, 3) uint8
    """Return the network's input: `image` laid out by `placement`, the rest grey.

    The image is the placement's original, or the same decoded at a reduced size; the source
    rectangle is then rounded to pixels of the reduced image. Sides that shrink are averaged over
    area, sides that grow are interpolated linearly.
    """
    source, target = placement.source, placement.target
    top, bottom = _scaled(source.top, source.height, len(image), placement.height)
    left, right = _scaled(source.left, source.width, image.shape[1], placement.width)
    resized = image[top:bottom, left:right]
    shrunk_hw = min(bottom - top, target.height), min(right - left, target.width)
    for height, width, method in (
        (*shrunk_hw, cv2.INTER_AREA),
        (target.height, target.width, cv2.INTER_LINEAR),
    ):
        if resized.shape[:2] != (height, width):
            resized = cv2.resize(resized, (width, height), interpolation=method)
    if (target.height, target.width) == (placement.input_height, placement.input_width):
        return np.ascontiguousarray(resized)
    return cv2.copyMakeBorder(
        resized,
        target.top,
        placement.input_height - target.top - target.height,
        target.left,
        placement.input_width - target.left - target.width,
        cv2.BORDER_CONSTANT,
        value=(PADDING_GREY, PADDING_GREY, PADDING_GREY),
    )


def boxes_to_original(
    xyxy: np.ndarray,  # (M, 4) float32, pixels of the network's input
    placement: Placement,
    clip: bool = True,
) -> np.ndarray:  # (M, 4) float32, pixels of the original
    """Return the boxes in pixels of the original; with `clip`, cut off at its border."""
    source, target = placement.source, placement.target
    scale = np.array([source.width / target.width, source.height / target.height] * 2)
    from_target = xyxy - np.array([target.left, target.top] * 2, np.float64)
    original: np.ndarray = from_target * scale + np.array([source.left, source.top] * 2)
    if clip:
        original = clip_boxes(original, placement.height, placement.width)
    return original.astype(np.float32)


def boxes_to_input(
    xyxy: np.ndarray,  # (M, 4) pixels of the original
    placement: Placement,
) -> np.ndarray:  # (M, 4) float32, pixels of the network's input
    """Return the boxes in pixels of the input, cut off where the image ends there.

    The inverse of `to_original`. A box that a crop left out has no area.
    """
    source, target = placement.source, placement.target
    scale = np.array([target.width / source.width, target.height / source.height] * 2)
    laid = (xyxy - np.array([source.left, source.top] * 2)) * scale
    laid = np.clip(laid, 0, np.array([target.width, target.height] * 2))
    shifted: np.ndarray = laid + np.array([target.left, target.top] * 2)
    return shifted.astype(np.float32)


def mask_to_input(
    mask: np.ndarray,  # (h, w) uint8, the size of the original
    placement: Placement,
) -> np.ndarray:  # (H, W) uint8
    """Return the class at the centre of each pixel of the input; `VOID_CLASS` beside the image."""
    source, target = placement.source, placement.target
    seen = mask[source.top : source.top + source.height, source.left : source.left + source.width]
    size = target.width, target.height
    seen = cv2.resize(np.ascontiguousarray(seen), size, interpolation=cv2.INTER_NEAREST_EXACT)
    if seen.shape == (placement.input_height, placement.input_width):
        return seen
    laid = np.full((placement.input_height, placement.input_width), VOID_CLASS, np.uint8)
    laid[target.top : target.top + target.height, target.left : target.left + target.width] = seen
    return laid


def mask_to_original(
    mask: np.ndarray,  # (H', W') uint8, the network's output: its input at any scale
    placement: Placement,
) -> np.ndarray:  # (h, w) uint8
    """Return the mask at the size of the original: to each pixel the class at its centre.

    What a centre crop left out is `VOID_CLASS`.
    """
    source = placement.source
    size = placement.height, placement.width
    _, rows, _, columns = sample_grid(placement, size, (mask.shape[0], mask.shape[1]))
    seen = mask.take(columns, axis=1).take(rows, axis=0)
    if seen.shape == size:
        return seen
    original = np.full(size, VOID_CLASS, np.uint8)
    bottom, right = source.top + source.height, source.left + source.width
    original[source.top : bottom, source.left : right] = seen
    return original


def sample_grid(
    placement: Placement, canvas_hw: tuple[int, int], grid_hw: tuple[int, int]
) -> tuple[int, np.ndarray, int, np.ndarray]:  # (R,) int64, (C,) int64
    """Return what of a canvas a placement covers, and which cell of its grid lies where.

    The canvas is the original divided into `canvas_hw` cells, the grid the network's input divided
    into `grid_hw`: a mask, or a layer's map. The cells of the canvas with their centre in the
    source rectangle are R rows from the first number on and C columns from the second; to each row
    and each column belongs the one of the grid that holds its centre.
    """
    source, target = placement.source, placement.target
    top, rows = _sample_axis(
        (placement.height, canvas_hw[0]),
        (source.top, source.height),
        (target.top, target.height),
        (placement.input_height, grid_hw[0]),
    )
    left, columns = _sample_axis(
        (placement.width, canvas_hw[1]),
        (source.left, source.width),
        (target.left, target.width),
        (placement.input_width, grid_hw[1]),
    )
    return top, rows, left, columns


def divide_rounded(numerator: int, denominator: int) -> int:
    """Return the quotient rounded to the nearest whole number, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def _centred(height: int, width: int, within: Rectangle) -> Rectangle:
    top, left = (within.height - height) // 2, (within.width - width) // 2
    return Rectangle(top, left, height, width)


def _scaled(start: int, length: int, size: int, original_size: int) -> tuple[int, int]:
    """Return [start, start + length) of an original in pixels of a reduced one, never empty."""
    first = min(divide_rounded(start * size, original_size), size - 1)
    return first, max(first + 1, divide_rounded((start + length) * size, original_size))


def _sample_axis(
    canvas: tuple[int, int],  # pixels of the original, cells it is divided into
    source: tuple[int, int],  # start, size
    target: tuple[int, int],  # start, size
    grid: tuple[int, int],  # pixels of the input, cells it is divided into
) -> tuple[int, np.ndarray]:  # first cell of the canvas, (R,) int64 cells of the grid
    """Return one axis of `sample_grid`, in whole numbers.

    The centre of the canvas' cell i lies at (i + ½) · pixels / cells in the original.
    """
    shared = math.gcd(*canvas)
    pixels, cells = canvas[0] // shared, canvas[1] // shared
    # the first centre at or behind x: the smallest i with (2i + 1) · pixels ≥ 2 · cells · x
    first, end = (-(-(2 * cells * x - pixels) // (2 * pixels)) for x in (source[0], sum(source)))
    twice = 2 * np.arange(first, end, dtype=np.int64) + 1
    from_source = twice * pixels - 2 * cells * source[0]
    numerator = (from_source * target[1] + 2 * cells * source[1] * target[0]) * grid[1]
    return first, numerator // (2 * cells * source[1] * grid[0])
