"""Keys of a model's section about its input: scaling, resize, tiles."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cvbatch.config.base import Section, Size
from cvbatch.core.errors import ModelError
from cvbatch.core.types import ResizeMode, Tiling

MAX_OVERLAP = 0.75  # of a tile's side; above it a pixel is computed more than 4 times per axis
PerChannel = float | tuple[float, float, float]  # one number, or those of red, green and blue


class Rescale(Section):
    """Input scaling of pixels 0..255, `pixel * scale + offset`, for networks without their own."""

    scale: PerChannel = 1.0
    """Factor: one number, or those of red, green and blue."""
    offset: PerChannel = 0.0
    """Added afterwards, likewise."""


class TilesConfig(Section):
    """Cut images larger than one tile into overlapping tiles, and merge the predictions."""

    size: Size | None = None
    """[height, width] of a tile in pixels of the original, or one number; null: the input size."""
    overlap: float = Field(0.25, ge=0)
    """Minimum overlap of neighbouring tiles in pixels; below 1: fraction of the tile's side, at
    most 0.75."""

    @field_validator("overlap")
    @classmethod
    def _check_unit(cls, value: float) -> float:
        if value > MAX_OVERLAP and not value.is_integer():
            raise ValueError(
                f"must be a fraction of the tile's side up to {MAX_OVERLAP}, or a whole number of "
                "pixels"
            )
        return value

    @model_validator(mode="after")
    def _check_overlap(self) -> TilesConfig:
        if self.size is not None and self.overlap > MAX_OVERLAP * min(self.size):
            raise ValueError(_overlap_error(self.overlap, self.size))
        return self


def _overlap_error(overlap: float, size: tuple[int, int]) -> str:
    maximum = int(MAX_OVERLAP * min(size))
    return (
        f"tiles of {size[0]} x {size[1]} pixels overlap by {overlap:g} pixels, but at most "
        f"{maximum} are allowed; lower tiles.overlap or raise tiles.size"
    )


class ResizeConfig(Section):
    """A resize mode that uses the centre of each image."""

    mode: ResizeMode
    """stretch, letterbox or crop."""
    fraction: float | None = Field(None, gt=0, le=1)
    """Central part of each side that is used; null: all."""

    @model_validator(mode="after")
    def _check_mode(self) -> ResizeConfig:
        if self.fraction is not None and self.mode == "letterbox":
            raise ValueError(
                "fraction cuts borders off and letterbox shows the whole image; remove one of them"
            )
        return self


def _short_resize(value: Any) -> Any:
    """Return a mode without a fraction as its name, so that both have one fingerprint."""
    if not isinstance(value, dict):
        if value in get_args(ResizeMode):
            return value
        raise ValueError("must be stretch, letterbox or crop, or {mode: crop, fraction: 0.875}")
    config = ResizeConfig.model_validate(value)
    return config.mode if config.fraction is None else config


# A mode, or a mode with a fraction.
Resize = Annotated[
    ResizeMode | ResizeConfig, BeforeValidator(_short_resize, ResizeMode | ResizeConfig)
]


def tiling_of(config: Any, height: int, width: int) -> Tiling | None:
    """Return the tiling in pixels; None without tiles.

    Args:
        config: section of a model.
        height: of the network's input, in pixels; with `width` the default size of a tile.

    Raises:
        ModelError: the tiles have the size of the input, and the overlap is too large for it.
    """
    tiles: TilesConfig | None = getattr(config, "tiles", None)
    if tiles is None:
        return None
    overlap, size = tiles.overlap, tiles.size or (height, width)
    if overlap < 1:  # rounding must not give a small side an overlap of its full length
        overlaps = [min(round(overlap * side), side - 1) for side in size]
    elif overlap <= MAX_OVERLAP * min(size):
        overlaps = [int(overlap)] * 2
    else:
        raise ModelError(f"model {config.model!r}: {_overlap_error(overlap, size)}")
    return Tiling(*size, *overlaps)
