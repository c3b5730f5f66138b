"""Image formats told by their first bytes, and whether a file reaches the end its format promises.

Only the bytes are looked at; no picture is made, so that any file may be asked about.
"""

from __future__ import annotations

import re
import zlib
from typing import Literal

IMAGE_SUFFIXES: tuple[str, ...] = (
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "png",
    "webp",
    "bmp",
    "tif",
    "tiff",
    "gif",
)
_SIGNATURES = tuple(
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        (rb"\xff\xd8\xff", "JPEG"),
        (rb"\x89PNG\r\n\x1a\n", "PNG"),
        (rb"RIFF.{4}WEBP", "WebP"),
        (rb"GIF8[79]a", "GIF"),
        (rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
        (rb"II[*+]\0|MM\0[*+]", "TIFF"),
        # known by sight only, to call them by name when they are refused
        (rb".{4}ftypavi[fs]", "AVIF"),
        (rb".{4}ftyp(hei|hev)|.{4}ftyp(mif1|msf1)", "HEIF"),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
        (rb"\0\0\0\x0cJXL ", "JPEG XL"),
        (rb"8BPS", "Photoshop"),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
        (rb"%PDF-", "PDF"),
        (rb"\0\0[\1\2]\0.\0", "Windows icon"),
        (rb"P[1-6]\s+[0-9#]", "Netpbm"),
        (rb"qoif", "QOI"),
        (rb"DDS ", "DirectDraw"),
        (rb"\x76\x2f\x31\x01", "OpenEXR"),
        (rb"#\?RADIANCE", "Radiance"),
        (rb"\s*(<\?xml[^>]*>\s*)?(<!--.{0,500}?-->\s*)?<svg", "SVG"),
    )
)

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the header's kind of colour
_ADAM7 = (  # of an interlaced PNG's passes: first column and row, and the steps to the next
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # fmt: skip
_PIECE_BYTES = 1 << 20
# not those inside a scan: a stuffed byte, a filling one, a restart
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd8\x01]", re.DOTALL)


def detect_format(data: bytes) -> str | None:
    """Return the name of the format that the bytes begin like, or None."""
    return next((name for pattern, name in _SIGNATURES if pattern.match(data)), None)


def is_complete(name: str, data: bytes) -> bool:
    """Return whether a file of the format `name` reaches its end, as far as its structure shows.

    For JPEG that is the marker at the very end; elsewhere bytes that follow do not matter. For
    TIFF it is the table of tags, often the last thing in it.
    """
    match name:
        case "JPEG":
            return data.endswith(b"\xff\xd9")
        case "PNG":
            return _chunks_reach_the_last(data)
        case "WebP":
            return int.from_bytes(data[4:8], "little") + 8 <= len(data)
        case "GIF":
            return data.rstrip(b"\0").endswith(b";")
        case "BMP":
            return len(data) >= max(18, int.from_bytes(data[2:6], "little"))
        case _:
            return _tags_are_inside(data)


def count_jpeg_scans(data: bytes) -> int:
    """Return how many scans a JPEG has before its end: each goes over the whole picture."""
    count, start = 0, 2
    while (marker := _JPEG_MARKER.search(data, start)) and marker[0] != b"\xff\xd9":
        count += marker[0] == b"\xff\xda"
        start = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return count


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height a WebP's header claims, or None where it has no such header."""
    head = data[12:30].ljust(18, b"\0")
    match head[:4]:
        case b"VP8X":
            return 1 + int.from_bytes(head[12:15], "little"), 1 + int.from_bytes(
                head[15:18], "little"
            )
        case b"VP8L":
            bits = int.from_bytes(head[9:13], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = (int.from_bytes(head[i : i + 2], "little") for i in (14, 16))
            return width & 0x3FFF, height & 0x3FFF
    return None


def _chunks_reach_the_last(data: bytes) -> bool:
    """Return whether the lengths of a PNG's chunks lead from one to the next up to IEND."""
    start = 8
    while start + 12 <= len(data):
        if data[start + 4 : start + 8] == b"IEND":
            return True
        start += 12 + int.from_bytes(data[start : start + 4])
    return False


def png_has_all_rows(data: bytes) -> bool:
    """Return whether a PNG's packed pixels come to as many bytes as its header claims."""
    left = _png_bytes(data[16:29])
    packed, start = zlib.decompressobj(), 8
    while start + 8 <= len(data) and left > 0 and not packed.eof:
        length = int.from_bytes(data[start : start + 4])
        if data[start + 4 : start + 8] == b"IDAT":
            piece = data[start + 8 : start + 8 + length]
            while piece and left > 0:
                try:
                    left -= len(packed.decompress(piece, _PIECE_BYTES))
                except zlib.error:
                    return False
                piece = packed.unconsumed_tail
        start += 12 + length
    return left <= 0


def _png_bytes(header: bytes) -> int:
    """Return the bytes of a PNG's pixels unpacked: each row of each pass has one more."""
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    bits = header[8] * _PNG_CHANNELS.get(header[9], 1)
    total = 0
    for left, top, across, down in _ADAM7 if header[12] else ((0, 0, 1, 1),):
        columns, rows = -(-max(0, width - left) // across), -(-max(0, height - top) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns else 0
    return total


def _tags_are_inside(data: bytes) -> bool:
    """Return whether a TIFF's first table of tags lies inside the file."""
    start, count, entry_bytes = _tag_table(data)
    return start + count * entry_bytes <= len(data)


def count_tiff_tags(data: bytes) -> int:
    """Return how many tags a TIFF's first table claims to have."""
    return _tag_table(data)[1]


def _tag_table(data: bytes) -> tuple[int, int, int]:
    """Return where a TIFF's first tags lie, how many there are, and the bytes of each."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    is_big = b"+" in data[2:4]
    offset, count_bytes, entry_bytes = (data[8:16], 8, 20) if is_big else (data[4:8], 2, 12)
    start = int.from_bytes(offset, order)
    count = int.from_bytes(data[start : start + count_bytes], order)
    return start + count_bytes, count, entry_bytes
