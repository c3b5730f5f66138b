"""Options of decoding: limits of sizes, reduction to 8 bits, colour management."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from cvbatch.core.types import BitDepthName, ColorMode

BitDepth = BitDepthName | tuple[float, float]  # or the values that become 0 and 255


@dataclass(frozen=True)
class Limits:
    """Limits and options of the images that are decoded.

    Attributes:
        max_bytes: of the encoded file.
        max_pixels: of the image, as declared in its header.
        reduced_jpeg: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, never below the size that
            a network needs.
        max_tile_bytes: of the tiles of one image, for one model.
        batch_tile_bytes: of the tiles of one batch, for one model; a single image may exceed it.
        bit_depth: how values of more than 8 bits become 8 bits; see `cvbatch.images.bit_depth`.
        color: convert images with a colour profile to sRGB, or ignore the profile.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 100_000_000
    reduced_jpeg: bool = True
    max_tile_bytes: int = 2**30
    batch_tile_bytes: int = 256 * 2**20
    bit_depth: BitDepth = "high_byte"
    color: ColorMode = "convert"

    @classmethod
    def from_source(cls, source: Mapping[str, Any], **sizes: Any) -> Limits:
        """Return the limits and options of the section `source` of a job file.

        Args:
            source: the section as plain values, perhaps of a job file of an earlier version.
            sizes: other fields, such as `max_tile_bytes`.
        """
        keys = ("max_bytes", "max_pixels", "reduced_jpeg", "color")
        values: dict[str, Any] = {key: source[key] for key in keys if key in source}
        bit_depth = source.get("bit_depth", cls.bit_depth)
        if bit_depth not in get_args(BitDepthName):
            bit_depth = (float(bit_depth["min"]), float(bit_depth["max"]))
        return cls(**values, **sizes, bit_depth=bit_depth)
