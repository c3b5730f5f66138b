"""Encode thumbnails and overlays (mask, heatmap, differences) as data URIs."""

from __future__ import annotations

import base64
import io

import cv2
import numpy as np
from PIL import Image

from cvbatch.core.types import VOID_CLASS
from cvbatch.images.drawing import PALETTE
from cvbatch.images.heatmaps import apply_colormap

MAX_SIDE = 560  # pixels of the longer side of a thumbnail
_HEATMAP_SIDE = 200  # a heatmap is smooth, so the browser enlarges it without visible loss
_QUALITY = 78
_MASK_ALPHA, _BACKGROUND_ALPHA, _HEATMAP_ALPHA = 150, 110, 215
_DIFFERENCE_COLOUR = (255, 0, 60)


class ByteBudget:
    """Limits the bytes of all images of a page."""

    def __init__(self, num_bytes: int) -> None:
        self.remaining = num_bytes
        self.num_omitted = 0

    def embed(self, data: bytes, kind: str) -> str | None:
        """Return an encoded image as a data URI; None if the budget is spent.

        Args:
            data: the encoded image.
            kind: its MIME subtype, such as "png".
        """
        if len(data) > self.remaining:
            self.num_omitted += 1
            return None
        self.remaining -= len(data)
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def thumbnail_hw(height: int, width: int) -> tuple[int, int]:
    """Return the size of a thumbnail: same aspect ratio, at most `MAX_SIDE`, never enlarged."""
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def encode_photo(pixels: np.ndarray) -> bytes:  # (h, w, 3) uint8 RGB
    """Return an image as WebP."""
    return _webp(Image.fromarray(pixels))


def mask_layer(
    mask: np.ndarray,  # (H, W) uint8
    size_hw: tuple[int, int],
) -> bytes:
    """Return a mask as a PNG overlay of `size_hw`: class 0 darkens, void is transparent."""
    height, width = size_hw
    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    alpha = np.full(256, _MASK_ALPHA, np.uint8)
    alpha[0], alpha[VOID_CLASS] = _BACKGROUND_ALPHA, 0
    return _indexed_png(small, PALETTE, alpha)


def difference_layer(
    is_wrong: np.ndarray,  # (H, W) bool
    size_hw: tuple[int, int],
) -> bytes:
    """Return a PNG overlay of `size_hw`: red where a mask is wrong, transparent elsewhere."""
    height, width = size_hw
    level = cv2.resize(is_wrong.astype(np.uint8), (width, height), interpolation=cv2.INTER_AREA)
    palette, alpha = np.zeros((256, 3), np.uint8), np.zeros(256, np.uint8)
    palette[1], alpha[1] = _DIFFERENCE_COLOUR, 190
    return _indexed_png(level, palette, alpha)


def heatmap_layer(
    values: np.ndarray,  # (h, w) in 0..1, over all of the image
    size_hw: tuple[int, int],
) -> bytes:
    """Return a heatmap as a WebP overlay with the aspect ratio of `size_hw`; 0 is transparent."""
    scale = min(1.0, _HEATMAP_SIDE / max(size_hw))
    height, width = (max(1, round(side * scale)) for side in size_hw)
    smooth = cv2.resize(np.nan_to_num(values), (width, height), interpolation=cv2.INTER_LINEAR)
    alpha = np.clip(smooth, 0, 1) ** 0.7 * _HEATMAP_ALPHA
    coloured = np.dstack([apply_colormap(smooth), alpha.round().astype(np.uint8)])
    return _webp(Image.fromarray(coloured))


def _webp(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=_QUALITY, method=4)
    return file.getvalue()


def _indexed_png(
    classes: np.ndarray,  # (h, w) uint8
    palette: np.ndarray,  # (256, 3) uint8
    alpha: np.ndarray,  # (256,) uint8
) -> bytes:
    image = Image.fromarray(classes)
    image.putpalette(np.column_stack([palette, alpha]).tobytes(), "RGBA")
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
