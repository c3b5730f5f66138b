"""File signatures (magic bytes) and completeness checks of image files.

No pixels are decoded, so that untrusted files can be checked safely.
"""

from __future__ import annotations

import re
import zlib
from typing import Literal

from cvbatch.images.iso_boxes import boxes_are_complete, brands

# Format → suffixes of its files
SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png",),
    "WebP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "HEIF": ("heic", "heif", "hif"),
    "AVIF": ("avif",),
    "JPEG 2000": ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
    "JPEG XL": ("jxl",),
}
IMAGE_SUFFIXES: tuple[str, ...] = tuple(
    suffix for suffixes in SUFFIXES.values() for suffix in suffixes
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
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
        (rb"\0\0\0\x0cJXL |\xff\x0a", "JPEG XL"),
        # not decoded; recognized only so that the failure can name the format
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

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type in the header
_ADAM7 = (  # passes of an interlaced PNG: first column and row, then the steps to the next ones
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # fmt: skip
# Tags of a TIFF without which its pixels would be decoded wrongly (TIFF 6.0, section 8)
_PIXEL_TAGS = frozenset(
    (
        256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325,
        332, 338, 339, 347, 529, 530, 532,
    )
)  # fmt: skip
_TIFF_TYPE_BYTES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
    16: 8, 17: 8, 18: 8,
}  # fmt: skip
_BIG_ENTRY_BYTES = 20  # of BigTIFF
_INFLATE_BYTES = 1 << 20  # decompressed at once
# except those inside a scan: stuffed bytes, fill bytes, restarts
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd8\x01]", re.DOTALL)


# Brands of the ISO base media file format; the first one that a file names decides.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm"), "HEIF"),
}
_ANY_CODEC_BRANDS = (b"mif1", b"msf1", b"mif2", b"mif3")  # HEIF of any codec


def detect_format(data: bytes) -> str | None:
    """Return the name of the format whose signature the file has; None if it has none."""
    if data[4:8] == b"ftyp":
        named = brands(data)
        by_brand = next((_BRANDS[brand] for brand in named if brand in _BRANDS), None)
        return by_brand or ("HEIF" if any(brand in _ANY_CODEC_BRANDS for brand in named) else None)
    return next((name for pattern, name in _SIGNATURES if pattern.match(data)), None)


def suffix_of_format(name: str | None) -> str:
    """Return the suffix of a new file of a format, without its dot; `bin` without a format."""
    if name is None or name.lower() in IMAGE_SUFFIXES:
        return (name or "bin").lower()
    return SUFFIXES[name][0] if name in SUFFIXES else name.lower()


def is_complete(name: str, data: bytes) -> bool:
    """Return whether a file has the end of its format, as far as its structure shows.

    A JPEG must end with its end marker; in other formats bytes after the end are allowed. A TIFF
    must contain its first table of tags, which is often at the end of the file.

    Args:
        name: a format that is read.
        data: the file.
    """
    match name:
        case "JPEG":
            return data.endswith(b"\xff\xd9")
        case "PNG":
            return _has_png_end(data)
        case "WebP":
            return int.from_bytes(data[4:8], "little") + 8 <= len(data)
        case "GIF":
            return data.rstrip(b"\0").endswith(b";")
        case "AVIF" | "HEIF":
            return boxes_are_complete(data)
        case "JPEG 2000":
            return data.rstrip(b"\0").endswith(b"\xff\xd9")
        case "JPEG XL":  # whose decoder reports that bytes are missing
            return True
        case "BMP":
            return len(data) >= max(18, int.from_bytes(data[2:6], "little"))
        case _:
            return _contains_tiff_tags(data)


