"""How an image lies in a network's input is decided here once, so that boxes and masks find back.

In each of the three modes one rectangle of the original, in whole pixels, fills one rectangle of
the input, in whole pixels. Every mapping follows from those two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from cvbatch.arrays.boxes import clip_boxes
from cvbatch.types import VOID_CLASS, InputKey

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


def place(height: int, width: int, key: InputKey) -> Placement:
    """Return how an original of `height` × `width` is laid into the input `key`.

    stretch: all of it fills the input, whatever its shape. letterbox: all of it, its shape kept,
    in the middle; sides are rounded to whole pixels, at least one. crop: the largest middle part
    with the input's shape fills the input: the rectangle that Keras takes in
    `keras.layers.Resizing(crop_to_aspect_ratio=True)`.
    """
    source = Rectangle(0, 0, height, width)
    target = Rectangle(0, 0, key.height, key.width)
    if key.resize == "letterbox":
        target = _centred(
            max(1, min(key.height, _divide(height * key.width, width))),
            max(1, min(key.width, _divide(width * key.height, height))),
            within=target,
        )
    elif key.resize == "crop":
        source = _centred(
            max(1, min(height, width * key.height // key.width)),
            max(1, min(width, height * key.width // key.height)),
            within=source,
        )
    return Placement(height, width, source, key.height, key.width, target)


def required_size(height: int, width: int, key: InputKey) -> tuple[int, int]:
    """Return the (height, width) that all of the original has at the input's scale.

    An original decoded at a reduced size loses nothing the network would get as long as neither
    side is shorter than this.
    """
    placement = place(height, width, key)
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


def to_original(
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


def mask_to_original(
    mask: np.ndarray,  # (H', W') uint8, the network's output: its input at any scale
    placement: Placement,
) -> np.ndarray:  # (h, w) uint8
    """Return the mask at the size of the original: to each pixel the class at its centre.

    What a centre crop left out is `VOID_CLASS`.
    """
    source, target = placement.source, placement.target
    rows = _nearest(source.height, target.top, target.height, placement.input_height, mask.shape[0])
    columns = _nearest(
        source.width, target.left, target.width, placement.input_width, mask.shape[1]
    )
    seen = mask.take(columns, axis=1).take(rows, axis=0)
    if seen.shape == (placement.height, placement.width):
        return seen
    original = np.full((placement.height, placement.width), VOID_CLASS, np.uint8)
    bottom, right = source.top + source.height, source.left + source.width
    original[source.top : bottom, source.left : right] = seen
    return original


def _divide(numerator: int, denominator: int) -> int:
    """Return the quotient rounded to the nearest whole number, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def _centred(height: int, width: int, within: Rectangle) -> Rectangle:
    top, left = (within.height - height) // 2, (within.width - width) // 2
    return Rectangle(top, left, height, width)


def _scaled(start: int, length: int, size: int, original_size: int) -> tuple[int, int]:
    """Return [start, start + length) of an original in pixels of a reduced one, never empty."""
    first = min(_divide(start * size, original_size), size - 1)
    return first, max(first + 1, _divide((start + length) * size, original_size))


def _nearest(
    source_size: int,
    target_start: int,
    target_size: int,
    input_size: int,
    mask_size: int,
) -> np.ndarray:  # (source_size,) int64
    """Return for each source pixel the mask pixel that holds its centre, in whole numbers.

    The centre of source pixel i lies at target_start + (i + ½) · target_size / source_size in the
    input, and mask_size / input_size times as far in the mask.
    """
    twice = 2 * np.arange(source_size, dtype=np.int64) + 1
    numerator = (twice * target_size + 2 * target_start * source_size) * mask_size
    return numerator // (2 * source_size * input_size)
