"""Boxes of the ISO base media file format, which HEIF, AVIF, JPEG 2000 and JPEG XL share.

Source: ISO/IEC 14496-12, section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_MAX_BOXES = 4096


class Box(NamedTuple):
    """A box: its type, and where its content begins and ends in the file."""

    type: bytes
    start: int
    end: int


def iterate_boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """Yield consecutive boxes; the last one may declare an end after that of the file."""
    end = len(data) if end is None else end
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        size, content = int.from_bytes(data[start : start + 4]), start + 8
        if size == 1:  # a size of 64 bits follows
            size, content = int.from_bytes(data[start + 8 : start + 16]), start + 16
        box_end = max(end, len(data)) if size == 0 else start + size  # 0: to the end of the file
        if box_end < content:
            return
        yield Box(data[start + 4 : start + 8], content, box_end)
        start = box_end


def boxes_are_complete(data: bytes) -> bool:
    """Return whether the file contains all of its boxes."""
    last = 0
    for box in iterate_boxes(data):
        last = box.end
    return 0 < last <= len(data)


def brands(data: bytes) -> tuple[bytes, ...]:
    """Return the major brand of a file and the brands it is compatible with."""
    first = next(iterate_boxes(data), None)
    if first is None or first.type != b"ftyp":
        return ()
    content = data[first.start : min(first.end, first.start + 4 * 64)]
    return (content[:4], *(content[i : i + 4] for i in range(8, len(content) - 3, 4)))
