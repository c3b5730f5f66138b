"""Reader of JPEG 2000: Pillow decodes 8 bits, imagecodecs more; both are OpenJPEG.

Source: ISO/IEC 15444-1, annexes A (codestream) and I (JP2 boxes).
"""

from __future__ import annotations

from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from cvbatch.images.failures import READER_ERRORS, ImageError, check_pixels
from cvbatch.images.iso_boxes import iterate_boxes
from cvbatch.images.options import Limits
from cvbatch.images.readers import Header, Reader
from cvbatch.images.samples import ColorSpace, Samples, split_channels
from cvbatch.images.signatures import jpeg2000_size, jpeg2000_start

_MAX_COMPONENTS = 5  # CMYK and alpha
_SPACES: dict[int, ColorSpace] = {1: "grey", 2: "grey", 3: "rgb", 4: "rgb"}
_PROFILE_METHODS = (b"\2", b"\3")  # of a colr box: restricted and any ICC profile


class _Components(NamedTuple):
    """Contents of the SIZ marker: bits and sign of the components."""

    number: int
    bits: int
    is_signed: bool


def _open(data: bytes, limits: Limits) -> Header:
    size = jpeg2000_size(data)
    if size is None or min(size) < 1:
        raise ImageError("corrupt", "the JPEG 2000 is damaged: it has no size")
    check_pixels(*size, limits)
    components = _read_components(data)
    if not 1 <= components.number <= _MAX_COMPONENTS:
        message = f"JPEG 2000 of {components.number} components is not read; save three as RGB"
        raise ImageError("unsupported", message)
    return Header("JPEG 2000", data, components, *size, profile=_read_profile(data))


def _read_components(data: bytes) -> _Components:
    siz = data[jpeg2000_start(data) :]
    depths = siz[42 : 42 + 3 * int.from_bytes(siz[40:42]) : 3] or b"\0"
    return _Components(
        int.from_bytes(siz[40:42]),
        max(1 + (depth & 0x7F) for depth in depths),
        any(depth & 0x80 for depth in depths),
    )


def _read_profile(data: bytes) -> bytes | None:
    for box in iterate_boxes(data):
        if box.type != b"jp2h":
            continue
        for inner in iterate_boxes(data, box.start, box.end):
            content = data[inner.start : inner.end]
            if inner.type == b"colr" and content[0:1] in _PROFILE_METHODS:
                return content[3:]
    return None


def _read(header: Header, limits: Limits, _: int) -> Samples:
    components: _Components = header.image
    first, second = _read_with_pillow, _read_with_imagecodecs
    if components.bits > 8:
        first, second = second, first
    try:
        return first(header)
    except READER_ERRORS as error:
        try:
            return second(header)
        except ImageError:
            raise
        except READER_ERRORS:
            raise error from None


def _read_with_pillow(header: Header) -> Samples:
    image = Jpeg2KImageFile(BytesIO(header.data))
    image.load()
    if image.mode.startswith("I"):
        return Samples(np.asarray(image)[..., None], 16, "grey")
    if image.mode == "CMYK":
        return Samples(np.asarray(image), 8, "cmyk")
    color_space: ColorSpace = "grey" if image.mode in ("1", "L", "LA") else "rgb"
    return Samples(np.asarray(image.convert("RGB")), 8, color_space)


def _read_with_imagecodecs(header: Header) -> Samples:
    import imagecodecs

    components: _Components = header.image
    if components.number not in _SPACES:
        message = f"JPEG 2000 of {components.number} components is not read; save three as RGB"
        raise ImageError("unsupported", message)
    values = imagecodecs.jpeg2k_decode(header.data, numthreads=1)
    if components.is_signed:
        unsigned = np.dtype(f"u{values.dtype.itemsize}")
        values = (values.astype(np.int64) + (1 << (components.bits - 1))).astype(unsigned)
    color_space = _SPACES[components.number]
    return Samples(split_channels(values, color_space), components.bits, color_space)


JPEG2000_READER = Reader(_open, _read)
