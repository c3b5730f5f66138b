"""Check the images inside the strips and tiles of a TIFF before they are decoded."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import TYPE_CHECKING

from PIL.JpegImagePlugin import JpegImageFile

from cvbatch.images.failures import READER_ERRORS, ImageError, check_pixels
from cvbatch.images.header_repair import jpeg_has_end
from cvbatch.images.options import Limits
from cvbatch.images.signatures import detect_format, jpeg2000_size, webp_size

if TYPE_CHECKING:
    from tifffile import TiffPage

# TIFF compressions whose strips and tiles are images with a header of their own
_IMAGE_COMPRESSIONS = frozenset(
    (6, 7, 33003, 33004, 33005, 33007, 34712, 34887, 34892, 34933, 50001, 50002, 52546)
)
_JPEGS = (7, 33007, 34892)
# Decoders that allocate what is inside without a header that is read here
_UNBOUNDED = {22610: "JPEG XR", 34934: "JPEG XR", 48124: "Jetraw", 65000: "EER", 65001: "EER"}


def check_embedded_images(page: TiffPage, data: bytes, limits: Limits) -> None:
    """Compare the size of each image inside a strip or tile with the limit of pixels.

    Raises:
        ImageError: an image is too large, a JPEG ends early, which its decoder does not report, or
            the format has no header that is read here.
    """
    if page.compression in _UNBOUNDED:
        name = _UNBOUNDED[page.compression]
        raise ImageError("unsupported", f"{name} inside TIFF is not read; save it uncompressed")
    if page.compression not in _IMAGE_COMPRESSIONS:
        return
    for offset, num_bytes in zip(page.dataoffsets, page.databytecounts, strict=False):
        segment = data[offset : offset + num_bytes]
        if size := _embedded_size(segment):
            check_pixels(*size, limits)
        if page.compression in _JPEGS and num_bytes and not jpeg_has_end(segment):
            raise ImageError("truncated", "a JPEG inside the TIFF ends early: it has no end marker")


def _embedded_size(segment: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in the header of an image inside a TIFF."""
    if segment.startswith(b"Lerc2 "):
        start = 14 if segment[6:10] >= b"\3" else 10
        height, width = struct.unpack_from("<ii", segment.ljust(start + 8, b"\0"), start)
        return width, height
    match detect_format(segment):
        case "WebP":
            return webp_size(segment)
        case "PNG":
            return int.from_bytes(segment[16:20]), int.from_bytes(segment[20:24])
        case "JPEG 2000":
            return jpeg2000_size(segment)
        case "JPEG XL":
            from cvbatch.images.jpegxl import read_jpegxl_header

            header = read_jpegxl_header(segment)
            return header.width, header.height
        case "JPEG":
            try:
                return JpegImageFile(BytesIO(segment)).size
            except READER_ERRORS:
                return None
    return None
