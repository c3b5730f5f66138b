"""Samples of an image as its reader decodes them, before they become 8-bit RGB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

ColorSpace = Literal["grey", "rgb", "cmyk", "lab"]
CHANNELS: dict[ColorSpace, int] = {"grey": 1, "rgb": 3, "cmyk": 4, "lab": 3}


@dataclass(frozen=True)
class Samples:
    """Decoded samples of the stored image, without alpha.

    Attributes:
        values: (h, w, c), of any type; c is that of the colour space.
        bits: that the file declares for unsigned integers.
        color_space: of the values; grey may also be repeated in three channels.
        is_inverted: the smallest value is white.
        alpha: (h, w, 1), by which the values are multiplied (associated alpha).
    """

    values: np.ndarray
    bits: int = 8
    color_space: ColorSpace = "rgb"
    is_inverted: bool = False
    alpha: np.ndarray | None = None


def split_channels(values: np.ndarray, color_space: ColorSpace) -> np.ndarray:
    """Return the colour channels of (h, w) or (h, w, c + extra) samples, as (h, w, c)."""
    planes = values[..., None] if values.ndim == 2 else values
    return planes[..., : CHANNELS[color_space]]
