"""What an image's header says, and why some are refused before a pixel is read.

Nothing here makes room for what a header merely claims: the limits are held against it first.
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
from cvbatch.images.signatures import detect_format, is_complete, count_jpeg_scans, count_tiff_tags, webp_size

_MAX_MESSAGE = 300
_ORIENTATION_TAG = 274
_ORIENTATIONS = range(2, 9)  # 1 is upright
_MAX_SCANS = 100  # of a JPEG, each over all pixels; encoders write a dozen
_MAX_TAGS = 4096  # of a TIFF, each of which takes time; writers put some twenty
_TILE_TAGS = (322, 323)  # width and height of a TIFF's tiles, which are read whole
_PNG_TAIL = 2**16  # where EXIF that follows a PNG's pixels is looked for

# What Pillow's readers, which are Python, raise over bytes that are not what they take them for,
# most of it found by decoding hundreds of thousands of mutated files; and MemoryError, so that a
# picture too large for this machine fails alone.
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

# The readers that may be reached. Built directly, not through `Image.open`: its limit on pixels is
# one for the whole process, and its other plug-ins start Ghostscript and the like.
_READERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}
_UNSUPPORTED_WORDS = re.compile(
    r"Unsupported|unknown pixel mode|unknown data organization|More samples per pixel"
    r"|cannot handle|not available|conversion from"
)

_SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True)
class Limits:
    """What may be decoded: bytes of the file, pixels of the picture and its tiles, by its header.

    `batch_tile_bytes` bounds what is laid out for a model with tiles at once.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 100_000_000
    reduced_jpeg: bool = True  # large JPEGs at 1/2, 1/4 or 1/8, never below what a network gets
    max_tile_bytes: int = 2**30  # of one image, for one model
    batch_tile_bytes: int = 256 * 2**20  # of a batch, for one model; one image may pass it


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are read; sizes as stored, not yet turned."""

    format: str
    data: bytes
    image: ImageFile
    width: int
    height: int
    orientation: int  # 1..8

    @property
    def upright_hw(self) -> tuple[int, int]:
        """Return the height and width of the upright image."""
        if self.orientation in _SIDEWAYS:
            return self.width, self.height
        return self.height, self.width


def read_header(data: bytes, limits: Limits) -> Header | Failure:
    """Return what an image's header says, the limits held against it; or why there is none."""
    if not data:
        return decode_failure("empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        return _too_large(f"{len(data)} bytes", limits.max_bytes, "source.max_bytes")
    name = detect_format(data)
    if name is None:
        return decode_failure("not_an_image", "the bytes do not begin like any known image format")
    if name not in _READERS:
        known = ", ".join(_READERS)
        return decode_failure("unsupported", f"{name} is not read; convert the image to one of {known}")
    if name == "JPEG":
        # a file cut short and filled up with zeros would pass: they decode to grey
        data = data.rstrip(b"\0")
    if (too_much := _claims_too_much(name, data, limits)) is not None:
        return too_much
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


def _claims_too_much(name: str, data: bytes, limits: Limits) -> Failure | None:
    """Return why a file may not even be opened, None if it may."""
    if name == "JPEG" and data.count(b"\xff\xda") > _MAX_SCANS:
        count = count_jpeg_scans(data)
        if count > _MAX_SCANS:
            return decode_failure("too_large", f"{count} scans; more than {_MAX_SCANS} are not read")
    if name == "TIFF" and (count := count_tiff_tags(data)) > _MAX_TAGS:
        return decode_failure("corrupt", f"the TIFF has {count} tags; more than {_MAX_TAGS} are not read")
    if name == "WebP" and (size := webp_size(data)) and size[0] * size[1] > limits.max_pixels:
        return _too_many_pixels(*size, limits)  # to open it makes room for them
    return None


def _read_orientation(name: str, image: ImageFile, data: bytes) -> int:
    """Return the EXIF orientation, 1 where it is absent, unknown or unreadable."""
    if name == "TIFF":  # there it is part of the format, and Pillow turns the picture itself
        return 1
    try:
        # the plain method: PNG's own would decode all pixels to see whether EXIF follows them
        exif = Image.Image.getexif(image)
        if name == "PNG" and (start := data.rfind(b"eXIf", -_PNG_TAIL)) >= 0:
            size = int.from_bytes(data[start - 4 : start])
            exif.load(data[start + 4 : start + 4 + size])
        orientation = exif.get(_ORIENTATION_TAG)
    except PILLOW_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) and orientation in _ORIENTATIONS else 1


def failure_from_error(error: BaseException, name: str, data: bytes) -> Failure:
    """Return the failure that a reader's exception over a file of a format means."""
    message = _one_line(error)
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return decode_failure("too_large", f"the {name} is larger than Pillow can read: {message}")
    if name == "TIFF" and message.isdigit():  # all that Pillow says of what it looked up in vain
        is_tag = int(message) in TiffTags.TAGS_V2
        message = f"tag {message} is missing" if is_tag else f"Unsupported compression {message}"
    if _UNSUPPORTED_WORDS.search(message):
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
    """Return a failure to decode, its message cut short where it is long."""
    return Failure("decode", kind, message[:_MAX_MESSAGE])


def _one_line(error: BaseException) -> str:
    """Return an exception's text without addresses, line breaks and unprintable characters."""
    text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "file", str(error)) or type(error).__name__
    return re.sub(r"[^ -~]+", " ", text).strip()
