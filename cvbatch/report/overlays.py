"""Encode thumbnails and overlays (mask, heatmap, differences) as data URIs."""

from __future__ import annotations

import base64
import io
import math

import cv2
import numpy as np
from PIL import Image

from cvbatch.core.types import VOID_CLASS
from cvbatch.images.drawing import PALETTE
from cvbatch.images.heatmaps import apply_colormap

MAX_SIDE = 560  # pixels of the longer side of a mask or heatmap
MAX_PHOTO_SIDE = 1600  # pixels of the longer side of an image
_MIN_PHOTO_SIDE = 160
_BYTES_PER_PIXEL = 0.15  # of a WebP of average detail
_HEATMAP_SIDE = 200  # a heatmap is smooth, so the browser enlarges it without visible loss
_QUALITY = 78
_HEATMAP_ALPHA = 215
_DIFFERENCE_COLOUR = (255, 0, 60)


class ByteBudget:
    """Limits the bytes of all images of a page."""

    def __init__(self, num_bytes: int) -> None:
        self.remaining = num_bytes
        self.num_omitted = 0

    def share(self, count: int) -> float:
        """Return the bytes for each of `count` images that still share the budget."""
        return self.remaining / max(count, 1)

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


def thumbnail_hw(height: int, width: int, max_side: int = MAX_SIDE) -> tuple[int, int]:
    """Return the size of a thumbnail: same aspect ratio, at most `max_side`, never enlarged."""
    scale = min(1.0, max_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def photo_side(max_bytes: float) -> int:
    """Return the longer side in pixels of a photo of average detail that has this many bytes."""
    side = round(math.sqrt(max_bytes / _BYTES_PER_PIXEL * 4 / 3))
    return min(MAX_PHOTO_SIDE, max(_MIN_PHOTO_SIDE, side))


def encode_photo(
    pixels: np.ndarray,  # (h, w, 3) uint8 RGB
    max_bytes: float = math.inf,
) -> bytes:
    """Return an image as WebP, made smaller until it has at most `max_bytes` or 160 pixels."""
    data = _webp(Image.fromarray(pixels))
    while len(data) > max_bytes and max(pixels.shape) > _MIN_PHOTO_SIDE:
        scale = 0.95 * math.sqrt(max_bytes / len(data))
        side = max(_MIN_PHOTO_SIDE, int(max(pixels.shape) * scale))
        height, width = thumbnail_hw(pixels.shape[0], pixels.shape[1], side)
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        data = _webp(Image.fromarray(pixels))
    return data


def mask_layer(
    mask: np.ndarray,  # (H, W) uint8
    size_hw: tuple[int, int],
    *,
    has_background: bool,
) -> bytes:
    """Return a mask as a PNG overlay of `size_hw` in the colours of `PALETTE`, void transparent.

    Args:
        mask: class ids.
        size_hw: height and width of the overlay.
        has_background: class 0 is the background, and transparent.
    """
    height, width = size_hw
    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    alpha = np.full(256, 255, np.uint8)
    alpha[0], alpha[VOID_CLASS] = 0 if has_background else 255, 0
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
    image.save(file, "WEBP", quality=_QUALITY, method=2)  # 4: half as fast, 5 % smaller
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
