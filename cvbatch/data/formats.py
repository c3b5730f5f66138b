"""Image formats told by their first bytes, and whether a file reaches the end its format promises.

Only the bytes are looked at; nothing is decoded, so that any file may be asked about.
"""

from __future__ import annotations

import re
from typing import Literal

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


def format_of(data: bytes) -> str | None:
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


def _chunks_reach_the_last(data: bytes) -> bool:
    """Return whether the lengths of a PNG's chunks lead from one to the next up to IEND."""
    start = 8
    while start + 12 <= len(data):
        if data[start + 4 : start + 8] == b"IEND":
            return True
        start += 12 + int.from_bytes(data[start : start + 4])
    return False


def _tags_are_inside(data: bytes) -> bool:
    """Return whether a TIFF's first table of tags lies inside the file."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    is_big = b"+" in data[2:4]
    offset, count_bytes, entry_bytes = (data[8:16], 8, 20) if is_big else (data[4:8], 2, 12)
    start = int.from_bytes(offset, order)
    num_tags = int.from_bytes(data[start : start + count_bytes], order)
    return start + count_bytes + num_tags * entry_bytes <= len(data)
