"""Reader of JPEG XL: the header is parsed here, imagecodecs (libjxl) decodes the pixels.

imagecodecs has no function that reads a header alone, and an image must not be decoded before its
size is compared with the limits.

Source: ISO/IEC 18181-1, annex D (image header); 18181-2 (file format).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvbatch.images.color_profiles import profile_of_primaries
from cvbatch.images.failures import ImageError, check_pixels
from cvbatch.images.iso_boxes import iterate_boxes
from cvbatch.images.options import Limits
from cvbatch.images.readers import Header, Reader
from cvbatch.images.samples import ColorSpace, Samples, split_channels

_SIGNATURE = b"\xff\x0a"
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_ENUM = ((0, 0), (1, 0), (2, 4), (18, 6))  # (offset, bits) of each selector of U32
_SIDE = ((1, 9), (1, 13), (1, 18), (1, 30))
_ALPHA, _SPOT, _BLACK, _CFA = 0, 2, 4, 5  # types of extra channels
_GREY = 1  # colour space
_MAX_EXTRA_CHANNELS = 16
_CUSTOM = 2  # white point, primaries


@dataclass
class JpegXlHeader:
    """Values of a JPEG XL header."""

    width: int
    height: int
    orientation: int = 1
    is_float: bool = False
    has_black: bool = False
    is_grey: bool = False
    primaries: int = 1
    transfer: int = 13


class _Bits:
    """Bits of a codestream, least significant first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data[:4096], "little")
        self._left = 8 * min(4096, len(data))

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise EOFError("the JPEG XL header is truncated")
        result = self._value & ((1 << count) - 1)
        self._value >>= count
        return result

    def flag(self) -> bool:
        return bool(self.take(1))

    def u32(self, selectors: tuple[tuple[int, int], ...]) -> int:
        offset, bits = selectors[self.take(2)]
        return offset + self.take(bits)


def read_jpegxl_header(data: bytes) -> JpegXlHeader:
    """Read the header of a JPEG XL, with or without boxes around it.

    Raises:
        EOFError: the file ends before it.
        ImageError: there is no codestream.
    """
    bits = _Bits(_codestream(data)[2:])
    height, width = _read_size(bits)
    header = JpegXlHeader(width, height)
    if not bits.flag():  # all_default
        _read_metadata(bits, header)
    return header


def _codestream(data: bytes) -> bytes:
    if data.startswith(_SIGNATURE):
        return data
    for box in iterate_boxes(data):
        content = data[box.start : min(box.end, box.start + 8192)]
        part = content[4:] if box.type == b"jxlp" else content
        if box.type in (b"jxlc", b"jxlp") and part.startswith(_SIGNATURE):
            return part
    raise ImageError("truncated", "the JPEG XL ends early: it has no codestream")


def _read_size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.flag()
    height = 8 * (1 + bits.take(5)) if is_small else bits.u32(_SIDE)
    ratio = bits.take(3)
    if ratio:
        numerator, denominator = _RATIOS[ratio]
        return height, height * numerator // denominator
    return height, 8 * (1 + bits.take(5)) if is_small else bits.u32(_SIDE)


def _read_metadata(bits: _Bits, header: JpegXlHeader) -> None:
    if bits.flag():  # extra_fields
        header.orientation = 1 + bits.take(3)
        if bits.flag():
            _read_size(bits)  # intrinsic size
        if bits.flag():
            _skip_preview(bits)
        if bits.flag():
            _skip_animation(bits)
    header.is_float = _read_bit_depth(bits)
    bits.flag()  # modular_16bit_buffers
    num_extra = bits.u32(((0, 0), (1, 0), (2, 4), (1, 12)))
    if num_extra > _MAX_EXTRA_CHANNELS:
        message = f"JPEG XL of {num_extra} extra channels is not read; save three bands as RGB"
        raise ImageError("unsupported", message)
    for _ in range(num_extra):
        header.has_black |= _read_extra_channel(bits) == _BLACK
    bits.flag()  # xyb_encoded
    _read_color(bits, header)


