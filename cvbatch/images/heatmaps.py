"""Heatmap colours and overlay; boxes from a heatmap."""

from __future__ import annotations

import cv2
import numpy as np

from cvbatch.geometry.resampling import MAX_SIDE, resize_bilinear

OPACITY = 0.4
BOX_THRESHOLD = 0.15  # fraction of a heatmap's maximum: Grad-CAM, section 4.1


def apply_colormap(
    heatmap: np.ndarray,  # (h, w) in 0..1
) -> np.ndarray:  # (h, w, 3) uint8 RGB
    """Return the heatmap in the colormap "jet": blue for 0, green in the middle, red for 1."""
    level = np.rint(np.clip(heatmap, 0, 1) * 255).astype(np.uint8)
    bgr = cv2.applyColorMap(level, cv2.COLORMAP_JET)
    return np.ascontiguousarray(bgr[..., ::-1])


def overlay(
    image: np.ndarray,  # (H, W, 3) uint8 RGB
    heatmap: np.ndarray,  # (h, w) in 0..1
    opacity: float = OPACITY,
) -> np.ndarray:  # (H, W, 3) uint8 RGB
    """Blend a coloured heatmap over an image.

    Args:
        image: the image; it is not changed.
        heatmap: resized to the image by bilinear interpolation.
        opacity: of the heatmap, in 0..1.
    """
    height, width = image.shape[:2]
    resized = cv2.resize(
        heatmap.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR
    )
    return cv2.addWeighted(image, 1 - opacity, apply_colormap(resized), opacity, 0)


def boxes_from_heatmap(
    heatmap: np.ndarray,  # (h, w)
    height: int,
    width: int,
    threshold: float = BOX_THRESHOLD,
) -> np.ndarray:  # (M, 4) float32 xyxy, M is 0 or 1
    """Return the bounding box of the largest connected component of a thresholded heatmap.

    The heatmap is first resized to the image by bilinear interpolation, to sides of at most
    `MAX_SIDE` pixels. Pixels with a common corner are connected. Of components of equal size the
    one with the topmost box counts, then the leftmost.

    Args:
        heatmap: values of any range over the whole image.
        height: of the image in pixels.
        width: likewise.
        threshold: minimum value of the component's pixels, as a fraction of the heatmap's maximum,
            above 0.

    Returns:
        The box in pixels of the image, half-open; no box if no value is above 0.

    Source: B. Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016;
    Selvaraju et al., "Grad-CAM", section 4.1.
    """
    rows, columns = min(height, MAX_SIDE), min(width, MAX_SIDE)
    values = resize_bilinear(heatmap, rows, columns)
    peak = values.max(initial=0)
    if not peak > 0:
        return np.zeros((0, 4), np.float32)
    is_strong = (values >= threshold * peak).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(is_strong, connectivity=8)
    left, top, widths, heights, area = stats[1:].astype(np.int64).T  # row 0 is the background
    best = np.lexsort((left, top, -area))[0]
    corners = left[best], top[best], (left + widths)[best], (top + heights)[best]
    scaled: np.ndarray = np.array([corners]) * np.array([width / columns, height / rows] * 2)
    return scaled.astype(np.float32)
