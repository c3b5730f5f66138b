"""Decoded pixels equal Pillow's upright RGB; damaged files are failures, never exceptions."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from cvbatch.core.types import Decoded, Failure, InputKey
from cvbatch.images.decode import Limits, decode
from tests.support.encoded_images import (
    EXACT,
    HEIGHT,
    JPEGS,
    RGB,
    SAME_SIZE,
    SINGLE_FRAME,
    WIDTH,
    check_failure,
    encode,
    encode_opencv,
    failure_of,
    photo,
    pillow_pixels,
    pixels_of,
    png_chunk,
    random_array,
)

# ---- files that cannot be decoded


def test_no_bytes() -> None:
    assert failure_of(b"") == Failure("decode", "empty", "the file has no bytes")


@pytest.mark.parametrize(
    "data", [b"\xff", b"hello, world", b"<html></html>", b"BMW is a car maker", bytes(1000)]
)
def test_bytes_that_are_not_an_image(data: bytes) -> None:
    assert failure_of(data).kind == "not_an_image"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encode(RGB, "PPM"), "Netpbm"),
        (encode(RGB, "ICO", sizes=[(16, 16)]), "icon"),
        (encode(RGB, "EPS"), "PostScript"),
        (encode(RGB, "PDF"), "PDF"),
        (b"8BPS\0\1" + bytes(50), "Photoshop"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "32-bit floats"),
        (encode(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"), "32-bit signed"),
        (encode_opencv(np.ones((4, 4, 3), np.float32), ".tiff"), "source.bit_depth"),
        (
            encode(RGB, "TIFF").replace(
                struct.pack("<HHIHH", 259, 3, 1, 1, 0), struct.pack("<HHIHH", 259, 3, 1, 34999, 0)
            ),
            "compression 34999",
        ),
    ],
)
def test_unsupported_formats_are_named(data: bytes, name: str) -> None:
    failure = failure_of(data)
    assert failure.kind == "unsupported"
    assert name in failure.message


# ---- pixels


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_pixels_equal_pillow(name: str) -> None:
    assert np.array_equal(pixels_of(EXACT[name]), pillow_pixels(EXACT[name]))


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_pixels_equal_pillow_within_rounding(name: str) -> None:
    difference = np.abs(pixels_of(JPEGS[name]).astype(int) - pillow_pixels(JPEGS[name]))
    assert difference.max() <= 2


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_values_keep_their_high_byte(extension: str, channels: int) -> None:
    array = random_array(HEIGHT, WIDTH, channels, dtype=np.uint16)
    high = (array >> 8).astype(np.uint8)
    expected = np.repeat(high, 3, axis=2) if channels == 1 else high[..., 2::-1]
    assert np.array_equal(pixels_of(encode_opencv(array, extension)), expected)


def test_16_bit_images_of_pillow_are_decoded() -> None:
    array = random_array(HEIGHT, WIDTH, dtype=np.uint16)
    for data in (encode(Image.fromarray(array), "TIFF"), encode(Image.fromarray(array), "PNG")):
        assert np.array_equal(pixels_of(data)[..., 1], array >> 8)


# ---- orientation

INVERSE = {  # orientation → transform from the upright image to the stored one
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def oriented(orientation: int, format: str, **options: object) -> bytes:
    method = INVERSE[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    stored = RGB if method is None else RGB.transpose(method)
    return encode(stored, format, exif=exif, **options)


@pytest.mark.parametrize("orientation", INVERSE)
@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]
)
def test_every_orientation_becomes_upright(
    orientation: int, format: str, options: dict[str, object]
) -> None:
    data = oriented(orientation, format, **options)
    decoded = decode(data, [SAME_SIZE], Limits())
    assert isinstance(decoded, Decoded)
    assert (decoded.height, decoded.width) == (HEIGHT, WIDTH)
    assert np.array_equal(decoded.pixels[SAME_SIZE], np.asarray(RGB))


@pytest.mark.parametrize("orientation", INVERSE)
@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
def test_orientation_of_compressed_tiff(orientation: int, compression: str) -> None:
    data = oriented(orientation, "TIFF", compression=compression)
    assert np.array_equal(pixels_of(data), pillow_pixels(data))


@pytest.mark.parametrize("orientation", INVERSE)
def test_every_orientation_of_a_reduced_jpeg_becomes_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    upright = photo(480, 640)
    method = INVERSE[orientation]
    stored = upright if method is None else upright.transpose(method)
    key = InputKey(60, 80, "stretch")
    decoded = decode(encode(stored, "JPEG", quality=95, exif=exif), [key], Limits())
    assert isinstance(decoded, Decoded)
    assert (decoded.height, decoded.width) == (480, 640)
    expected = cv2.resize(np.asarray(upright), (80, 60), interpolation=cv2.INTER_AREA)
    assert np.abs(decoded.pixels[key].astype(int) - expected).mean() < 2


def test_orientation_stored_after_the_pixels_of_a_png() -> None:
    data = encode(RGB, "PNG")
    exif = Image.Exif()
    exif[274] = 3
    end = data.rindex(b"IEND") - 4
    data = data[:end] + png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[end:]
    assert np.array_equal(pixels_of(data), pillow_pixels(data))
    assert np.array_equal(pixels_of(data), np.asarray(RGB)[::-1, ::-1])


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\3\0\0\0\1\0\6\0\0" * 3,
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0",  # orientation 99
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\2six\0\0\0\0\0",  # a string
    ],
)
def test_malformed_exif_is_ignored(exif: bytes) -> None:
    for format in ("JPEG", "PNG", "WEBP"):
        assert pixels_of(encode(RGB, format, exif=exif)).shape == (HEIGHT, WIDTH, 3)


# ---- reduced JPEGs


@pytest.mark.parametrize("mode", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("size_hw", [(37, 53), (100, 100), (150, 200), (301, 401)])
def test_a_reduced_jpeg_equals_the_full_one_approximately(
    mode: str, size_hw: tuple[int, int]
) -> None:
    data = encode(photo(603, 805), "JPEG", quality=95)
    key = InputKey(*size_hw, mode)  # type: ignore[arg-type]
    reduced = decode(data, [key], Limits())
    full = decode(data, [key], Limits(reduced_jpeg=False))
    assert isinstance(reduced, Decoded) and isinstance(full, Decoded)
    assert (reduced.height, reduced.width) == (full.height, full.width) == (603, 805)
    difference = np.abs(reduced.pixels[key].astype(int) - full.pixels[key])
    assert difference.mean() < 3


def test_a_jpeg_is_not_reduced_below_the_largest_input() -> None:
    data = encode(photo(480, 640), "JPEG")
    small, full = InputKey(40, 40, "stretch"), InputKey(480, 640, "stretch")
    decoded = decode(data, [small, full], Limits())
    assert isinstance(decoded, Decoded)
    assert np.abs(decoded.pixels[full].astype(int) - pillow_pixels(data)).max() <= 2


# ---- truncated and damaged


@pytest.mark.parametrize("name", SINGLE_FRAME)
def test_a_truncated_file_fails_or_decodes_completely(name: str) -> None:
    data = SINGLE_FRAME[name]
    intact = pixels_of(data)
    for tenth in range(1, 10):
        result = decode(data[: len(data) * tenth // 10], [SAME_SIZE], Limits())
        if isinstance(result, Failure):
            check_failure(result)
            assert result.kind in ("truncated", "corrupt")
        else:
            assert np.array_equal(result.pixels[SAME_SIZE], intact)


@pytest.mark.parametrize(
    "name", ["jpeg", "jpeg progressive", "png", "webp", "webp lossless", "gif", "bmp", "tiff"]
)
def test_half_a_file_is_reported_as_truncated(name: str) -> None:
    assert failure_of(SINGLE_FRAME[name][: len(SINGLE_FRAME[name]) // 2]).kind == "truncated"


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "jpeg grey", "jpeg with restarts"])
def test_every_truncation_of_a_jpeg_is_detected_even_with_zero_padding(name: str) -> None:
    data = JPEGS[name]
    for length in range(3, len(data) - 2, 17):
        assert failure_of(data[:length]).kind == "truncated"
        assert failure_of(data[:length].ljust(2 * len(data), b"\0")).kind == "truncated"


@pytest.mark.parametrize("name", [name for name in SINGLE_FRAME if not name.startswith("tiff")])
def test_trailing_bytes_are_ignored(name: str) -> None:
    data = SINGLE_FRAME[name]
    assert np.array_equal(pixels_of(data + b"and a film of two seconds" * 9), pixels_of(data))


def test_a_damaged_png_is_reported_as_corrupt() -> None:
    data = bytearray(EXACT["png"])
    data[len(data) // 2] ^= 0x10
    assert failure_of(bytes(data)).kind == "corrupt"
