"""Draw the five shapes of the demo images, in colours that contrast with the background."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ("disc", "ring", "square", "triangle", "star")
MASK_CLASSES = ("background", *CLASSES)


@dataclass(frozen=True)
class Shape:
    """One object, to be blended over a canvas of its size."""

    class_id: int
    center: np.ndarray  # (2,) x, y in pixels
    radius: float  # of the enclosing circle, in pixels
    alpha: np.ndarray  # (H, W) float32 coverage, 0 to 1
    paint: np.ndarray  # (H, W, 3) float32 RGB, 0 to 255

    @property
    def inside(self) -> np.ndarray:  # (H, W) bool
        """Return the pixels that belong to the object: at least half covered."""
        return self.alpha >= 0.5


def _on_circle(count: int, radius: float = 1.0, phase: float = 0.0) -> np.ndarray:  # → (count, 2)
    """Return `count` points at equal angles; `phase` rotates them, in steps between points."""
    angle = 2.0 * np.pi * (np.arange(count) + phase) / count
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


_CONTOURS = {  # contours in the unit circle, filled by the even-odd rule
    "disc": (_on_circle(96),),
    "ring": (_on_circle(96), _on_circle(96, radius=0.55)),
    "square": (_on_circle(4),),
    "triangle": (_on_circle(3),),
    "star": (np.stack([_on_circle(5), _on_circle(5, 0.45, 0.5)], axis=1).reshape(-1, 2),),
}
_UNIT_AREA = {"disc": 3.14, "ring": 2.19, "square": 2.0, "triangle": 1.30, "star": 1.32}


def draw_shape(
    rng: np.random.Generator,
    canvas: np.ndarray,  # (H, W, 3)
    side: float,
) -> Shape:
    """Return a random object of area side² at a random position inside the canvas.

    Args:
        rng: source of class, position, rotation and paint.
        canvas: the image so far; the paint contrasts with its pixels.
        side: square root of the area, in pixels.
    """
    height, width = canvas.shape[:2]
    class_id = int(rng.integers(len(CLASSES)))
    name = CLASSES[class_id]
    radius = side / np.sqrt(_UNIT_AREA[name])
    center = rng.uniform(radius + 1, np.array([width, height]) - radius - 1)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    contours = [  # fixed-point coordinates, 4 fractional bits
        np.round((points @ rotation * radius + center) * 16.0).astype(np.int32)
        for points in _CONTOURS[name]
    ]
    alpha = np.zeros((height, width), np.uint8)
    cv2.fillPoly(alpha, contours, 255, cv2.LINE_AA, shift=4)
    paint = _paint(rng, canvas[alpha >= 128].mean(axis=0), height, width)
    return Shape(class_id, center, radius, alpha.astype(np.float32) / 255.0, paint)


def _paint(
    rng: np.random.Generator, background: np.ndarray, height: int, width: int
) -> np.ndarray:  # (3,) → (H, W, 3) float32
    """Return a shaded, textured colour that contrasts with the background colour."""
    color = rng.uniform(20, 235, 3)
    while np.abs(color - background).max() < 70:
        color = rng.uniform(20, 235, 3)
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, pitch = rng.uniform(0, 2 * np.pi), rng.uniform(6, 20)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    light = rng.uniform(0, 0.15) * np.sin(along / max(height, width) * np.pi)
    kind = rng.integers(3)
    if kind == 1:
        light = light + 0.08 * np.sin(along * 2 * np.pi / pitch)
    elif kind == 2:
        light = light + rng.normal(0, 0.06, (height, width))
    paint: np.ndarray = color * (1.0 + light[..., None])
    return paint.astype(np.float32)
