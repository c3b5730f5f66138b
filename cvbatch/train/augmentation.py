"""Data augmentation: transform an image together with its boxes and its mask.

The settings have the meaning of Keras' layers RandomFlip, RandomRotation, RandomZoom,
RandomTranslation, RandomBrightness and RandomContrast. Those layers are not used, because in Keras
3.15 the box of an object that is rotated across the border is the clipped bounding box of its
corners, up to half the object too large; a batch without boxes is an error; new border pixels get
class 0 in the mask; and every layer interpolates again. Here all geometric transforms are one
matrix and one interpolation, without TensorFlow, and a box bounds the visible part of the object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from cvbatch.core.errors import ConfigError
from cvbatch.core.types import VOID_CLASS, TrainingExample
from cvbatch.geometry.boxes import clip_boxes
from cvbatch.geometry.resize import PADDING_GREY

Flip = Literal["none", "horizontal", "vertical", "both"]
_MAX_DRAWS = 8  # random transforms tried for an image before it stays untransformed
_LIMITS = {"rotation": 0.5, "zoom": 0.9, "translation": 1.0, "brightness": 1.0, "contrast": 1.0}


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random transforms; the defaults change nothing.

    Attributes:
        flip: mirror with probability 1/2; "both" draws once for each direction.
        rotation: maximum rotation in either direction, as a fraction of a full turn.
        zoom: maximum change of the visible height and width, as a fraction; aspect ratio is kept.
        translation: maximum shift, as a fraction of the height and of the width.
        brightness: maximum change of all channels, as a fraction of 255.
        contrast: maximum relative change of each channel's distance from its mean.
        seed: of all draws.
        min_visible: a box is dropped if less than this fraction of its area is visible.

    Raises:
        ConfigError: a value is out of its range.
    """

    flip: Flip = "none"
    rotation: float = 0.0
    zoom: float = 0.0
    translation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    seed: int = 0
    min_visible: float = 0.25

    def __post_init__(self) -> None:
        for name, limit in (*_LIMITS.items(), ("min_visible", 1.0)):
            if not 0 <= getattr(self, name) <= limit:
                raise ConfigError(
                    f"augmentation: {name} {getattr(self, name)} must be from 0 to {limit}"
                )

    def apply(
        self, examples: Sequence[TrainingExample], step: int, first_row: int = 0
    ) -> list[TrainingExample]:
        """Return the transformed examples, which depend on seed, step and row only.

        An image with boxes keeps at least one: transforms are drawn until one does, and after
        eight draws the image is not moved.

        Args:
            examples: the examples to transform.
            step: number of the step, or of the epoch.
            first_row: row of the first example in the global batch.
        """
        return [
            self._transform(example, np.random.default_rng((self.seed, step, first_row + row)))
            for row, example in enumerate(examples)
        ]

    def _transform(self, example: TrainingExample, rng: np.random.Generator) -> TrainingExample:
        brightness, contrast = rng.uniform(-1, 1, 2) * (self.brightness, self.contrast)
        example = replace(example, pixels=adjust_colours(example.pixels, brightness, 1 + contrast))
        if self.flip == "none" and not (self.rotation or self.zoom or self.translation):
            return example
        for _ in range(_MAX_DRAWS):
            matrix = self._draw_matrix(example.pixels.shape[0], example.pixels.shape[1], rng)
            warped = warp(example, matrix, self.min_visible)
            if len(warped.boxes_xyxy) or not len(example.boxes_xyxy):
                return warped
        return example

    def _draw_matrix(
        self, height: int, width: int, rng: np.random.Generator
    ) -> np.ndarray:  # (2, 3)
        """Return a random transform; all numbers are drawn, whether a setting uses them or not."""
        coins = rng.integers(0, 2, 2)
        turn, zoom, right, down = rng.uniform(-1, 1, 4)
        flips_x = self.flip in ("horizontal", "both") and bool(coins[0])
        flips_y = self.flip in ("vertical", "both") and bool(coins[1])
        shift = np.array([right * width, down * height]) * self.translation
        return transform_matrix(
            height,
            width,
            mirror=(-1 if flips_x else 1, -1 if flips_y else 1),
            turn=turn * self.rotation,
            zoom=1 + zoom * self.zoom,
            shift=(float(shift[0]), float(shift[1])),
        )


