"""ICC profiles of RGB spaces that a file declares by a number or by chromaticities.

Source: ITU-T H.273 (numbers of primaries and transfer characteristics); ICC.1:2001 (profile of
version 2 with matrix and tone curves).
"""

from __future__ import annotations

import struct
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
_D50_XYZ = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
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


def rgb_profile(
    primaries: tuple[tuple[float, float], ...],
    white: tuple[float, float],
    gamma: float | None,
) -> bytes:
    """Return the ICC profile of an RGB space.

    Args:
        primaries: chromaticities x, y of red, green and blue.
        white: chromaticity x, y of white.
        gamma: exponent from values to light; None: the curve of sRGB.

    Raises:
        ValueError: the primaries are on one line, or a number is not positive.
    """
    columns = _adapted_columns(primaries, white)
    curve = _curve(gamma)
    tags = {b"desc": _description(), b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(_D50_XYZ)}
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns.T, strict=True):
        tags[name] = _xyz(column)
    tags.update(dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))
    return _assemble(tags)


def _adapted_columns(
    primaries: tuple[tuple[float, float], ...], white: tuple[float, float]
) -> np.ndarray:  # (3, 3): columns of XYZ under D50
    if min(white[1], *(y for _, y in primaries)) <= 0:
        raise ValueError("a chromaticity is not positive")
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in primaries]).T
    white_xyz = np.array([white[0] / white[1], 1.0, (1 - white[0] - white[1]) / white[1]])
    try:
        columns = columns * np.linalg.solve(columns, white_xyz)
    except np.linalg.LinAlgError:
        raise ValueError("the primaries are on one line") from None
    scale = (_BRADFORD @ _D50_XYZ) / (_BRADFORD @ white_xyz)
    return np.asarray(np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD @ columns)


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        if not 0.1 < gamma < 10:
            raise ValueError(f"the exponent {gamma} is not between 0.1 and 10")
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    value = np.linspace(0, 1, _CURVE_POINTS)
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    points = (light * 65535).round().astype(">u2").tobytes()
    return b"curv\0\0\0\0" + struct.pack(">I", _CURVE_POINTS) + points


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + (values * 65536).round().astype(">i4").tobytes()


def _description() -> bytes:
    return b"desc\0\0\0\0" + struct.pack(">I", 4) + b"RGB\0" + bytes(8 + 3 + 67)


def _assemble(tags: dict[bytes, bytes]) -> bytes:
    """Return a profile with a table of tags and their contents, aligned to 4 bytes."""
    start = 128 + 4 + 12 * len(tags)
    table, contents = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(contents), len(content))
        contents += content + bytes(-len(content) % 4)
    size = start + len(contents)
    header = struct.pack(">I4sI", size, b"lcms", 0x02400000) + b"mntrRGB XYZ "
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += _xyz(_D50_XYZ)[8:]
    return header.ljust(128, b"\0") + table + contents
