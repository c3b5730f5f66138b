"""Limits of decoding: claimed sizes, pixels and bytes; arbitrary bytes never raise."""

from __future__ import annotations

import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cvbatch.core.types import Decoded, Failure
from cvbatch.images.decode import Limits, decode
from tests.support.encoded_images import (
    EXACT,
    HEIGHT,
    JPEGS,
    RGB,
    RGBA,
    SAME_SIZE,
    SINGLE_FRAME,
    WIDTH,
    check_failure,
    encode,
    failure_of,
    pixels_of,
    png_chunk,
)

# ---- limits


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def gif_claiming(width: int, height: int) -> bytes:
    data = bytearray(EXACT["gif"])
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_claiming(width: int, height: int) -> bytes:
    data = bytearray(encode(RGBA, "WEBP", exif=b"Exif\0\0"))
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def tiff_claiming(width: int, height: int) -> bytes:
    data = EXACT["tiff"]
    start = data.index(struct.pack("<HHI", 256, 4, 1))
    entry = struct.pack("<HHII", 256, 4, 1, width) + struct.pack("<HHII", 257, 4, 1, height)
    return data[:start] + entry + data[start + 24 :]


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(JPEGS["jpeg"])
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_claiming(width: int, height: int) -> bytes:
    data = bytearray(EXACT["bmp"])
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


CLAIMS = [
    png_claiming, gif_claiming, webp_claiming, tiff_claiming, jpeg_claiming,
    bmp_claiming,
]  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("size", [(60_000, 60_000), (12_000, 10_000)])
def test_decompression_bombs_are_rejected_by_their_header(claim, size: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failure = failure_of(claim(*size))
    growth_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    if claim is webp_claiming and failure.kind == "corrupt":
        assert size == (12_000, 10_000)  # the library compares the sizes of image and canvas
    else:
        assert failure.kind == "too_large"
        assert str(size[0] * size[1]) in failure.message
    assert growth_kib < 30_000


@pytest.mark.parametrize("claim", [png_claiming, webp_claiming, tiff_claiming, bmp_claiming])
def test_headers_that_claim_too_many_pixels_fail(claim) -> None:  # type: ignore[no-untyped-def]
    check_failure(failure_of(claim(WIDTH * 3, HEIGHT * 3)))


def test_a_chunk_claiming_gigabytes_allocates_nothing() -> None:
    data = bytearray(EXACT["png"])
    start = data.index(b"IDAT") - 4
    data[start : start + 4] = b"\x7f\xff\xff\xf0"
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert np.array_equal(pixels_of(bytes(data)), np.asarray(RGB))  # Pillow reads to the end
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 30_000


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_images_over_the_pixel_limit_are_rejected_in_every_format(name: str) -> None:
    failure = failure_of(SINGLE_FRAME[name], Limits(max_pixels=HEIGHT * WIDTH - 1))
    assert failure.kind == "too_large"
    assert f"{WIDTH} x {HEIGHT} = {WIDTH * HEIGHT} pixels" in failure.message


def test_limits_are_inclusive_and_named_in_messages() -> None:
    data = EXACT["png"]
    fits = Limits(max_bytes=len(data), max_pixels=HEIGHT * WIDTH)
    assert isinstance(decode(data, [SAME_SIZE], fits), Decoded)
    for limits, key, value in (
        (Limits(max_bytes=len(data) - 1), "source.max_bytes", len(data)),
        (Limits(max_pixels=HEIGHT * WIDTH - 1), "source.max_pixels", HEIGHT * WIDTH),
    ):
        failure = failure_of(data, limits)
        assert failure.kind == "too_large"
        assert key in failure.message
        assert str(value) in failure.message and str(value - 1) in failure.message


def test_pillows_pixel_limit_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # warns over 10, refuses over 20
    for name in ("jpeg", "jpeg cmyk", "png", "bmp", "gif"):
        assert pixels_of((EXACT | JPEGS)[name]).shape == (HEIGHT, WIDTH, 3)


# ---- arbitrary bytes


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Return the bytes with some flipped, removed or inserted, most of them near an end."""
    result = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        near = min(len(result), 400) if rng.random() < 0.7 else len(result)
        i = int(rng.integers(near))
        i = i if rng.random() < 0.7 else len(result) - 1 - i
        match rng.integers(4):
            case 0:
                result[i] ^= 1 << int(rng.integers(8))
            case 1:
                del result[i : i + int(rng.integers(1, 20))]
            case 2:
                result[i:i] = rng.bytes(int(rng.integers(1, 20)))
            case _:
                result[i : i + 4] = rng.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4])
    return bytes(result)


@pytest.mark.parametrize("name", EXACT | JPEGS)
def test_mutated_files_never_raise(name: str) -> None:
    rng = np.random.default_rng(len(name))
    data = (EXACT | JPEGS)[name]
    for _ in range(40):
        broken = mutated(data, rng)
        result = decode(broken, [SAME_SIZE], Limits(max_pixels=2**20))
        if isinstance(result, Failure):
            check_failure(result)
            assert decode(broken, [SAME_SIZE], Limits(max_pixels=2**20)) == result
        else:
            assert result.pixels[SAME_SIZE].shape == (HEIGHT, WIDTH, 3)


def test_random_bytes_after_a_signature_fail() -> None:
    rng = np.random.default_rng(3)
    for data in (EXACT | JPEGS).values():
        for length in (2, 8, 16, 32):
            check_failure(failure_of(data[:length] + rng.bytes(300)))
