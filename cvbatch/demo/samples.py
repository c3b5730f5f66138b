"""The demo's networks learn from scenes as the job sees them: JPEG, decoded, shrunk by stretch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cvbatch.arrays.pixels import Placement, place, resize_image
from cvbatch.demo.render import Scene, encode_jpeg, load_backgrounds, render_scene, scene_seed
from cvbatch.types import InputKey

MAX_OBJECTS = 4


@dataclass(frozen=True)
class Samples:
    """Scenes at the sizes the networks take, and the scenes' truth at the networks' size."""

    pixels: dict[int, np.ndarray]  # side → (N, side, side, 3) uint8
    label: np.ndarray  # (N,) int32
    mask: np.ndarray  # (N, side, side) uint8, at the segmenter's size
    boxes: np.ndarray  # (N, MAX_OBJECTS, 4) float32 xyxy as parts of the image
    box_class_id: np.ndarray  # (N, MAX_OBJECTS) int32, −1 where there is no box


def render_scenes(archive_seed: int, count: int) -> list[Scene]:
    """Return the first scenes of an archive, their images as decoded from their JPEGs."""
    backgrounds = load_backgrounds()
    scenes = []
    for i in range(count):
        scene = render_scene(scene_seed(archive_seed, i), backgrounds)
        scenes.append(_through_jpeg(scene))
    return scenes


def make_samples(scenes: Sequence[Scene], sides: Sequence[int], mask_side: int) -> Samples:
    """Return the scenes resized to squares of each side, with their truth."""
    num = len(scenes)
    boxes = np.zeros((num, MAX_OBJECTS, 4), np.float32)
    box_class_id = np.full((num, MAX_OBJECTS), -1, np.int32)
    for i, scene in enumerate(scenes):
        height, width = scene.mask.shape
        boxes[i, : len(scene.boxes)] = scene.boxes / (width, height, width, height)
        box_class_id[i, : len(scene.boxes)] = scene.box_class_id
    return Samples(
        pixels={side: np.stack([shrink(scene, side) for scene in scenes]) for side in sides},
        label=np.array([scene.label for scene in scenes], np.int32),
        mask=np.stack([_shrink_mask(scene.mask, mask_side) for scene in scenes]),
        boxes=boxes,
        box_class_id=box_class_id,
    )


def placement(scene: Scene, side: int) -> Placement:
    """Return how a scene is laid into a square network input: stretched."""
    height, width = scene.mask.shape
    return place(height, width, InputKey(side, side, "stretch"))


def shrink(scene: Scene, side: int) -> np.ndarray:  # (side, side, 3) uint8
    """Return the scene's image as the job feeds it to a network."""
    return resize_image(scene.image, placement(scene, side))


def take(samples: Samples, rows: np.ndarray, side: int, rng: np.random.Generator) -> Samples:
    """Return some samples at one size, mirrored, turned by quarters, colours swapped at random.

    One draw holds for all of them: objects keep their class whichever way up they are.
    """
    is_flipped, quarters = bool(rng.integers(2)), int(rng.integers(4))
    pixels = samples.pixels[side][rows][..., rng.permutation(3)]
    return Samples(
        pixels={side: turn(pixels, is_flipped, quarters)},
        label=samples.label[rows],
        mask=turn(samples.mask[rows], is_flipped, quarters),
        boxes=turn_boxes(samples.boxes[rows], is_flipped, quarters),
        box_class_id=samples.box_class_id[rows],
    )


def turn(squares: np.ndarray, is_flipped: bool, quarters: int) -> np.ndarray:  # (B, S, S, ...)
    """Return squares mirrored left to right, then turned anticlockwise by quarters."""
    squares = squares[:, :, ::-1] if is_flipped else squares
    return np.rot90(squares, quarters, axes=(1, 2))


def turn_boxes(boxes: np.ndarray, is_flipped: bool, quarters: int) -> np.ndarray:  # (B, M, 4)
    """Return the boxes (xyxy as parts of the square) of squares that went through `turn`."""
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    if is_flipped:
        left, right = 1 - right, 1 - left
    for _ in range(quarters):
        left, top, right, bottom = top, 1 - right, bottom, 1 - left
    return np.stack([left, top, right, bottom], axis=-1)


def _shrink_mask(mask: np.ndarray, side: int) -> np.ndarray:  # (H, W) → (side, side) uint8
    """Return the class at the centre of each pixel of the square."""
    return cv2.resize(mask, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)


def _through_jpeg(scene: Scene) -> Scene:
    data = np.frombuffer(encode_jpeg(scene.image), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    return Scene(np.asarray(image), scene.label, scene.boxes, scene.box_class_id, scene.mask)