def count_jpeg_scans(data: bytes) -> int:
    """Return the number of scans of a JPEG; each may refine all pixels."""
    count, start = 0, 2
    while (marker := _JPEG_MARKER.search(data, start)) and marker[0] != b"\xff\xd9":
        count += marker[0] == b"\xff\xda"
        start = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return count


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) that a WebP header declares; None if there is no known header."""
    header = data[12:30].ljust(18, b"\0")
    match header[:4]:
        case b"VP8X":
            return 1 + int.from_bytes(header[12:15], "little"), 1 + int.from_bytes(
                header[15:18], "little"
            )
        case b"VP8L":
            bits = int.from_bytes(header[9:13], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = (int.from_bytes(header[i : i + 2], "little") for i in (14, 16))
            return width & 0x3FFF, height & 0x3FFF
    return None


def jpeg2000_start(data: bytes) -> int:
    """Return where the codestream of a JPEG 2000 begins, with or without boxes around it."""
    return max(0, data.find(b"\xff\x4f\xff\x51"))


def jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) of a JPEG 2000; None if it has no codestream."""
    size = data[jpeg2000_start(data) :][:24]
    if len(size) < 24 or not size.startswith(b"\xff\x4f"):
        return None
    right, bottom, left, top = (int.from_bytes(size[i : i + 4]) for i in (8, 12, 16, 20))
    return right - left, bottom - top


def _has_png_end(data: bytes) -> bool:
    """Return whether following the lengths of a PNG's chunks reaches IEND."""
    start = 8
    while start + 12 <= len(data):
        if data[start + 4 : start + 8] == b"IEND":
            return True
        start += 12 + int.from_bytes(data[start : start + 4])
    return False


def png_has_all_rows(data: bytes) -> bool:
    """Return whether the pixels of a PNG decompress to the bytes that its header declares."""
    missing = _png_bytes(data[16:29])
    inflater, start = zlib.decompressobj(), 8
    while start + 8 <= len(data) and missing > 0 and not inflater.eof:
        length = int.from_bytes(data[start : start + 4])
        if data[start + 4 : start + 8] == b"IDAT":
            compressed = data[start + 8 : start + 8 + length]
            while compressed and missing > 0:
                try:
                    missing -= len(inflater.decompress(compressed, _INFLATE_BYTES))
                except zlib.error:
                    return False
                compressed = inflater.unconsumed_tail
        start += 12 + length
    return missing <= 0


def _png_bytes(header: bytes) -> int:
    """Return the bytes of a PNG's decompressed pixels; each row of each pass has a filter byte."""
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    bits = header[8] * _PNG_CHANNELS.get(header[9], 1)
    total = 0
    for left, top, step_x, step_y in _ADAM7 if header[12] else ((0, 0, 1, 1),):
        columns, rows = -(-max(0, width - left) // step_x), -(-max(0, height - top) // step_y)
        total += rows * (1 + -(-columns * bits // 8)) if columns else 0
    return total


def _contains_tiff_tags(data: bytes) -> bool:
    """Return whether a TIFF contains its first table of tags, and the values that pixels need."""
    start, count, entry_bytes = _tag_table(data)
    end = start + count * entry_bytes
    if end > len(data):
        return False
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    width = 8 if entry_bytes == _BIG_ENTRY_BYTES else 4  # of a count, of a value or its offset
    for entry in range(start, end, entry_bytes):
        tag, kind = (int.from_bytes(data[i : i + 2], order) for i in (entry, entry + 2))
        number = int.from_bytes(data[entry + 4 : entry + 4 + width], order)
        offset = int.from_bytes(data[entry + 4 + width : entry + 4 + 2 * width], order)
        size = number * _TIFF_TYPE_BYTES.get(kind, 0)
        if tag in _PIXEL_TAGS and size > width and offset + size > len(data):
            return False
    return True


def count_tiff_tags(data: bytes) -> int:
    """Return the number of tags that the first table of a TIFF declares."""
    return _tag_table(data)[1]


def _tag_table(data: bytes) -> tuple[int, int, int]:
    """Return the position of the first tag of a TIFF, the number of tags and the bytes of each."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    is_big = b"+" in data[2:4]
    offset, count_bytes, entry_bytes = (
        (data[8:16], 8, _BIG_ENTRY_BYTES) if is_big else (data[4:8], 2, 12)
    )
    start = int.from_bytes(offset, order)
    count = int.from_bytes(data[start : start + count_bytes], order)
    return start + count_bytes, count, entry_bytes
