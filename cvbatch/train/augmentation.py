"""A labelled image is varied here, so that its boxes and its mask move with its pixels.

Settings mean what they mean to Keras' layers RandomFlip, RandomRotation, RandomZoom,
RandomTranslation, RandomBrightness and RandomContrast, which are not called: in Keras 3.15 the
box of an object that a rotation carries over the border is the clipped hull of its corners, up to
half the object too large; a batch without boxes is refused; what comes into view is class 0 of a
mask; every layer interpolates anew. Here all motions are one matrix and one interpolation,
TensorFlow is not needed, and a box is the hull of what is left of the object.
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
_TRIES = 8  # motions drawn for an image before it is left where it is
_LIMITS = {"rotation": 0.5, "zoom": 0.9, "translation": 1.0, "brightness": 1.0, "contrast": 1.0}


@dataclass(frozen=True)
class Augmentation:
    """How much images are varied; all 0 changes nothing.

    flip: mirrored or not with even odds; "both" throws twice. rotation: parts of a full turn
    either way. zoom: parts by which more or less of the image is seen, its shape kept.
    translation: parts of the height and of the width. brightness: parts of 255 that all channels
    gain or lose. contrast: parts by which each channel is spread about its mean, more or less.
    min_visible: a box is dropped once less than this part of its area is in view.

    Raises:
        ConfigError: a number is out of its range.
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
        for name, most in (*_LIMITS.items(), ("min_visible", 1.0)):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(
                    f"augmentation: {name} {getattr(self, name)} must be from 0 to {most}"
                )

    def apply(
        self, examples: Sequence[TrainingExample], step: int, first_row: int = 0
    ) -> list[TrainingExample]:
        """Return the examples varied: the same for the same seed, step and row.

        first_row: the first example's place in the whole batch, where this is one worker's part.
        Of an image that had boxes at least one stays: motions are drawn until it does, and after
        eight the image is not moved.
        """
        return [
            self._varied(example, np.random.default_rng((self.seed, step, first_row + row)))
            for row, example in enumerate(examples)
        ]

    def _varied(self, example: TrainingExample, rng: np.random.Generator) -> TrainingExample:
        brightness, contrast = rng.uniform(-1, 1, 2) * (self.brightness, self.contrast)
        example = replace(example, pixels=recoloured(example.pixels, brightness, 1 + contrast))
        if self.flip == "none" and not (self.rotation or self.zoom or self.translation):
            return example
        for _ in range(_TRIES):
            motion = self._motion(example.pixels.shape[0], example.pixels.shape[1], rng)
            moved = warped(example, motion, self.min_visible)
            if len(moved.boxes_xyxy) or not len(example.boxes_xyxy):
                return moved
        return example

    def _motion(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:  # (2, 3)
        """Return a motion at random; every setting has its own draws, used or not."""
        coins = rng.integers(0, 2, 2)
        turn, zoom, right, down = rng.uniform(-1, 1, 4)
        is_mirrored = self.flip in ("horizontal", "both") and bool(coins[0])
        is_upturned = self.flip in ("vertical", "both") and bool(coins[1])
        shift = np.array([right * width, down * height]) * self.translation
        return motion(
            height,
            width,
            mirror=(-1 if is_mirrored else 1, -1 if is_upturned else 1),
            turn=turn * self.rotation,
            zoom=1 + zoom * self.zoom,
            shift=(float(shift[0]), float(shift[1])),
        )


def motion(
    height: int,
    width: int,
    *,
    mirror: tuple[int, int] = (1, 1),
    turn: float = 0.0,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:  # (2, 3) float64
    """Return the matrix that takes a point (x, y, 1) of an image to where it comes to lie.

    In this order, the first three about the image's centre: mirror: −1 along x, along y; turn:
    parts of a full turn, anticlockwise; zoom: how many times as much is seen; shift: pixels
    along x, along y.
    """
    angle = 2 * math.pi * turn
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    linear = rotation / zoom * np.array(mirror)
    center = np.array([width / 2, height / 2])
    return np.column_stack([linear, center + np.array(shift) - linear @ center])


def warped(
    example: TrainingExample,
    motion: np.ndarray,  # (2, 3), of `motion`
    min_visible: float = 0.25,
) -> TrainingExample:
    """Return the example moved: pixels interpolated linearly, the mask by its nearest pixel.

    What comes into view is grey, and `VOID_CLASS` in the mask. A box becomes the hull of the
    part of its moved rectangle that is in view; it is dropped where it had no area, or less than
    `min_visible` of it is in view.
    """
    height, width = example.pixels.shape[:2]
    to_index = motion.copy()  # pixel i has its centre at i + ½
    to_index[:, 2] += motion[:, :2].sum(axis=1) / 2 - 0.5
    pixels = cv2.warpAffine(
        example.pixels, to_index, (width, height), flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT, borderValue=(PADDING_GREY,) * 3,
    )  # fmt: skip
    mask = example.mask
    if mask is not None:
        mask = cv2.warpAffine(
            mask, to_index, (width, height), flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT, borderValue=(VOID_CLASS,),
        )  # fmt: skip
    boxes, share = _moved_boxes(example.boxes_xyxy, motion, height, width)
    is_kept = (share > 0) & (share >= min_visible)
    return replace(
        example,
        pixels=pixels.reshape(example.pixels.shape),  # OpenCV drops a single channel
        boxes_xyxy=boxes[is_kept],
        box_class=example.box_class[is_kept],
        mask=mask,
    )


def recoloured(
    pixels: np.ndarray,  # (H, W, channels) uint8
    brightness: float,
    contrast: float,
) -> np.ndarray:  # (H, W, channels) uint8
    """Return the pixels with 255 · brightness added, then spread `contrast` times about the mean.

    The mean is each channel's own; both steps end within 0..255, and rounding comes last.
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
    recoloured: np.ndarray = cv2.LUT(pixels, table[None]).reshape(pixels.shape)
    return recoloured


def size_of_step(
    sizes: Sequence[tuple[int, int]], step: int, every: int = 10, seed: int = 0
) -> tuple[int, int]:
    """Return the (height, width) of a step where the input changes size every few steps.

    The same on every worker, whatever step it begins at (Redmon and Farhadi, YOLO9000, 2017,
    section 2, draw one of ten sizes every ten batches).
    """
    return sizes[int(np.random.default_rng((seed, step // every)).integers(len(sizes)))]


def resized_examples(
    examples: Sequence[TrainingExample], image_size: tuple[int, int]
) -> list[TrainingExample]:
    """Return the examples stretched to (height, width), boxes and masks with them.

    Sides that shrink are averaged over area, sides that grow interpolated linearly; the mask
    takes the class at each pixel's centre.
    """
    return [_stretched(example, image_size) for example in examples]


def _stretched(example: TrainingExample, image_size: tuple[int, int]) -> TrainingExample:
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


def _moved_boxes(
    xyxy: np.ndarray,  # (M, 4)
    motion: np.ndarray,  # (2, 3)
    height: int,
    width: int,
) -> tuple[np.ndarray, np.ndarray]:  # (M, 4) float32, (M,) the part of each in view
    seen = clip_boxes(xyxy, height, width).astype(np.float64)  # beyond it nothing was to be seen
    corners = seen[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] @ motion[:, :2].T + motion[:, 2]
    moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    area = (seen[:, 2] - seen[:, 0]) * (seen[:, 3] - seen[:, 1])
    area *= abs(float(np.linalg.det(motion[:, :2])))
    share = (area > 0).astype(np.float64)
    is_cut = (moved != clip_boxes(moved, height, width)).any(axis=1) & (area > 0)
    for row in np.flatnonzero(is_cut):
        points = np.array(_in_view(corners[row].tolist(), height, width)).reshape(-1, 2)
        share[row] = _area(points) / area[row]
        if len(points):
            moved[row] = [*points.min(axis=0), *points.max(axis=0)]
    return moved.astype(np.float32), share


def _in_view(
    outline: list[list[float]], height: int, width: int
) -> list[list[float]]:  # corners x, y of what is left, in order; none where nothing is
    """Cut a convex outline along the four borders (Sutherland and Hodgman 1974)."""
    for axis, limit, sign in ((0, 0, -1), (0, width, 1), (1, 0, -1), (1, height, 1)):
        kept = []
        for point, after in zip(outline, outline[1:] + outline[:1], strict=True):
            beyond, beyond_after = (sign * (p[axis] - limit) for p in (point, after))
            if beyond <= 0:
                kept.append(point)
            if beyond * beyond_after < 0:
                part = beyond / (beyond - beyond_after)
                kept.append([a + part * (b - a) for a, b in zip(point, after, strict=True)])
        outline = kept
    return outline


def _area(points: np.ndarray) -> float:  # (P, 2) in order
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
