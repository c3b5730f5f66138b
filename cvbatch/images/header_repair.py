"""Versions of a file without what makes Pillow refuse its header, though its pixels are intact.

Other readers ignore a malformed JFIF segment or text chunk, and decode JPEGs of more than 8 bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Chunks of a PNG that change its pixels, its orientation or its colour
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf", b"gAMA", b"cHRM", b"sRGB")
_PNG_START = 8
_JPEG_FRAME = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7]")  # SOF, JPEG-LS
JPEG_LS, LOSSLESS_JPEG, _BASELINE = 0xF7, 0xC3, 0xC0
_APP0 = 0xE0
_SCAN = 0xDA


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, start and end of each segment of a JPEG before its first scan."""
    start = 2
    while start + 4 <= len(data) and data[start] == 0xFF:
        marker = data[start + 1]
        if marker == 0xFF:  # a fill byte
            start += 1
            continue
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        yield marker, start, end
        if marker == _SCAN:
            return
        start = end


def jpeg_frame(data: bytes) -> tuple[int, int, int]:
    """Return the marker of a JPEG's frame, its bits per sample, and the offset of these bits."""
    for marker, start, _ in jpeg_segments(data):
        if _JPEG_FRAME.match(data, start):
            return marker, data[start + 4] if start + 4 < len(data) else 8, start + 4
    return _BASELINE, 8, 0


def jpeg_has_end(data: bytes) -> bool:
    """Return whether a JPEG has its end marker, which no encoded pixels contain."""
    starts = [end for marker, _, end in jpeg_segments(data) if marker == _SCAN]
    return bool(starts) and data.find(b"\xff\xd9", starts[0]) >= 0


def jpeg_for_pillow(data: bytes) -> bytes:
    """Return a JPEG whose header Pillow reads: without JFIF segments, declared to have 8 bits."""
    _, _, offset = jpeg_frame(data)
    if offset:  # the frame of a baseline JPEG, whose size and components are at the same places
        length = data[offset - 2 : offset]
        data = data[: offset - 4] + b"\xff\xc0" + length + b"\x08" + data[offset + 1 :]
    parts, position = [], 0
    for marker, start, end in jpeg_segments(data):
        if marker == _APP0:
            parts.append(data[position:start])
            position = end
    return b"".join(parts) + data[position:]


def png_for_pillow(data: bytes) -> bytes:
    """Return a PNG without the chunks that change neither its pixels nor their meaning."""
    parts, start = [data[:_PNG_START]], _PNG_START
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])
        if data[start + 4 : start + 8] in _PNG_CHUNKS:
            parts.append(data[start:end])
        start = end
    return b"".join(parts)
