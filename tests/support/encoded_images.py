"""Encoded images of every format that is decoded, and Pillow as the reference decoder."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from cvbatch.core.types import Decoded, Failure, InputKey
from cvbatch.images.decode import Limits, decode

HEIGHT, WIDTH = 48, 64
SAME_SIZE = InputKey(HEIGHT, WIDTH, "stretch")


def photo(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Image.Image:
    """Return smooth colours with a little noise, which compress and shrink like a photograph."""
    rng = np.random.default_rng(seed)
    blobs = rng.integers(0, 256, (6, 8, 3), np.uint8)
    smooth = cv2.resize(blobs, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    noisy = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255)
    return Image.fromarray(noisy.astype(np.uint8))


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    """Encode an image with Pillow."""
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def encode_opencv(array: np.ndarray, extension: str) -> bytes:
    """Encode an array with OpenCV."""
    return cv2.imencode(extension, array)[1].tobytes()


def random_array(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(7).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


RGB = photo()
GREY = RGB.convert("L")
ALPHA = Image.fromarray(random_array(HEIGHT, WIDTH))
RGBA = RGB.copy()
RGBA.putalpha(ALPHA)
GREY_ALPHA = GREY.copy()
GREY_ALPHA.putalpha(ALPHA)
PALETTE = RGB.quantize(200)
FRAMES = [RGB, RGB.rotate(180)]
ANIMATED = {"save_all": True, "append_images": FRAMES[1:]}

EXACT = {
    "png": encode(RGB, "PNG"),
    "png grey": encode(GREY, "PNG"),
    "png grey alpha": encode(GREY_ALPHA, "PNG"),
    "png alpha": encode(RGBA, "PNG"),
    "png 1-bit": encode(RGB.convert("1"), "PNG"),
    "png palette": encode(PALETTE, "PNG"),
    "png palette of 4 bits": encode(RGB.quantize(16), "PNG"),
    "png palette, one transparent": encode(PALETTE, "PNG", transparency=3),
    "png palette, half transparent": encode(PALETTE, "PNG", transparency=bytes(range(200))),
    "png transparent colour": encode(RGB, "PNG", transparency=(1, 2, 3)),
    "png animated": encode(RGB, "PNG", **ANIMATED),
    "png animated, separate default image": encode(
        RGB, "PNG", save_all=True, default_image=True, append_images=FRAMES[::-1]
    ),
    "webp": encode(RGB, "WEBP"),
    "webp lossless": encode(RGB, "WEBP", lossless=True),
    "webp alpha": encode(RGBA, "WEBP", lossless=True, exact=True),
    "webp animated": encode(RGBA, "WEBP", lossless=True, **ANIMATED),
    "gif": encode(PALETTE, "GIF"),
    "gif transparent": encode(PALETTE, "GIF", transparency=3),
    "gif animated": encode(RGB, "GIF", **ANIMATED),
    "bmp": encode(RGB, "BMP"),
    "bmp grey": encode(GREY, "BMP"),
    "bmp palette": encode(PALETTE, "BMP"),
    "bmp alpha": encode(RGBA, "BMP"),
    "bmp 1-bit": encode(RGB.convert("1"), "BMP"),
    "tiff": encode(RGB, "TIFF"),
    "tiff lzw": encode(RGB, "TIFF", compression="tiff_lzw"),
    "tiff deflate": encode(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "tiff jpeg": encode(RGB, "TIFF", compression="jpeg"),
    "tiff big": encode(RGB, "TIFF", big_tiff=True),
    "tiff alpha": encode(RGBA, "TIFF"),
    "tiff palette": encode(PALETTE, "TIFF"),
    "tiff cmyk": encode(RGB.convert("CMYK"), "TIFF"),
    "tiff fax": encode(RGB.convert("1"), "TIFF", compression="group4"),
}
JPEGS = {
    "jpeg": encode(RGB, "JPEG"),
    "jpeg progressive": encode(RGB, "JPEG", progressive=True),
    "jpeg grey": encode(GREY, "JPEG"),
    "jpeg 4:4:4": encode(RGB, "JPEG", subsampling=0),
    "jpeg with restarts": encode(RGB, "JPEG", restart_marker_rows=1),
    "jpeg cmyk": encode(RGB.convert("CMYK"), "JPEG"),
    "jpeg of two images": encode(RGB, "MPO", **ANIMATED),
}
SINGLE_FRAME = {
    name: data
    for name, data in (EXACT | JPEGS).items()
    if "animated" not in name and "two images" not in name
}


def pixels_of(data: bytes, limits: Limits = Limits()) -> np.ndarray:  # noqa: B008 - frozen
    """Return the decoded pixels at `SAME_SIZE`."""
    decoded = decode(data, [SAME_SIZE], limits)
    if isinstance(decoded, Failure):
        pytest.fail(f"not decoded: {decoded}")
    return decoded.pixels[SAME_SIZE]


def pillow_pixels(data: bytes) -> np.ndarray:
    """Return Pillow's upright RGB pixels."""
    with Image.open(BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def failure_of(data: bytes, limits: Limits = Limits()) -> Failure:  # noqa: B008 - frozen
    """Return the failure of decoding."""
    failure = decode(data, [SAME_SIZE], limits)
    if isinstance(failure, Decoded):
        pytest.fail("decoded, though it should have failed")
    check_failure(failure)
    return failure


def check_failure(failure: Failure) -> None:
    """Check stage, kind and message of a failure."""
    kinds = {"empty", "not_an_image", "unsupported", "too_large", "truncated", "corrupt"}
    assert failure.stage == "decode"
    assert failure.kind in kinds
    assert 0 < len(failure.message) <= 300
    assert failure.message.isascii() and failure.message.isprintable()
    assert " at 0x" not in failure.message


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk with length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
