"""Keys of a job file that say how images are decoded, the same for all jobs that read images."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BeforeValidator, ValidationError, model_validator

from cvbatch.config.base import Section
from cvbatch.core.types import BitDepthName, ColorMode

BIT_DEPTHS = get_args(BitDepthName)
# Keys of a source that change the pixels or which images fail
DECODING_KEYS = {"max_bytes", "max_pixels", "reduced_jpeg", "bit_depth", "color"}


class BitDepthRange(Section):
    """The values that become 0 and 255; a linear map, which clips."""

    min: float
    """Value that becomes 0."""
    max: float
    """Value that becomes 255."""

    @model_validator(mode="after")
    def _check_order(self) -> BitDepthRange:
        if not (math.isfinite(self.min) and math.isfinite(self.max) and self.min < self.max):
            raise ValueError("min must be below max")
        return self


_BitDepth = BitDepthName | BitDepthRange


def _parse_bit_depth(value: Any) -> Any:
    """Return a `BitDepthName` or a range: one error instead of one per branch of a union."""
    if isinstance(value, BitDepthRange) or value in BIT_DEPTHS:
        return value
    rule = f"must be one of {', '.join(BIT_DEPTHS)}, or {{min: X, max: Y}} with X below Y"
    if not isinstance(value, dict):
        raise ValueError(rule)
    try:
        return BitDepthRange.model_validate(value)
    except ValidationError:
        given = ", ".join(f"{key}: {item}" for key, item in value.items())
        raise ValueError(f"{{{given}}}: {rule}") from None


class DecodingConfig(Section):
    """Options of decoding."""

    added_keys: ClassVar[tuple[str, ...]] = ("bit_depth", "color")

    bit_depth: Annotated[_BitDepth, BeforeValidator(_parse_bit_depth, _BitDepth)] = "high_byte"
    """How values of more than 8 bits become 8 bits: their high byte, a stretch between the 1st
    and the 99th percentile of each image, or between two values."""
    color: ColorMode = "convert"
    """Convert ICC profiles to sRGB, or ignore them."""
