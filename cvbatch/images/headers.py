"""Size, orientation and limits of an image, from its header, before its pixels are decoded.

The sizes that a header declares are compared with the limits before memory is allocated for them.
"""

from __future__ import annotations

from cvbatch.core.types import Failure
from cvbatch.images.failures import (
    READER_ERRORS,
    decode_failure,
    failure_from_error,
    too_large,
)
from cvbatch.images.heif import HEIF_READER
from cvbatch.images.jpeg2000 import JPEG2000_READER
from cvbatch.images.jpegxl import JPEGXL_READER
from cvbatch.images.options import Limits
from cvbatch.images.pillow_formats import PILLOW_READERS
from cvbatch.images.readers import SIDEWAYS, Header, Reader
from cvbatch.images.signatures import detect_format
from cvbatch.images.tiff import TIFF_READER

__all__ = ["READERS", "SIDEWAYS", "Header", "Limits", "read_header"]

# The only readers in use, by the name of the format that `detect_format` returns
READERS: dict[str, Reader] = {
    **PILLOW_READERS,
    "TIFF": TIFF_READER,
    "HEIF": HEIF_READER,
    "JPEG 2000": JPEG2000_READER,
    "JPEG XL": JPEGXL_READER,
}


def read_header(data: bytes, limits: Limits) -> Header | Failure:
    """Read the header of an image and compare it with the limits.

    Args:
        data: the image file.
        limits: maximum sizes.

    Returns:
        The header, or a failure if there is none or it exceeds a limit.
    """
    if not data:
        return decode_failure("empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        return too_large(f"{len(data)} bytes", limits.max_bytes, "source.max_bytes").failure
    name = detect_format(data)
    if name is None:
        return decode_failure("not_an_image", "the bytes do not begin like any known image format")
    if name not in READERS:
        known = ", ".join(READERS)
        return decode_failure(
            "unsupported", f"{name} is not read; convert the image to one of {known}"
        )
    try:
        return READERS[name].open(data, limits)
    except READER_ERRORS as error:
        return failure_from_error(error, name, data)
