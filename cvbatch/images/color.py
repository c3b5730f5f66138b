"""Convert 8-bit samples to sRGB, by the image's ICC profile if it has one.

A profile that gives the same colours as sRGB within two of 255 levels costs nothing but a look-up.
A profile that is malformed, too large or of another colour space than the image is ignored.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from cvbatch.core.types import ColorMode
from cvbatch.images.samples import ColorSpace

_MAX_PROFILE_BYTES = 4 << 20  # profiles of CMYK printers have up to 3 MB
_CACHED_PROFILES = 32
_TOLERANCE = 2  # levels of 255 by which an equivalent profile may differ from sRGB
_HEADER_BYTES = 128
# Signature of a profile's colour space (ICC.1, table 19) → Pillow's mode
_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
_SPACE_MODES: dict[ColorSpace, tuple[str, ...]] = {
    "grey": ("L", "RGB"),
    "rgb": ("RGB",),
    "cmyk": ("CMYK",),
    "lab": (),
}


def to_srgb(
    values: np.ndarray,  # (h, w, c) uint8
    color_space: ColorSpace,
    profile: bytes | None,
    mode: ColorMode,
) -> np.ndarray:  # (h, w, 3) uint8
    """Convert samples to sRGB.

    Args:
        values: of the colour space; grey may be repeated in three channels.
        color_space: of the values.
        profile: the ICC profile of the image.
        mode: "ignore" is the same as no profile: CMYK is converted as in Pillow.
    """
    if color_space == "lab":
        return _lab_to_srgb(values)
    if mode == "convert" and profile:
        transform = _find_transform(profile)
        if transform is not None and transform.mode in _SPACE_MODES[color_space]:
            return transform.apply(_in_mode(values, transform.mode))
    if color_space == "cmyk":
        return np.asarray(Image.fromarray(np.ascontiguousarray(values), "CMYK").convert("RGB"))
    return _in_mode(values, "RGB")


class _Transform:
    """Conversion from one ICC profile to sRGB."""

    def __init__(self, profile: bytes, mode: str) -> None:
        opened = ImageCms.getOpenProfile(BytesIO(profile))
        self.mode = mode
        self._transform: ImageCms.ImageCmsTransform | None = ImageCms.buildTransform(
            opened,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode != "CMYK" and self._is_srgb():
            self._transform = None

    def _is_srgb(self) -> bool:
        probes = _probes(self.mode)
        difference = self.apply(probes).astype(int) - _in_mode(probes, "RGB")
        return bool(np.abs(difference).max() <= _TOLERANCE)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Convert (h, w) or (h, w, c) uint8 of the profile to (h, w, 3) uint8."""
        if self._transform is None:
            return _in_mode(values[..., None] if values.ndim == 2 else values, "RGB")
        image = Image.fromarray(np.ascontiguousarray(values), self.mode)
        converted = ImageCms.applyTransform(image, self._transform)
        if converted is None:  # only if it is converted in place
            raise ValueError("the colour profile cannot be applied")
        return np.asarray(converted)


@lru_cache(maxsize=_CACHED_PROFILES)
def _find_transform(profile: bytes) -> _Transform | None:
    """Return the conversion to sRGB; None if the profile cannot be used."""
    mode = _MODES.get(profile[16:20])
    if mode is None or not _HEADER_BYTES < len(profile) <= _MAX_PROFILE_BYTES:
        return None
    try:
        return _Transform(profile, mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _lab_to_srgb(values: np.ndarray) -> np.ndarray:
    """Convert CIE L*a*b* (D50; a and b as signed bytes) to sRGB."""
    image = Image.fromarray(np.ascontiguousarray(values), "LAB")
    converted = ImageCms.applyTransform(image, _lab_transform())
    if converted is None:
        raise ValueError("L*a*b* cannot be converted")
    return np.asarray(converted)


@lru_cache(maxsize=1)
def _lab_transform() -> ImageCms.ImageCmsTransform:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)


def _probes(mode: str) -> np.ndarray:
    """Return sample colours that tell whether a profile is equivalent to sRGB."""
    if mode == "L":
        return np.arange(256, dtype=np.uint8)[None]
    levels = np.linspace(0, 255, 6).round().astype(np.uint8)
    return np.stack(np.meshgrid(*[levels] * len(mode)), axis=-1).reshape(1, -1, len(mode))


def _in_mode(values: np.ndarray, mode: str) -> np.ndarray:
    """Return grey or RGB samples as (h, w) or (h, w, 3)."""
    if mode == "L":
        return values[..., 0]
    if mode == "RGB" and values.ndim == 2:
        return np.repeat(values[..., None], 3, axis=2)
    return np.repeat(values, 3, axis=2) if values.shape[-1] == 1 else values
