"""Colour of a decoded TIFF page: photometric interpretation, palette, alpha, extra bands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from cvbatch.images.failures import ImageError
from cvbatch.images.samples import CHANNELS, ColorSpace, Samples, split_channels

if TYPE_CHECKING:
    from tifffile import TiffPage

_PHOTOMETRIC, _INK_SET = 262, 332
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _SEPARATED, _YCBCR = range(7)
_CIELAB, _ICCLAB, _ITULAB, _DEPTH_MAP = 8, 9, 10, 51177
_ASSOCIATED_ALPHA = 1  # of ExtraSamples
_CMYK = 1  # of InkSet
_FAX_COMPRESSIONS = (2, 3, 4)
_NAMES = {_ITULAB: "ITU L*a*b*", 32844: "LogL", 32845: "LogLuv"}


def samples_of_page(
    page: TiffPage,
    values: np.ndarray,  # as returned by TiffPage.asarray
) -> Samples:
    """Return the colour channels of a page.

    Raises:
        ImageError: its bands are no picture, or its colour space is not read.
    """
    if page.planarconfig == 2 and values.ndim == 3:
        values = np.moveaxis(values, 0, -1)
    values = values[..., None] if values.ndim == 2 else values
    photometric = _photometric(page, values.shape[-1])
    convert = _CONVERSIONS.get(photometric)
    if convert is None:
        name = _NAMES.get(photometric, f"photometric interpretation {int(photometric)}")
        raise ImageError("unsupported", f"TIFF with {name} is not read; convert it to RGB")
    return convert(page, values)


def _photometric(page: TiffPage, channels: int) -> int:
    if _PHOTOMETRIC in page.tags:
        return int(page.photometric)
    # As in libtiff
    if channels >= CHANNELS["rgb"]:
        return _RGB
    return _WHITE_IS_ZERO if page.compression in _FAX_COMPRESSIONS else _BLACK_IS_ZERO


def _bits(page: TiffPage, values: np.ndarray) -> int:
    """Return the bits of a sample; those of unequal sizes are scaled to their type by tifffile."""
    bits = page.bitspersample
    return bits if isinstance(bits, int) else values.dtype.itemsize * 8


def _extra_samples(page: TiffPage) -> tuple[int, ...]:
    extra: Any = page.extrasamples
    return (int(extra),) if isinstance(extra, int) else tuple(int(kind) for kind in extra)


def _grey(page: TiffPage, values: np.ndarray) -> Samples:
    if values.shape[-1] > 2:
        raise ImageError(
            "unsupported",
            f"a TIFF of {values.shape[-1]} bands that are not RGB; select three bands and save "
            "them as RGB",
        )
    is_inverted = _photometric(page, values.shape[-1]) == _WHITE_IS_ZERO
    return _with_alpha(page, values, "grey", is_inverted)


def _rgb(page: TiffPage, values: np.ndarray) -> Samples:
    _check_channels(values, "rgb")
    return _with_alpha(page, values, "rgb")


def _palette(page: TiffPage, values: np.ndarray) -> Samples:
    colors: Any = page.colormap  # (3, 2**bits), of 16 bits
    if colors is None:
        raise ImageError("corrupt", "the TIFF is damaged: its palette is missing")
    colors = np.asarray(colors)
    if colors.max() > 255:  # otherwise it was written with 8 bits, as libtiff assumes
        colors = colors >> 8
    index = values[..., 0].astype(np.intp)
    if index.max() >= colors.shape[1]:
        raise ImageError("corrupt", "the TIFF is damaged: a pixel is not in its palette")
    return Samples(np.ascontiguousarray(colors.T.astype(np.uint8)[index]))


def _separated(page: TiffPage, values: np.ndarray) -> Samples:
    if page.tags.valueof(_INK_SET, default=_CMYK) != _CMYK or values.shape[-1] < CHANNELS["cmyk"]:
        raise ImageError("unsupported", "a TIFF of inks that are not CMYK; convert it to RGB")
    return Samples(split_channels(values, "cmyk"), _bits(page, values), "cmyk")


def _lab(page: TiffPage, values: np.ndarray) -> Samples:
    _check_channels(values, "lab")
    values = split_channels(values, "lab")
    if values.dtype.itemsize > 2 or values.dtype.kind not in "iu":
        raise ImageError("unsupported", f"L*a*b* of type {values.dtype} is not read")
    unsigned = (
        values.view(f"u{values.dtype.itemsize}")
        if values.flags.c_contiguous
        else (values.astype(f"u{values.dtype.itemsize}"))
    )
    levels = (unsigned >> (8 * values.dtype.itemsize - 8)).astype(np.uint8)
    if _photometric(page, CHANNELS["lab"]) == _ICCLAB:  # a and b have an offset
        levels = levels ^ np.array([0, 128, 128], np.uint8)
    return Samples(levels, 8, "lab")


def _check_channels(values: np.ndarray, color_space: ColorSpace) -> None:
    if values.shape[-1] < CHANNELS[color_space]:
        raise ImageError(
            "corrupt",
            f"the TIFF is damaged: {values.shape[-1]} samples per pixel are not {color_space}",
        )


def _with_alpha(
    page: TiffPage, values: np.ndarray, color_space: ColorSpace, is_inverted: bool = False
) -> Samples:
    channels = CHANNELS[color_space]
    extra = _extra_samples(page)
    alpha = None
    if values.shape[-1] > channels and extra[:1] == (_ASSOCIATED_ALPHA,):
        alpha = values[..., channels : channels + 1]
    colors = split_channels(values, color_space)
    return Samples(colors, _bits(page, values), color_space, is_inverted, alpha)


_CONVERSIONS: dict[int, Callable[[Any, np.ndarray], Samples]] = {
    _WHITE_IS_ZERO: _grey,
    _BLACK_IS_ZERO: _grey,
    _RGB: _rgb,
    _PALETTE: _palette,
    _MASK: _grey,
    _SEPARATED: _separated,
    _YCBCR: _rgb,  # JPEG inside TIFF, which its decoder converts
    _CIELAB: _lab,
    _ICCLAB: _lab,
    _DEPTH_MAP: _grey,
}
