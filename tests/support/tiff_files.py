"""A minimal writer of TIFF: tags and encoded strips or tiles, of any byte order, classic or big."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

_TYPES = {"B": 1, "H": 3, "I": 4, "b": 6, "h": 8, "f": 11, "d": 12, "Q": 16}
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIP_OFFSETS = 256, 257, 258, 259, 262, 273
ORIENTATION, SAMPLES, ROWS, STRIP_BYTES, PLANAR = 274, 277, 278, 279, 284
COLORS, INK_SET, EXTRA, SAMPLE_FORMAT = 320, 332, 338, 339
Tags = dict[int, tuple[str, Sequence[float]]]


def write_tiff(
    tags: Tags, strips: Sequence[bytes], order: str = "<", is_big: bool = False
) -> bytes:
    """Return a TIFF; the offsets and byte counts of the strips are added to the tags."""
    head = b"II" if order == "<" else b"MM"
    start = 16 if is_big else 8
    offsets, body = [], b""
    for strip in strips:
        offsets.append(start + len(body) if strip else 0)
        body += strip + bytes(len(strip) % 2)
    tags = {STRIP_OFFSETS: ("I", offsets), STRIP_BYTES: ("I", [len(s) for s in strips])} | tags
    width = 8 if is_big else 4
    table_start = start + len(body)
    extra_start = table_start + (8 if is_big else 2) + (20 if is_big else 12) * len(tags) + width
    table, extra = struct.pack(order + ("Q" if is_big else "H"), len(tags)), b""
    for tag, (kind, values) in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(content) > width:
            offset = extra_start + len(extra)
            extra += content + bytes(len(content) % 2)
            content = struct.pack(order + ("Q" if is_big else "I"), offset)
        count = struct.pack(order + ("Q" if is_big else "I"), len(values))
        table += struct.pack(order + "HH", tag, _TYPES[kind]) + count + content.ljust(width, b"\0")
    header = struct.pack(
        order + ("HHHQ" if is_big else "HI"), *((43, 8, 0) if is_big else (42,)), table_start
    )
    return head + header + body + table + bytes(width) + extra


def image_tags(height: int, width: int, bits: int, samples: int, photometric: int) -> Tags:
    """Return the tags of one uncompressed strip of chunky samples."""
    return {
        WIDTH: ("I", [width]),
        HEIGHT: ("I", [height]),
        BITS: ("H", [bits] * samples),
        COMPRESSION: ("H", [1]),
        PHOTOMETRIC: ("H", [photometric]),
        SAMPLES: ("H", [samples]),
        ROWS: ("I", [height]),
    }


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Return rows of samples packed to `bits` each, most significant first; rows end on a byte."""
    rows = values.reshape(len(values), -1).astype(np.uint64)
    places = np.arange(bits - 1, -1, -1, dtype=np.uint64)
    expanded = (rows[:, :, None] >> places & np.uint64(1)).astype(np.uint8)
    return np.packbits(expanded.reshape(len(rows), -1), axis=1).tobytes()
