"""Format detection: encoded files are recognised and complete, truncated ones incomplete."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cvbatch.images.signatures import detect_format, is_complete

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
}


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
