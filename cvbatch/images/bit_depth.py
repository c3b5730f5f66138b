"""Reduce samples of any type to 8 bits.

Values of up to 8 bits are scaled to 0..255. Of more bits, `high_byte` takes the upper 8 of the bits
that the file declares; it has no meaning for signed integers, floats and integers of more than 16
bits, whose range no header declares: they are refused. `percentile` maps the 1st and the 99th
percentile of the image, over all its channels, to 0 and 255 (if they are equal, the smallest and
the largest value); (min, max) maps these two values. Both
are linear, and clip.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cvbatch.images.failures import ImageError
from cvbatch.images.options import BitDepth

PERCENTILES = (1.0, 99.0)
_MAX_SAMPLED = 1 << 22  # values that the percentiles are computed from: evenly spaced ones
_BAND_VALUES = 1 << 22  # values converted at once, which bounds the temporary arrays
_MAX_HIGH_BYTE_BITS = 16
_KINDS = {"i": "signed integers", "u": "unsigned integers", "f": "floats"}


def to_8_bits(
    values: np.ndarray,  # (h, w, c), bool, integers or floats
    bits: int,
    bit_depth: BitDepth,
) -> np.ndarray:  # (h, w, c) uint8
    """Reduce samples to 8 bits.

    Args:
        values: the samples, in native byte order.
        bits: that the file declares, of unsigned integers.
        bit_depth: the rule for values of more than 8 bits.

    Raises:
        ImageError: the range of the values is not known, and the rule needs it.
    """
    is_unsigned = values.dtype.kind in "bu"
    if is_unsigned and bits <= 8:
        return _scale_small(values, bits)
    if bit_depth == "high_byte":
        if not is_unsigned or bits > _MAX_HIGH_BYTE_BITS:
            raise ImageError("unsupported", _unknown_range(values.dtype))
        return _by_bands(values, lambda band: band >> (bits - 8))
    if values.dtype.kind not in "buif":
        raise ImageError("unsupported", f"values of type {values.dtype} are not read")
    low, high = _percentiles(values) if bit_depth == "percentile" else bit_depth
    return _by_bands(values, lambda band: _stretch(band, low, high))


def _unknown_range(dtype: np.dtype) -> str:
    kind = {"i": "signed integers", "u": "unsigned integers", "f": "floats"}.get(
        dtype.kind, "values"
    )
    return (
        f"{dtype.itemsize * 8}-bit {kind} have no known range; set source.bit_depth to percentile "
        "or to {min, max}"
    )


def _scale_small(values: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8 and values.dtype == np.uint8:
        return values
    largest = (1 << bits) - 1
    table = (np.arange(256, dtype=np.uint32).clip(0, largest) * 255 // largest).astype(np.uint8)
    return np.asarray(table[values.astype(np.uint8, copy=False)])


def _by_bands(values: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    result = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND_VALUES // max(1, values[:1].size))
    for start in range(0, len(values), rows):
        result[start : start + rows] = convert(values[start : start + rows])
    return result


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scale = 255 / (high - low) if high > low else 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (values.astype(np.float64) - low) * scale
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return np.asarray(scaled.clip(0, 255) + 0.5)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    flat = values.reshape(-1)
    sampled = flat[:: -(-flat.size // _MAX_SAMPLED) or 1].astype(np.float64)
    finite = sampled[np.isfinite(sampled)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, PERCENTILES)
    if low == high:  # nearly all values are equal, as on a map of few objects
        low, high = finite.min(), finite.max()
    return float(low), float(high)