def _skip_preview(bits: _Bits) -> None:
    is_small = bits.flag()
    small, large = ((16, 0), (32, 0), (1, 5), (33, 9)), ((1, 6), (65, 8), (321, 10), (1345, 12))
    bits.u32(small if is_small else large)
    if bits.take(3) == 0:
        bits.u32(small if is_small else large)


def _skip_animation(bits: _Bits) -> None:
    bits.u32(((100, 0), (1000, 0), (1, 10), (1, 30)))
    bits.u32(((1, 0), (1001, 0), (1, 8), (1, 10)))
    bits.u32(((0, 0), (0, 3), (0, 16), (0, 32)))
    bits.flag()


def _read_bit_depth(bits: _Bits) -> bool:
    """Return whether samples are floats."""
    is_float = bits.flag()
    if is_float:
        bits.u32(((32, 0), (16, 0), (24, 0), (1, 6)))
        bits.take(4)
    else:
        bits.u32(((8, 0), (10, 0), (12, 0), (1, 6)))
    return is_float


def _read_extra_channel(bits: _Bits) -> int:
    """Return the type of an extra channel."""
    if bits.flag():  # d_alpha
        return _ALPHA
    kind = bits.u32(_ENUM)
    _read_bit_depth(bits)
    bits.u32(((0, 0), (3, 0), (4, 0), (1, 3)))  # dim_shift
    for _ in range(bits.u32(((0, 0), (0, 4), (16, 5), (48, 10)))):
        bits.take(8)  # name
    if kind == _ALPHA:
        bits.flag()
    elif kind == _SPOT:
        bits.take(4 * 16)
    elif kind == _CFA:
        bits.u32(((1, 0), (0, 2), (3, 4), (19, 8)))
    return kind


def _read_color(bits: _Bits, header: JpegXlHeader) -> None:
    if bits.flag():  # all_default
        return
    has_profile = bits.flag()
    color_space = bits.u32(_ENUM)
    header.is_grey = color_space == _GREY
    if has_profile or color_space == 2:  # XYB
        return
    if bits.u32(_ENUM) == _CUSTOM:  # white point: two values
        for _ in range(2):
            bits.u32(((0, 19), (524288, 19), (1048576, 20), (2097152, 21)))
    if not header.is_grey:
        header.primaries = bits.u32(_ENUM)
        if header.primaries == _CUSTOM:
            return
    header.transfer = 0 if bits.flag() else bits.u32(_ENUM)


def _open(data: bytes, limits: Limits) -> Header:
    header = read_jpegxl_header(data)
    check_pixels(header.width, header.height, limits)
    if header.has_black:
        raise ImageError("unsupported", "CMYK in JPEG XL is not read; convert it to RGB")
    # The enumerations of JPEG XL are those of ITU-T H.273, but for Display P3.
    primaries = 12 if header.primaries == 11 else header.primaries
    return Header(
        "JPEG XL",
        data,
        header,
        header.width,
        header.height,
        orientation=header.orientation,
        profile=profile_of_primaries(primaries, header.transfer),
    )


def _read(header: Header, limits: Limits, _: int) -> Samples:
    import imagecodecs

    values = imagecodecs.jpegxl_decode(header.data, index=0, keeporientation=True, numthreads=1)
    if values.dtype.kind == "f" and limits.bit_depth == "high_byte":
        # The format declares the range of floats: 0 is black, 1 is white.
        values = np.nan_to_num(values, nan=0.0).clip(0, 1)
        values = (values * 65535 + 0.5).astype(np.uint16)
    is_grey = values.ndim == 2 or values.shape[-1] <= 2
    color_space: ColorSpace = "grey" if is_grey else "rgb"
    colors = split_channels(values, color_space)
    return Samples(colors, 8 * values.dtype.itemsize, color_space)


JPEGXL_READER = Reader(_open, _read)
