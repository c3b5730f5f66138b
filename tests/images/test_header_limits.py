"""Values in image headers are compared with the limits, which are inclusive."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cvbatch.core.types import Failure
from cvbatch.images.headers import Header, Limits, read_header
from cvbatch.images.signatures import count_tiff_tags
from tests.security.images import with_tags

HEIGHT, WIDTH = 24, 40
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def encoded(format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format_, **options)
    return buffer.getvalue()


def kind_of(data: bytes, limits: Limits | None = None) -> str:
    header = read_header(data, limits or Limits())
    return header.kind if isinstance(header, Failure) else "ok"


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"])
def test_limits_of_bytes_and_pixels_are_inclusive(format_: str) -> None:
    data = encoded(format_)
    assert kind_of(data, Limits(max_bytes=len(data), max_pixels=HEIGHT * WIDTH)) == "ok"
    assert kind_of(data, Limits(max_bytes=len(data) - 1)) == "too_large"
    assert kind_of(data, Limits(max_pixels=HEIGHT * WIDTH - 1)) == "too_large"


def test_the_upright_size_follows_the_orientation() -> None:
    exif = Image.Exif()
    exif[274] = 6
    header = read_header(encoded("JPEG", exif=exif.tobytes()), Limits())
    assert isinstance(header, Header)
    assert (header.width, header.height) == (WIDTH, HEIGHT)
    assert header.upright_hw == (WIDTH, HEIGHT)


def jpeg_with_scans(count: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated until it has `count` scans."""
    data = encoded("JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + data[-2:]


def test_a_jpeg_may_have_100_scans() -> None:
    assert kind_of(jpeg_with_scans(100)) == "ok"
    assert kind_of(jpeg_with_scans(101)) == "too_large"


@pytest.mark.parametrize(("count", "is_read"), [(4096, True), (4097, False)])
def test_a_tiff_may_have_4096_tags(count: int, is_read: bool) -> None:
    data = encoded("TIFF")
    num_tags = count_tiff_tags(data)
    padded = with_tags(data, dict.fromkeys(range(40_000, 40_000 + count - num_tags), 1))
    assert count_tiff_tags(padded) == count
    assert kind_of(padded) == ("ok" if is_read else "corrupt")


@pytest.mark.parametrize(("side", "kind"), [(64, "ok"), (65, "too_large")])
def test_the_tiles_of_a_tiff_have_the_limit_of_an_image(side: int, kind: str) -> None:
    data = with_tags(encoded("TIFF"), {322: side, 323: 64})
    assert kind_of(data, Limits(max_pixels=64 * 64)) == kind


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_is_rejected_by_the_size_in_its_first_chunk(lossless: bool) -> None:
    data = encoded("WebP", lossless=lossless)
    assert kind_of(data, Limits(max_pixels=HEIGHT * WIDTH)) == "ok"
    assert kind_of(data, Limits(max_pixels=HEIGHT * WIDTH - 1)) == "too_large"
