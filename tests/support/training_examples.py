"""Labelled images for tests of training, with edge cases of boxes."""

from __future__ import annotations

import numpy as np

from cvbatch.core.types import TrainingExample

SIZE = (64, 96)
# Boxes of an image: name → (xyxy, class) of three classes. Grid cells have 16 pixels.
BOXES = {
    "none": [],
    "one": [((20, 10, 52, 42), 1)],
    "two in one cell, alike": [((20, 20, 28, 28), 1), ((19, 17, 29, 30), 1)],
    "two in one cell, of two classes": [((10, 20, 40, 28), 0), ((20, 2, 28, 46), 2)],
    "twice the same": [((20, 20, 40, 40), 1), ((20, 20, 40, 40), 1)],
    "more in a cell than anchors": [((22 - k, 22 - k, 26 + k, 26 + k), k % 3) for k in range(4)],
    "a centre on the corner of four cells": [((22, 26, 42, 38), 2)],
    "a centre on the image's corner": [((86, 58, 106, 70), 0)],
    "a centre on the image's first corner": [((-8, -6, 8, 6), 0)],
    "a centre outside": [((90, 20, 120, 40), 1)],
    "larger than the image": [((-30, -40, 140, 120), 2)],
    "hardly a pixel": [((30.2, 30.2, 30.7, 31), 1)],
    "of no area": [((30, 30, 30, 40), 1), ((50, 20, 40, 30), 0)],
    "many": [
        ((x, y, x + 6 + x % 7, y + 5 + y % 11), (x + y) % 3)
        for x in range(0, 90, 17)
        for y in range(0, 60, 13)
    ],
}


def example(boxes=(), size=SIZE, labels=(), mask=None, image_id="", seed=0):
    """Return an example with random pixels and boxes as in `BOXES`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return TrainingExample(
        pixels,
        np.array(labels, np.int32),
        np.array([xyxy for xyxy, _ in boxes], np.float32).reshape(-1, 4),
        np.array([class_id for _, class_id in boxes], np.int32),
        mask,
        image_id,
    )


def random_boxes(rng, count, size=SIZE, num_classes=3):
    """Return random boxes as in `BOXES`, all inside the image."""
    boxes = []
    for _ in range(count):
        height, width = rng.uniform(2, 0.8 * np.array(size))
        top, left = rng.uniform(0, 1, 2) * (np.array(size) - (height, width))
        xyxy = (left, top, left + width, top + height)
        boxes.append((xyxy, int(rng.integers(num_classes))))
    return boxes
