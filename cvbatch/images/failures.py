"""Failures of images: their kinds and messages, and the exceptions of the readers."""

from __future__ import annotations

import re
import struct
import zlib

from PIL import Image, TiffTags

from cvbatch.core.types import Failure
from cvbatch.images.options import Limits
from cvbatch.images.signatures import is_complete

_MAX_MESSAGE = 300

_UNSUPPORTED_MESSAGE = re.compile(
    r"[Uu]nsupported|cannot identify|[Nn]ot supported|unknown pixel mode|unknown data organization"
    r"|More samples per pixel|cannot handle|not available|conversion from|not implemented"
    r"|[Nn]o codec|No decoding plugin|No AVIF decoder"
)
_TRUNCATED_MESSAGE = re.compile(
    r"truncated|Truncated|NEED_MORE_INPUT|possibly truncated|End of file|unexpected end"
)


class ImageError(Exception):
    """An image that a reader cannot or may not read.

    Args:
        kind: of the failure: unsupported, too_large, truncated or corrupt.
        message: what is wrong, what is allowed, what to do.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def failure(self) -> Failure:
        """The failure of the image."""
        return decode_failure(self.kind, str(self))


# Exceptions of the readers on malformed files, most of them found by decoding hundreds of thousands
# of mutated files. MemoryError is included, so that an image that is too large for this machine
# fails without failing others. The errors of imagecodecs, tifffile and libheif are subclasses of
# RuntimeError, ValueError, SyntaxError and OSError.
READER_ERRORS = (
    ImageError,
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    MemoryError,
)


def decode_failure(kind: str, message: str) -> Failure:
    """Return a failure of the stage "decode"; a long message is cut, and in printable ASCII."""
    return Failure("decode", kind, re.sub(r"[^ -~]+", " ", message)[:_MAX_MESSAGE])


def failure_from_error(error: BaseException, name: str, data: bytes) -> Failure:
    """Convert an exception of a reader to a failure.

    Args:
        error: the exception.
        name: format of the file.
        data: the file.
    """
    if isinstance(error, ImageError):
        if error.kind == "corrupt" and not is_complete(name, data):
            return decode_failure("truncated", str(error))
        return error.failure
    message = _one_line(error)
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return decode_failure("too_large", f"the {name} takes more memory than is free: {message}")
    if name == "TIFF" and message.isdigit():  # the key of a failed look-up is the whole message
        is_tag = int(message) in TiffTags.TAGS_V2
        message = f"tag {message} is missing" if is_tag else f"Unsupported compression {message}"
    if _UNSUPPORTED_MESSAGE.search(message):
        return decode_failure("unsupported", f"this kind of {name} is not read: {message}")
    if _TRUNCATED_MESSAGE.search(message) or not is_complete(name, data):
        return decode_failure("truncated", f"the {name} ends early: {message}")
    return decode_failure("corrupt", f"the {name} is damaged: {message}")


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Raise ImageError if an image, or a part that is decoded as a whole, has too many pixels."""
    if width * height > limits.max_pixels:
        size = f"{width} x {height} = {width * height} pixels"
        raise too_large(size, limits.max_pixels, "source.max_pixels")


def too_large(size: str, limit: int, key: str) -> ImageError:
    """Return the error of an image over a limit that a key of the job file sets."""
    message = f"{size}, over the limit of {limit}; raise {key} to read it"
    return ImageError("too_large", message)


def _one_line(error: BaseException) -> str:
    """Return an exception's message without addresses, line breaks and unprintable characters."""
    text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "file", str(error)) or type(error).__name__
    return re.sub(r"[^ -~]+", " ", text).strip()