def transform_matrix(
    height: int,
    width: int,
    *,
    mirror: tuple[int, int] = (1, 1),
    turn: float = 0.0,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:  # (2, 3) float64
    """Return the matrix that maps a point (x, y, 1) of an image to its new position in pixels.

    The transforms are applied in the order of the arguments, the first three about the centre.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        mirror: −1 mirrors along x, along y.
        turn: fraction of a full turn, anticlockwise.
        zoom: factor of the visible height and width; above 1 the objects become smaller.
        shift: pixels along x, along y.
    """
    angle = 2 * math.pi * turn
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    linear = rotation / zoom * np.array(mirror)
    center = np.array([width / 2, height / 2])
    return np.column_stack([linear, center + np.array(shift) - linear @ center])


def warp(
    example: TrainingExample,
    matrix: np.ndarray,  # (2, 3)
    min_visible: float = 0.25,
) -> TrainingExample:
    """Transform an example: pixels with linear, the mask with nearest-neighbour interpolation.

    New border pixels are grey, and `VOID_CLASS` in the mask. A box becomes the bounding box of the
    visible part of its transformed rectangle.

    Args:
        example: the example to transform.
        matrix: maps a point (x, y, 1) to its new position (`transform_matrix`).
        min_visible: a box is dropped if less than this fraction of its area is visible, or if it
            has no area.
    """
    height, width = example.pixels.shape[:2]
    index_matrix = matrix.copy()  # between indices: pixel i has its centre at i + ½
    index_matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
    pixels = cv2.warpAffine(
        example.pixels, index_matrix, (width, height), flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT, borderValue=(PADDING_GREY,) * 3,
    )  # fmt: skip
    mask = example.mask
    if mask is not None:
        mask = cv2.warpAffine(
            mask, index_matrix, (width, height), flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT, borderValue=(VOID_CLASS,),
        )  # fmt: skip
    boxes, visible = _warp_boxes(example.boxes_xyxy, matrix, height, width)
    is_kept = (visible > 0) & (visible >= min_visible)
    return replace(
        example,
        pixels=pixels.reshape(example.pixels.shape),  # OpenCV drops a single channel
        boxes_xyxy=boxes[is_kept],
        box_class=example.box_class[is_kept],
        mask=mask,
    )


def adjust_colours(
    pixels: np.ndarray,  # (H, W, channels) uint8
    brightness: float,
    contrast: float,
) -> np.ndarray:  # (H, W, channels) uint8
    """Return the pixels with changed brightness, then changed contrast.

    Both steps clip to 0..255; rounding is last.

    Args:
        pixels: the image.
        brightness: 255 · brightness is added to every channel.
        contrast: factor of each channel's distance from its mean.
    """
    if brightness == 0 and contrast == 1:
        return pixels
    channels = pixels.shape[2]
    bright = np.clip(np.arange(256) + 255 * brightness, 0, 255)
    counts = np.stack(
        [cv2.calcHist([pixels], [c], None, [256], [0, 256]).reshape(-1) for c in range(channels)]
    )
    mean = counts @ bright / max(1, pixels[..., 0].size)  # (channels,)
    table = np.clip(np.rint((bright[:, None] - mean) * contrast + mean), 0, 255).astype(np.uint8)
    adjusted: np.ndarray = cv2.LUT(pixels, table[None]).reshape(pixels.shape)
    return adjusted


def size_of_step(
    sizes: Sequence[tuple[int, int]], step: int, every: int = 10, seed: int = 0
) -> tuple[int, int]:
    """Return the (height, width) of a step in multi-scale training.

    It depends on the arguments only, so it is the same on every worker and after a resume.

    Args:
        sizes: the (height, width) to draw from.
        step: number of the step.
        every: number of steps with the same size.
        seed: of the draws.

    Source:
        Redmon and Farhadi, YOLO9000, 2017, section 2: one of ten sizes every ten batches.
    """
    return sizes[int(np.random.default_rng((seed, step // every)).integers(len(sizes)))]


def resized_examples(
    examples: Sequence[TrainingExample], image_size: tuple[int, int]
) -> list[TrainingExample]:
    """Return the examples stretched to (height, width), with their boxes and masks.

    Sides that shrink are averaged over area, sides that grow are interpolated linearly; the mask
    takes the class at each pixel's centre.
    """
    return [_stretch(example, image_size) for example in examples]


def _stretch(example: TrainingExample, image_size: tuple[int, int]) -> TrainingExample:
    height, width = example.pixels.shape[:2]
    if (height, width) == image_size:
        return example
    pixels, mask = example.pixels, example.mask
    shrunk = min(height, image_size[0]), min(width, image_size[1])
    for size, method in ((shrunk, cv2.INTER_AREA), (image_size, cv2.INTER_LINEAR)):
        pixels = cv2.resize(pixels, (size[1], size[0]), interpolation=method)
    if mask is not None:
        mask = cv2.resize(
            mask, (image_size[1], image_size[0]), interpolation=cv2.INTER_NEAREST_EXACT
        )
    scale = np.array([image_size[1] / width, image_size[0] / height] * 2)
    return replace(
        example,
        pixels=pixels.reshape(*image_size, -1),
        boxes_xyxy=(example.boxes_xyxy * scale).astype(np.float32),
        mask=mask,
    )


def _warp_boxes(
    xyxy: np.ndarray,  # (M, 4)
    matrix: np.ndarray,  # (2, 3)
    height: int,
    width: int,
) -> tuple[np.ndarray, np.ndarray]:  # (M, 4) float32; (M,) visible fraction of each box
    inside = clip_boxes(xyxy, height, width).astype(np.float64)  # the rest was never visible
    corners = inside[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] @ matrix[:, :2].T + matrix[:, 2]
    moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    area = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
    area *= abs(float(np.linalg.det(matrix[:, :2])))
    visible = (area > 0).astype(np.float64)
    is_cut = (moved != clip_boxes(moved, height, width)).any(axis=1) & (area > 0)
    for row in np.flatnonzero(is_cut):
        points = np.array(_clip_polygon(corners[row].tolist(), height, width)).reshape(-1, 2)
        visible[row] = _area(points) / area[row]
        if len(points):
            moved[row] = [*points.min(axis=0), *points.max(axis=0)]
    return moved.astype(np.float32), visible


def _clip_polygon(polygon: list[list[float]], height: int, width: int) -> list[list[float]]:
    """Clip a convex polygon of (x, y) to the image; empty if nothing is inside.

    Source:
        Sutherland and Hodgman, Reentrant Polygon Clipping, 1974.
    """
    for axis, limit, sign in ((0, 0, -1), (0, width, 1), (1, 0, -1), (1, height, 1)):
        clipped = []
        for point, after in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            beyond, beyond_after = (sign * (p[axis] - limit) for p in (point, after))
            if beyond <= 0:
                clipped.append(point)
            if beyond * beyond_after < 0:
                part = beyond / (beyond - beyond_after)
                clipped.append([a + part * (b - a) for a, b in zip(point, after, strict=True)])
        polygon = clipped
    return polygon


def _area(points: np.ndarray) -> float:  # (P, 2) in order
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
