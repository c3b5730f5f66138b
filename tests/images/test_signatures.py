"""Format detection: encoded files are recognised and complete, truncated ones incomplete."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cvbatch.images.signatures import (
    IMAGE_SUFFIXES,
    SUFFIXES,
    detect_format,
    is_complete,
    suffix_of_format,
)

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))


def encoded(format: str, **options: object) -> bytes:
    file = BytesIO()
    NOISE.save(file, format, **options)
    return file.getvalue()


FILES = {
    "JPEG": encoded("JPEG"),
    "PNG": encoded("PNG"),
    "WebP": encoded("WEBP"),
    "GIF": encoded("GIF"),
    "BMP": encoded("BMP"),
    "TIFF": encoded("TIFF", compression="tiff_lzw"),
    "TIFF, 64-bit": encoded("TIFF", compression="tiff_lzw", big_tiff=True),
    "AVIF": encoded("AVIF"),
    "JPEG 2000": encoded("JPEG2000", no_jp2=True),
}


def test_every_format_has_a_suffix_that_is_found_again() -> None:
    assert all(suffix_of_format(name) in IMAGE_SUFFIXES for name in SUFFIXES)
    assert [suffix_of_format(name) for name in ("JPEG", "JPEG 2000", "JPEG XL", None)] == [
        "jpeg", "jp2", "jxl", "bin",
    ]  # fmt: skip


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff\xd8", b"PK\x03\x04", b"P2P is peer to peer"])
def test_other_bytes_have_no_format(data: bytes) -> None:
    assert detect_format(data) is None


@pytest.mark.parametrize("name", FILES)
def test_encoded_files_are_recognised_and_complete(name: str) -> None:
    format_name = name.partition(",")[0]
    assert detect_format(FILES[name]) == format_name
    assert is_complete(format_name, FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_recognised_and_incomplete(name: str) -> None:
    format_name = name.partition(",")[0]
    for tenth in range(1, 10):
        truncated = FILES[name][: len(FILES[name]) * tenth // 10]
        assert detect_format(truncated) == format_name
        assert not is_complete(format_name, truncated)
    for length in range(16):
        assert not is_complete(format_name, FILES[name][:length])


def test_a_png_with_a_chunk_longer_than_the_file_is_incomplete() -> None:
    data = bytearray(FILES["PNG"])
    start = data.index(b"IDAT") - 4
    data[start] = 0x7F
    assert not is_complete("PNG", bytes(data))
