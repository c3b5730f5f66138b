"""Grad-CAM as the paper states it stands here, as the measure for the faster ways to get it."""

from __future__ import annotations

import cv2
import numpy as np

OPACITY = 0.4


def grad_cam(
    features: np.ndarray,  # (h, w, c) a layer's output for one image
    gradients: np.ndarray,  # (h, w, c) of the class's score, with respect to the features
) -> np.ndarray:  # (h, w) float32
    """Return the class activation map in 0..1: its maximum is 1, or it is 0 everywhere.

    The mean gradient of a channel weighs the channel; the weighted channels are averaged and
    negative values cut off (Selvaraju et al., "Grad-CAM", ICCV 2017, equations 1 and 2; a mean
    for the sum, which the division by the maximum cancels).
    """
    weights = gradients.astype(np.float64).mean(axis=(0, 1))
    values: np.ndarray = np.maximum((features.astype(np.float64) * weights).mean(axis=-1), 0)
    maximum = values.max(initial=0)
    if maximum > 0:
        values /= maximum
    return values.astype(np.float32)


def colour(
    heatmap: np.ndarray,  # (h, w) in 0..1
) -> np.ndarray:  # (h, w, 3) uint8 RGB
    """Return the heatmap in the colours "jet": blue for 0, through green, red for 1."""
    level = np.rint(np.clip(heatmap, 0, 1) * 255).astype(np.uint8)
    bgr = cv2.applyColorMap(level, cv2.COLORMAP_JET)
    return np.ascontiguousarray(bgr[..., ::-1])


def overlay(
    image: np.ndarray,  # (H, W, 3) uint8 RGB
    heatmap: np.ndarray,  # (h, w) in 0..1
    opacity: float = OPACITY,
) -> np.ndarray:  # (H, W, 3) uint8 RGB
    """Return the image under the coloured heatmap, stretched over it bilinearly."""
    height, width = image.shape[:2]
    stretched = cv2.resize(
        heatmap.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR
    )
    return cv2.addWeighted(image, 1 - opacity, colour(stretched), opacity, 0)
