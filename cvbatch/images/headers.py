"""Size, orientation and limits of an image, from its header, before its pixels are decoded.

The sizes that a header declares are compared with the limits before memory is allocated for them.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, TiffTags
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cvbatch.core.types import Failure
from cvbatch.images.signatures import (
    count_jpeg_scans,
    count_tiff_tags,
    detect_format,
    is_complete,
    webp_size,
)

_MAX_MESSAGE = 300
_ORIENTATION_TAG = 274
_ORIENTATIONS = range(2, 9)  # 1 is upright
_MAX_SCANS = 100  # of a JPEG: decoding each takes time; encoders write about twelve
_MAX_TAGS = 4096  # of a TIFF: parsing each takes time; encoders write about twenty
_TILE_TAGS = (322, 323)  # TIFF tags TileWidth and TileLength; tiles are decoded as a whole
_PNG_TAIL = 2**16  # last bytes of a PNG that are searched for EXIF data after the pixels

# Exceptions of Pillow's readers on malformed files, most of them found by decoding hundreds of
# thousands of mutated files. MemoryError is included, so that an image that is too large for this
# machine fails without failing others.
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    MemoryError,
)

# The only readers in use. They are called directly, not by `Image.open`: its limit on pixels is
# global in the process, and its other plug-ins start programs such as Ghostscript.
_READERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}
_UNSUPPORTED_MESSAGE = re.compile(
    r"Unsupported|unknown pixel mode|unknown data organization|More samples per pixel"
    r"|cannot handle|not available|conversion from"
)

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


@dataclass(frozen=True)
class Limits:
    """Maximum sizes of the images that are decoded.

    Attributes:
        max_bytes: of the encoded file.
        max_pixels: of the image, as declared in its header.
        reduced_jpeg: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, never below the size that
            a network needs.
        max_tile_bytes: of the tiles of one image, for one model.
        batch_tile_bytes: of the tiles of one batch, for one model; a single image may exceed it.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 100_000_000
    reduced_jpeg: bool = True
    max_tile_bytes: int = 2**30
    batch_tile_bytes: int = 256 * 2**20


@dataclass(frozen=True)
class Header:
    """Contents of an image's header; width and height are those of the stored pixels."""

    format: str
    data: bytes
    image: ImageFile
    width: int
    height: int
    orientation: int  # of EXIF, 1..8

    @property
    def upright_hw(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        if self.orientation in SIDEWAYS:
            return self.width, self.height
        return self.height, self.width


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
        return _too_large(f"{len(data)} bytes", limits.max_bytes, "source.max_bytes")
    name = detect_format(data)
    if name is None:
        return decode_failure("not_an_image", "the bytes do not begin like any known image format")
    if name not in _READERS:
        known = ", ".join(_READERS)
        return decode_failure(
            "unsupported", f"{name} is not read; convert the image to one of {known}"
        )
    if name == "JPEG":
        # Without this a truncated file that is padded with zeros would pass: zeros decode to grey.
        data = data.rstrip(b"\0")
    if (too_large := _check_declared_sizes(name, data, limits)) is not None:
        return too_large
    try:
        image = _READERS[name](BytesIO(data))
    except PILLOW_ERRORS as error:
        return failure_from_error(error, name, data)
    width, height = image.size
    if width * height > limits.max_pixels:
        return _too_many_pixels(width, height, limits)
    if isinstance(image, TiffImageFile):
        sides = [side for tag in _TILE_TAGS if isinstance(side := image.tag_v2.get(tag), int)]
        if len(sides) == 2 and sides[0] * sides[1] > limits.max_pixels:
            return _too_many_pixels(sides[0], sides[1], limits)
    orientation = _read_orientation(name, image, data)
    return Header(name, data, image, width, height, orientation)


def _check_declared_sizes(name: str, data: bytes, limits: Limits) -> Failure | None:
    """Return the failure of a file that takes too much memory or time to be opened."""
    if name == "JPEG" and data.count(b"\xff\xda") > _MAX_SCANS:
        count = count_jpeg_scans(data)
        if count > _MAX_SCANS:
            return decode_failure(
                "too_large", f"{count} scans; more than {_MAX_SCANS} are not read"
            )
    if name == "TIFF" and (count := count_tiff_tags(data)) > _MAX_TAGS:
        return decode_failure(
            "corrupt", f"the TIFF has {count} tags; more than {_MAX_TAGS} are not read"
        )
    if name == "WebP" and (size := webp_size(data)) and size[0] * size[1] > limits.max_pixels:
        return _too_many_pixels(*size, limits)  # opening it allocates memory for them
    return None


def _read_orientation(name: str, image: ImageFile, data: bytes) -> int:
    """Return the EXIF orientation, 1 where it is absent, unknown or unreadable."""
    if name == "TIFF":  # orientation is part of the format: Pillow applies it
        return 1
    try:
        # Not the method of PNG: it decodes all pixels to find EXIF data that follows them.
        exif = Image.Image.getexif(image)
        if name == "PNG" and (start := data.rfind(b"eXIf", -_PNG_TAIL)) >= 0:
            size = int.from_bytes(data[start - 4 : start])
            exif.load(data[start + 4 : start + 4 + size])
        orientation = exif.get(_ORIENTATION_TAG)
    except PILLOW_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) and orientation in _ORIENTATIONS else 1


def failure_from_error(error: BaseException, name: str, data: bytes) -> Failure:
    """Convert an exception of a reader to a failure.

    Args:
        error: the exception.
        name: format of the file.
        data: the file.
    """
    message = _one_line(error)
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return decode_failure("too_large", f"the {name} is larger than Pillow can read: {message}")
    if (
        name == "TIFF" and message.isdigit()
    ):  # the key of a failed look-up is Pillow's whole message
        is_tag = int(message) in TiffTags.TAGS_V2
        message = f"tag {message} is missing" if is_tag else f"Unsupported compression {message}"
    if _UNSUPPORTED_MESSAGE.search(message):
        return decode_failure("unsupported", f"this kind of {name} is not read: {message}")
    if "truncated" in message or not is_complete(name, data):
        return decode_failure("truncated", f"the {name} ends early: {message}")
    return decode_failure("corrupt", f"the {name} is damaged: {message}")


def _too_many_pixels(width: int, height: int, limits: Limits) -> Failure:
    size = f"{width} x {height} = {width * height} pixels"
    return _too_large(size, limits.max_pixels, "source.max_pixels")


def _too_large(size: str, limit: int, key: str) -> Failure:
    return decode_failure("too_large", f"{size}, over the limit of {limit}; raise {key} to read it")


def decode_failure(kind: str, message: str) -> Failure:
    """Return a failure of the stage "decode"; a long message is cut."""
    return Failure("decode", kind, message[:_MAX_MESSAGE])


def _one_line(error: BaseException) -> str:
    """Return an exception's message without addresses, line breaks and unprintable characters."""
    text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "file", str(error)) or type(error).__name__
    return re.sub(r"[^ -~]+", " ", text).strip()
