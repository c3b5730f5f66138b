"""Reader of an image format: opens its header, decodes its samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cvbatch.images.options import Limits
from cvbatch.images.samples import Samples

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


@dataclass(frozen=True)
class Header:
    """Contents of an image's header; width and height are those of the stored pixels.

    Attributes:
        format: name of the format.
        data: the file, without padding after its end.
        image: the opened file, whose type is that of the format's reader.
        width: in pixels.
        height: in pixels.
        orientation: of EXIF, 1..8.
        profile: the ICC profile.
    """

    format: str
    data: bytes
    image: Any
    width: int
    height: int
    orientation: int = 1
    profile: bytes | None = None

    @property
    def upright_hw(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        if self.orientation in SIDEWAYS:
            return self.width, self.height
        return self.height, self.width


@dataclass(frozen=True)
class Reader:
    """Functions that read one format. They raise `READER_ERRORS` or `ImageError`.

    Attributes:
        open: header of a file, compared with the limits before memory is taken for pixels.
        read: samples of the stored image. A JPEG may be read at 1/n of its size.
    """

    open: Callable[[bytes, Limits], Header]
    read: Callable[[Header, Limits, int], Samples]


def orientation_or_upright(value: object) -> int:
    """Return an EXIF orientation, 1 if it is absent or unknown."""
    return value if isinstance(value, int) and value in range(2, 9) else 1
