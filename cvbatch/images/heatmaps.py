"""Grad-CAM as the paper states it stands here, as the measure for the faster ways to get it."""

from __future__ import annotations

import cv2
import numpy as np

from cvbatch.geometry.resampling import MAX_SIDE, resize_bilinear

OPACITY = 0.4
BOX_THRESHOLD = 0.15  # of a map's maximum: Grad-CAM, section 4.1


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


def apply_colormap(
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
    return cv2.addWeighted(image, 1 - opacity, apply_colormap(stretched), opacity, 0)


def boxes_from_heatmap(
    heatmap: np.ndarray,  # (h, w), of any range, over the whole image
    height: int,
    width: int,
    threshold: float = BOX_THRESHOLD,
) -> np.ndarray:  # (M, 4) float32 half-open xyxy, pixels of the image; M is 1, or 0 for no box
    """Return the box round the largest connected part of the map that reaches `threshold`.

    threshold: of the map's maximum, above 0. The map is stretched over the image first, bilinearly,
    to sides of at most 1,024 pixels. Pixels that meet at a corner are connected; of parts of one
    size that whose box is higher up counts, then the one further left. A map that is nowhere above
    0 gives no box.

    Source: B. Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016;
    Selvaraju et al., "Grad-CAM", section 4.1.
    """
    rows, columns = min(height, MAX_SIDE), min(width, MAX_SIDE)
    values = resize_bilinear(heatmap, rows, columns)
    peak = values.max(initial=0)
    if not peak > 0:
        return np.zeros((0, 4), np.float32)
    is_strong = (values >= threshold * peak).astype(np.uint8)
    _, _, parts, _ = cv2.connectedComponentsWithStats(is_strong, connectivity=8)
    left, top, across, down, area = parts[1:].astype(np.int64).T  # the first is what is left over
    best = np.lexsort((left, top, -area))[0]
    sides = left[best], top[best], (left + across)[best], (top + down)[best]
    scaled: np.ndarray = np.array([sides]) * np.array([width / columns, height / rows] * 2)
    return scaled.astype(np.float32)
