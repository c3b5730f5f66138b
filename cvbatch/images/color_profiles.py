"""ICC profiles of RGB spaces that a file declares by a number or by chromaticities.

Source: ITU-T H.273 (numbers of primaries and transfer characteristics).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_D65 = (0.3127, 0.3290)
_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
_BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
# Number of H.273 → chromaticities of red, green and blue, all with the white point D65. The
# primaries of sRGB (1) need no profile.
_PRIMARIES = {9: _BT2020, 12: _P3}
_SRGB_TRANSFER = (1, 6, 13, 14, 15)  # of BT.709 and its copies, which are displayed like sRGB
_SRGB_CHROMATICITY = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_SRGB_GAMMA = 2.2
_NEAR_CHROMATICITY, _NEAR_GAMMA = 0.01, 0.05
_CURVE_POINTS = 1024


@lru_cache(maxsize=16)
def profile_of_primaries(primaries: int, transfer: int) -> bytes | None:
    """Return the ICC profile of an RGB space; None if it is sRGB, or not converted (HDR).

    Args:
        primaries: ColourPrimaries of H.273.
        transfer: TransferCharacteristics of H.273.
    """
    chromaticities = _PRIMARIES.get(primaries)
    if chromaticities is None or transfer not in _SRGB_TRANSFER:
        return None
    return rgb_profile(chromaticities, _D65, None)


def profile_of_chromaticities(
    chromaticity: tuple[float, ...] | None, gamma: float | None
) -> bytes | None:
    """Return the ICC profile of the cHRM and gAMA chunks of a PNG.

    Args:
        chromaticity: x and y of white, red, green and blue; None: those of sRGB.
        gamma: exponent from light to values; None: the curve of sRGB.

    Returns:
        None if both are near those of sRGB, as most encoders write them, or make no sense.
    """
    values = _SRGB_CHROMATICITY if chromaticity is None else chromaticity
    if np.abs(np.subtract(values, _SRGB_CHROMATICITY)).max() < _NEAR_CHROMATICITY:
        values = _SRGB_CHROMATICITY
        if gamma is None or abs(gamma * _SRGB_GAMMA - 1) < _NEAR_GAMMA:
            return None
    exponent = 1 / gamma if gamma and abs(gamma * _SRGB_GAMMA - 1) >= _NEAR_GAMMA else None
    white, *primaries = zip(values[::2], values[1::2], strict=True)
    try:
        return rgb_profile(tuple(primaries), white, exponent)
    except ValueError:
        return None


@lru_cache(maxsize=64)
def rgb_profile(
    primaries: tuple[tuple[float, float], ...],
    white: tuple[float, float],
    gamma: float | None,
) -> bytes:
    """Return the ICC profile of an RGB space, made by LittleCMS.

    Args:
        primaries: chromaticities x, y of red, green and blue.
        white: chromaticity x, y of white.
        gamma: exponent from values to light; None: the curve of sRGB.

    Raises:
        ValueError: the numbers are those of no RGB space.
    """
    import imagecodecs

    if min(white[1], *(y for _, y in primaries)) <= 0 or not 0.1 < (gamma or 1) < 10:
        raise ValueError("a chromaticity is not positive, or the exponent not between 0.1 and 10")
    curve = {"transferfunction": _srgb_curve()} if gamma is None else {"gamma": gamma}
    flat = [value for x, y in primaries for value in (x, y, 1.0)]
    try:
        profile: bytes = imagecodecs.cms_profile(
            "rgb", whitepoint=[*white, 1.0], primaries=flat, **curve
        )
    except RuntimeError as error:  # imagecodecs.CmsError
        raise ValueError(str(error)) from None
    return profile


def _srgb_curve() -> np.ndarray:  # (1024,) uint16
    value = np.linspace(0, 1, _CURVE_POINTS)
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return (light * 65535).round().astype(np.uint16)
