"""What was drawn on an original is laid into a network's input as the image itself is."""

from __future__ import annotations

import cv2
import numpy as np

from cvbatch.core.types import VOID_CLASS
from cvbatch.geometry.resize import Placement


def boxes_to_input(
    xyxy: np.ndarray,  # (M, 4) pixels of the original
    placement: Placement,
) -> np.ndarray:  # (M, 4) float32, pixels of the network's input
    """Return the boxes in pixels of the input, cut off where the image ends there.

    The inverse of `cvbatch.geometry.resize.to_original`. A box that a crop left out has no area.
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
