"""Resize rules (stretch, letterbox, crop) and their inverse for boxes and masks.

In each mode one rectangle of the original, in whole pixels, is resized to one rectangle, in whole
pixels of the input, that may extend beyond the input. Every mapping follows from these two
rectangles. Each tile of a tiled image (`cvbatch.geometry.tiling`) has a placement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from cvbatch.core.types import VOID_CLASS, InputKey, Interpolation
from cvbatch.geometry.boxes import clip_boxes
from cvbatch.geometry.interpolation import resize_pixels

JPEG_REDUCTIONS = (8, 4, 2, 1)
PADDING_GREY = 114
# An original with a longer side is cut to this before a crop of a fraction, to save memory.
_MAX_ASPECT_RATIO = 32


class Rectangle(NamedTuple):
    """The pixels `top:top + height, left:left + width` of an image, or of the plane around it."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Placement:
    """Position of an original, or of a tile of it, in a network's input; sizes in pixels.

    The rectangle `source` of the original is resized to the rectangle `target`, in pixels of the
    input; what is outside of the input is cut off.
    """

    height: int
    width: int
    source: Rectangle
    input_height: int
    input_width: int
    target: Rectangle


def make_placement(height: int, width: int, key: InputKey) -> Placement:
    """Return the placement of an untiled original in a network's input.

    stretch: the original fills the input; its aspect ratio changes. letterbox: the original is
    centred and its aspect ratio is preserved; sides are rounded to whole pixels, at least one.
    crop: the largest centred rectangle with the aspect ratio of the input fills the input, as in
    `keras.layers.Resizing(crop_to_aspect_ratio=True)`.

    With a fraction, stretch uses that central part of each side, as `tf.image.central_crop`; crop
    resizes the original so that it covers an input that is larger by 1 / fraction, and then cuts
    out the centre, as `Resize` and `CenterCrop` of torchvision and timm.

    Args:
        height: of the original in pixels.
        width: likewise.
        key: size of the input, resize mode and fraction.
    """
    source = Rectangle(0, 0, height, width)
    target = Rectangle(0, 0, key.height, key.width)
    if key.fraction is not None:
        if key.resize == "stretch":
            top, left = (int((side - side * key.fraction) / 2) for side in (height, width))
            source = Rectangle(top, left, height - 2 * top, width - 2 * left)
        else:
            source = _centred(
                min(height, _MAX_ASPECT_RATIO * width),
                min(width, _MAX_ASPECT_RATIO * height),
                within=source,
            )
            target = _covering(source, key, key.fraction)
    elif key.resize == "letterbox":
        # As ultralytics' LetterBox, with the same rounding of floats: a half to the even number.
        scale = min(key.height / height, key.width / width)
        target = _centred(
            max(1, round(height * scale)), max(1, round(width * scale)), within=target
        )
    elif key.resize == "crop":
        source = _centred(
            max(1, min(height, width * key.height // key.width)),
            max(1, min(width, height * key.width // key.height)),
            within=source,
        )
    return Placement(height, width, source, key.height, key.width, target)


def window_size(height: int, width: int, key: InputKey) -> tuple[int, int]:
    """Return the (height, width) of one tile, or of the original where it is not tiled."""
    if key.tiling is None:
        return height, width
    return min(height, key.tiling.tile_height), min(width, key.tiling.tile_width)


def required_size(height: int, width: int, key: InputKey) -> tuple[int, int]:
    """Return the (height, width) of the original at the scale of the network's input.

    An original that is decoded at a reduced size loses no detail for the network if both sides have
    at least this size. All tiles have the same scale.
    """
    if key.interpolation != "area":  # exact: the result must not depend on the reduction
        return height, width
    placement = make_placement(*window_size(height, width, key), key)
    source, target = placement.source, placement.target
    return (
        -(-height * target.height // source.height),
        -(-width * target.width // source.width),
    )


def jpeg_reduction(height: int, width: int, keys: Iterable[InputKey]) -> int:
    """Return the largest factor (1, 2, 4 or 8) by which decoding may reduce a JPEG.

    A JPEG reduced by f has the sides ⌈height / f⌉ and ⌈width / f⌉, which must be at least those of
    `required_size`.

    Args:
        height: of the original in pixels.
        width: likewise.
        keys: inputs of all networks that use the image.
    """
    required = [required_size(height, width, key) for key in keys]
    for factor in JPEG_REDUCTIONS:
        reduced = -(-height // factor), -(-width // factor)
        if all(reduced[0] >= size[0] and reduced[1] >= size[1] for size in required):
            return factor
    return 1


def resize_image(
    image: np.ndarray,  # (h, w, 3) uint8
    placement: Placement,
    interpolation: Interpolation = "area",
    antialias: bool = True,
) -> np.ndarray:  # (H, W, 3) uint8
    """Resize an image to a network's input; the padding is grey.

    Args:
        image: the original of the placement, or the same decoded at a reduced size; the source
            rectangle is then rounded to pixels of the reduced image.
        placement: position of the original in the input.
        interpolation: see `resize_pixels`.
        antialias: likewise.
    """
    source, target = placement.source, placement.target
    top, bottom = _scaled(source.top, source.height, len(image), placement.height)
    left, right = _scaled(source.left, source.width, image.shape[1], placement.width)
    part = image[top:bottom, left:right]
    resized, inside = _cut_to_input(
        resize_pixels(part, target.height, target.width, interpolation, antialias), placement
    )
    if resized.shape[:2] == (placement.input_height, placement.input_width):
        return np.ascontiguousarray(resized)
    return cv2.copyMakeBorder(
        resized,
        inside.top,
        placement.input_height - inside.top - inside.height,
        inside.left,
        placement.input_width - inside.left - inside.width,
        cv2.BORDER_CONSTANT,
        value=(PADDING_GREY, PADDING_GREY, PADDING_GREY),
    )


def boxes_to_original(
    xyxy: np.ndarray,  # (M, 4) float32, pixels of the network's input
    placement: Placement,
    clip: bool = True,
) -> np.ndarray:  # (M, 4) float32, pixels of the original
    """Map boxes from the network's input to the original.

    Args:
        xyxy: boxes in the input.
        placement: position of the original in the input.
        clip: clip the boxes to the original.
    """
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
    """Map boxes from the original to the network's input, clipped to where the original is.

    The inverse of `boxes_to_original`. A box outside a crop becomes empty.
    """
    source, target = placement.source, placement.target
    scale = np.array([target.width / source.width, target.height / source.height] * 2)
    shifted = (xyxy - np.array([source.left, source.top] * 2)) * scale
    shifted += np.array([target.left, target.top] * 2)
    inside = _inside(placement)
    right, bottom = inside.left + inside.width, inside.top + inside.height
    clipped: np.ndarray = np.clip(shifted, [inside.left, inside.top] * 2, [right, bottom] * 2)
    return clipped.astype(np.float32)


def mask_to_input(
    mask: np.ndarray,  # (h, w) uint8, the size of the original
    placement: Placement,
) -> np.ndarray:  # (H, W) uint8
    """Resize a mask to the network's input: nearest neighbour, `VOID_CLASS` in the padding."""
    source, target = placement.source, placement.target
    bottom, right = source.top + source.height, source.left + source.width
    resized = cv2.resize(
        np.ascontiguousarray(mask[source.top : bottom, source.left : right]),
        (target.width, target.height),
        interpolation=cv2.INTER_NEAREST_EXACT,
    )
    size = placement.input_height, placement.input_width
    return _pad_with_void(*_cut_to_input(resized, placement), size)


def mask_to_original(
    mask: np.ndarray,  # (H', W') uint8
    placement: Placement,
) -> np.ndarray:  # (h, w) uint8
    """Resize a mask to the original: each pixel gets the class at its centre.

    Pixels outside a centre crop are `VOID_CLASS`.

    Args:
        mask: class ids of the network's input, at any scale.
        placement: position of the original in the input.
    """
    size = placement.height, placement.width
    top, rows, left, columns = sample_grid(placement, size, (mask.shape[0], mask.shape[1]))
    resampled = mask.take(columns, axis=1).take(rows, axis=0)
    return _pad_with_void(resampled, Rectangle(top, left, len(rows), len(columns)), size)


def _inside(placement: Placement) -> Rectangle:
    """Return the part of the target rectangle that is inside the input."""
    target = placement.target
    top, left = max(0, target.top), max(0, target.left)
    bottom = min(placement.input_height, target.top + target.height)
    right = min(placement.input_width, target.left + target.width)
    return Rectangle(top, left, bottom - top, right - left)


def _cut_to_input(
    resized: np.ndarray,  # (h, w, ...), the size of the target rectangle
    placement: Placement,
) -> tuple[np.ndarray, Rectangle]:  # (h', w', ...)
    """Return the part that is inside the input, and where it is."""
    inside = _inside(placement)
    top, left = inside.top - placement.target.top, inside.left - placement.target.left
    return resized[top : top + inside.height, left : left + inside.width], inside


def _pad_with_void(mask: np.ndarray, rectangle: Rectangle, size: tuple[int, int]) -> np.ndarray:
    """Return a mask of (height, width) `size`, `VOID_CLASS` outside of the rectangle."""
    if mask.shape == size:
        return mask
    padded = np.full(size, VOID_CLASS, np.uint8)
    bottom, right = rectangle.top + rectangle.height, rectangle.left + rectangle.width
    padded[rectangle.top : bottom, rectangle.left : right] = mask
    return padded


def sample_grid(
    placement: Placement, canvas_hw: tuple[int, int], grid_hw: tuple[int, int]
) -> tuple[int, np.ndarray, int, np.ndarray]:  # first row, (R,) int64, first column, (C,) int64
    """Map cells of a canvas over the original to cells of a grid over the network's input.

    Args:
        placement: position of the original in the input.
        canvas_hw: numbers of rows and columns that the original is divided into.
        grid_hw: likewise of the input: the size of a mask or of a heatmap.

    Returns:
        The first of R rows and the first of C columns of the canvas whose centres are in the source
        rectangle and in the input, each followed by the rows or columns of the grid that contain
        these centres.
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


def _covering(source: Rectangle, key: InputKey, fraction: float) -> Rectangle:
    """Return the rectangle, centred in the input, to which a crop of a fraction resizes the source.

    Source: `Resize` and `CenterCrop` of torchvision, which truncate the longer side and round the
    offset, halves to even; timm truncates side / fraction.
    """
    height, width = (int(side / fraction + 1e-6) for side in (key.height, key.width))
    if height * source.width >= width * source.height:
        width = height * source.width // source.height
    else:
        height = width * source.height // source.width
    return Rectangle(
        -round((height - key.height) / 2), -round((width - key.width) / 2), height, width
    )


def _scaled(start: int, length: int, size: int, original_size: int) -> tuple[int, int]:
    """Return [start, start + length) of an original in pixels of a reduced image, never empty."""
    first = min(divide_rounded(start * size, original_size), size - 1)
    return first, max(first + 1, divide_rounded((start + length) * size, original_size))


def _sample_axis(
    canvas: tuple[int, int],  # pixels of the original, cells it is divided into
    source: tuple[int, int],  # start, size
    target: tuple[int, int],  # start, size
    grid: tuple[int, int],  # pixels of the input, cells it is divided into
) -> tuple[int, np.ndarray]:  # first cell of the canvas, (R,) int64 cells of the grid
    """Return one axis of `sample_grid`, computed in whole numbers.

    The centre of cell i of the canvas is at (i + ½) · pixels / cells in the original.
    """
    shared = math.gcd(*canvas)
    pixels, cells = canvas[0] // shared, canvas[1] // shared
    # The first centre at or after x: the smallest i with (2i + 1) · pixels ≥ 2 · cells · x.
    first, end = (-(-(2 * cells * x - pixels) // (2 * pixels)) for x in (source[0], sum(source)))
    twice = 2 * np.arange(first, end, dtype=np.int64) + 1
    from_source = twice * pixels - 2 * cells * source[0]
    numerator = (from_source * target[1] + 2 * cells * source[1] * target[0]) * grid[1]
    cell = numerator // (2 * cells * source[1] * grid[0])
    start, stop = np.searchsorted(cell, (0, grid[1]))
    return first + int(start), cell[start:stop]
