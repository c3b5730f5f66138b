"""Readers of JPEG, PNG, WebP, GIF, BMP and AVIF: Pillow reads headers, OpenCV decodes faster.

OpenCV decodes JPEG, PNG and WebP: it is faster and gives the same pixels. Pillow decodes what
OpenCV cannot or does wrong: CMYK JPEG, animations, GIF, BMP, AVIF. Where OpenCV fails, Pillow
decodes again and its result counts. imagecodecs decodes what neither does: JPEG of 12 bits, AVIF of
10 and 12 bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from io import BytesIO

import cv2
import numpy as np
from PIL import AvifImagePlugin, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cvbatch.images.color_profiles import profile_of_chromaticities, profile_of_primaries
from cvbatch.images.failures import READER_ERRORS, ImageError, check_pixels
from cvbatch.images.header_repair import (
    JPEG_LS,
    LOSSLESS_JPEG,
    jpeg_for_pillow,
    jpeg_frame,
    jpeg_has_end,
    png_for_pillow,
)
from cvbatch.images.options import Limits
from cvbatch.images.readers import Header, Reader, orientation_or_upright
from cvbatch.images.samples import CHANNELS, ColorSpace, Samples, split_channels
from cvbatch.images.signatures import (
    count_jpeg_scans,
    is_complete,
    png_has_all_rows,
    webp_size,
)

# A damaged image becomes a failed row with the URI of its file; OpenCV's log lines have no URI.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# Threads reserve address space, which the isolated decoder limits; images are decoded in parallel.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_ORIENTATION_TAG = 274
_MAX_SCANS = 100  # of a JPEG: decoding each takes time; encoders write about twelve
_PNG_TAIL = 2**16  # last bytes of a PNG that are searched for EXIF data after the pixels
_PNG_BIT_DEPTH = 24  # offset in the file
_REDUCED_FLAGS = {1: 0, 2: 16, 4: 32, 8: 64}  # IMREAD_REDUCED_COLOR_n without its BGR bit
_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I")
_AV1_CONFIGURATION = re.compile(rb"av1C\x81.(.)", re.DOTALL)


# The readers are called directly, not by `Image.open`: its limit on pixels is global in the
# process, and its other plug-ins start programs such as Ghostscript.
def _open(reader: type[ImageFile], name: str, data: bytes, limits: Limits) -> Header:
    try:
        image = reader(BytesIO(data))
    except READER_ERRORS:
        if name not in _REPAIRS:
            raise
        repaired = _REPAIRS[name](data)
        image = reader(BytesIO(repaired))
        # OpenCV must not decode as an animation what the header says is none. A JPEG is decoded as
        # it is, because its bits per sample were changed.
        data = repaired if name == "PNG" else data
    check_pixels(*image.size, limits)
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes):
        profile = _DECLARED_PROFILES[name](image, data) if name in _DECLARED_PROFILES else None
    orientation = _read_orientation(name, image, data)
    return Header(name, data, image, *image.size, orientation=orientation, profile=profile)


def _open_jpeg(data: bytes, limits: Limits) -> Header:
    # Without this a truncated file that is padded with zeros would pass: zeros decode to grey.
    data = data.rstrip(b"\0")
    if data.count(b"\xff\xda") > _MAX_SCANS:
        count = count_jpeg_scans(data)
        if count > _MAX_SCANS:
            message = f"{count} scans; more than {_MAX_SCANS} are not read"
            raise ImageError("too_large", message)
    return _open(JpegImageFile, "JPEG", data, limits)


def _open_webp(data: bytes, limits: Limits) -> Header:
    if size := webp_size(data):
        check_pixels(*size, limits)  # opening it allocates memory for them
    return _open(WebPImageFile, "WebP", data, limits)


def _read_orientation(name: str, image: ImageFile, data: bytes) -> int:
    """Return the EXIF orientation, 1 where it is absent, unknown or unreadable."""
    try:
        # Not the method of PNG: it decodes all pixels to find EXIF data that follows them.
        exif = Image.Image.getexif(image)
        if name == "PNG" and (start := data.rfind(b"eXIf", -_PNG_TAIL)) >= 0:
            size = int.from_bytes(data[start - 4 : start])
            exif.load(data[start + 4 : start + 4 + size])
        return orientation_or_upright(exif.get(_ORIENTATION_TAG))
    except READER_ERRORS:
        return 1


def _declared_png_profile(image: ImageFile, data: bytes) -> bytes | None:
    """Return the profile of the chunks cICP, or cHRM and gAMA; None if they are those of sRGB."""
    start = data.find(b"cICP", 0, data.find(b"IDAT"))
    if start > 0:
        return profile_of_primaries(data[start + 4], data[start + 5])
    gamma, chromaticity = image.info.get("gamma"), image.info.get("chromaticity")
    if "srgb" in image.info or (gamma is None and chromaticity is None):
        return None
    return profile_of_chromaticities(chromaticity, gamma)


def _declared_avif_profile(_: ImageFile, data: bytes) -> bytes | None:
    start = data.find(b"colrnclx")
    primaries, transfer = data[start + 8 : start + 10], data[start + 10 : start + 12]
    return profile_of_primaries(int.from_bytes(primaries), int.from_bytes(transfer))


# Formats that declare a colour space without an ICC profile
_DECLARED_PROFILES: dict[str, Callable[[ImageFile, bytes], bytes | None]] = {
    "PNG": _declared_png_profile,
    "AVIF": _declared_avif_profile,
}


# Formats whose header Pillow may refuse though other readers open the file
_REPAIRS: dict[str, Callable[[bytes], bytes]] = {"JPEG": jpeg_for_pillow, "PNG": png_for_pillow}


def _read_jpeg(header: Header, limits: Limits, reduction: int) -> Samples:
    marker, bits, _ = jpeg_frame(header.data)
    if bits > 8 or marker == JPEG_LS:
        return _read_special_jpeg(header, marker, bits)
    pixels = None
    if header.image.mode != "CMYK":
        pixels = _read_with_opencv(header, _RGB | _REDUCED_FLAGS[reduction], reduction)
    if pixels is not None:
        return Samples(pixels, color_space=_color_space(header.image))
    try:
        return _read_with_pillow(header)
    except READER_ERRORS:
        if marker != LOSSLESS_JPEG:
            raise
        return _read_special_jpeg(header, marker, bits)


def _read_special_jpeg(header: Header, marker: int, bits: int) -> Samples:
    """Decode a JPEG-LS, a lossless JPEG, or a JPEG of more than 8 bits."""
    import imagecodecs

    if not jpeg_has_end(header.data):  # which these decoders do not detect
        raise ImageError("truncated", "the JPEG ends early: it has no end marker")
    decode = imagecodecs.jpegls_decode if marker == JPEG_LS else imagecodecs.jpeg_decode
    values = decode(header.data)
    if values.shape[:2] != (header.height, header.width):
        raise ImageError("corrupt", f"the JPEG is damaged: its pixels are {values.shape}")
    if values.ndim == 3 and values.shape[-1] != CHANNELS["rgb"]:
        raise ImageError("unsupported", f"{bits}-bit CMYK in JPEG is not read; convert it to RGB")
    color_space: ColorSpace = "grey" if values.ndim == 2 else "rgb"
    return Samples(split_channels(values, color_space), bits, color_space)


def _read_png(header: Header, limits: Limits, _: int) -> Samples:
    pixels = None
    # OpenCV allocates the length that a PNG chunk declares: 3 GB for a file of 6 kB.
    if not header.image.is_animated and is_complete("PNG", header.data):
        if header.data[_PNG_BIT_DEPTH] == 16 and limits.bit_depth != "high_byte":
            return _read_16_bit_png(header)
        pixels = _read_with_opencv(header, _RGB)
    if pixels is not None:
        return Samples(pixels, color_space=_color_space(header.image))
    try:
        samples = _read_with_pillow(header)
    except READER_ERRORS:
        if not header.image.is_animated or not is_complete("PNG", header.data):
            raise
        plain = _open(PngImageFile, "PNG", png_for_pillow(header.data), limits)
        return _read_png(plain, limits, 1)  # the animation is damaged, perhaps not its first frame
    if not png_has_all_rows(header.data):  # Pillow leaves missing rows black
        raise ImageError("truncated", "the PNG ends early: it lacks rows of pixels")
    return samples


def _read_16_bit_png(header: Header) -> Samples:
    values = cv2.imdecode(np.frombuffer(header.data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.shape[:2] != (header.height, header.width):
        raise ImageError("corrupt", "the PNG is damaged: its 16-bit pixels cannot be decoded")
    if values.ndim == 3:
        values = values[..., 2::-1]
    color_space: ColorSpace = "grey" if _color_space(header.image) == "grey" else "rgb"
    return Samples(split_channels(values, color_space), 16, color_space)


def _read_webp(header: Header, limits: Limits, _: int) -> Samples:
    pixels = None
    if not header.image.is_animated:
        pixels = _read_with_opencv(header, _RGB)
    return _read_with_pillow(header) if pixels is None else Samples(pixels)


def _read_avif(header: Header, limits: Limits, _: int) -> Samples:
    found = _AV1_CONFIGURATION.search(header.data)
    flags = found[1][0] if found else 0
    bits = (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    if bits == 8 or header.image.is_animated:  # sequences of more bits crash imagecodecs
        return _read_with_pillow(header)
    import imagecodecs

    values = imagecodecs.avif_decode(header.data, index=0, numthreads=1)
    color_space: ColorSpace = "grey" if values.ndim == 2 else "rgb"
    return Samples(split_channels(values, color_space), bits, color_space)


def _read_with_opencv(
    header: Header, flags: int, reduction: int = 1
) -> np.ndarray | None:  # (h, w, 3) uint8
    """Return the pixels; None where OpenCV fails or its size differs from the header's."""
    try:
        pixels = cv2.imdecode(np.frombuffer(header.data, np.uint8), flags)
    except cv2.error:
        return None
    expected = (-(-header.height // reduction), -(-header.width // reduction), 3)
    return pixels if pixels is not None and pixels.shape == expected else None


def _read_with_pillow(header: Header, *_: object) -> Samples:
    image = header.image
    image.load()
    if image.mode.startswith("I;16"):
        return Samples(np.asarray(image)[..., None], 16, "grey")
    if image.mode == "CMYK":
        return Samples(np.asarray(image), 8, "cmyk")
    return Samples(np.asarray(image.convert("RGB")), 8, _color_space(image))


def _color_space(image: ImageFile) -> ColorSpace:
    return "grey" if image.mode in _GREY_MODES else "rgb"


def _reader(kind: type[ImageFile], name: str) -> Reader:
    return Reader(partial(_open, kind, name), _read_with_pillow)


PILLOW_READERS: dict[str, Reader] = {
    "JPEG": Reader(_open_jpeg, _read_jpeg),
    "PNG": Reader(partial(_open, PngImageFile, "PNG"), _read_png),
    "WebP": Reader(_open_webp, _read_webp),
    "GIF": _reader(GifImageFile, "GIF"),
    "BMP": _reader(BmpImageFile, "BMP"),
    "AVIF": Reader(partial(_open, AvifImagePlugin.AvifImageFile, "AVIF"), _read_avif),
}
