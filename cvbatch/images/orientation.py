"""What labels must know of pictures: their size, how they are turned, and masks in files."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cvbatch.core.types import Failure
from cvbatch.images.decode import TURNS, Limits, read_header

LIMITS = Limits()
SIDEWAYS = (5, 6, 7, 8)
# EXIF orientation → x and y change places, then x is flipped, y is flipped
_TURNS_OF_BOXES = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}

Size = tuple[int, int]  # height, width


class Picture(NamedTuple):
    """What an image's header says."""

    stored_hw: Size
    orientation: int  # of EXIF, 1..8

    @property
    def upright_hw(self) -> Size:
        """Return the size once turned."""
        height, width = self.stored_hw
        return (width, height) if self.orientation in SIDEWAYS else (height, width)


def read_picture(data: bytes) -> Picture | Failure:
    """Return the size of an image and its orientation, from its header alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        header = read_header(data, LIMITS)
    if isinstance(header, Failure):
        return header
    return Picture((header.height, header.width), header.orientation)


@dataclass(frozen=True)
class Frame:
    """The pixels that labels refer to: the image's as stored, or once upright."""

    picture: Picture
    is_upright: bool

    @property
    def hw(self) -> Size:
        """Return the size that labels take the image to have."""
        return self.picture.upright_hw if self.is_upright else self.picture.stored_hw

    def turn_boxes(
        self,
        boxes: np.ndarray,  # (M, 4) half-open xyxy
    ) -> np.ndarray:  # (M, 4)
        """Return boxes in upright pixels."""
        if self.is_upright or self.picture.orientation == 1:
            return boxes
        height, width = self.picture.upright_hw
        is_transposed, flips_x, flips_y = _TURNS_OF_BOXES[self.picture.orientation]
        left, top, right, bottom = boxes[:, [1, 0, 3, 2]].T if is_transposed else boxes.T
        if flips_x:
            left, right = width - right, width - left
        if flips_y:
            top, bottom = height - bottom, height - top
        return np.stack([left, top, right, bottom], axis=1)

    def turn_mask(
        self,
        mask: np.ndarray,  # (h, w) uint8
    ) -> np.ndarray | None:  # (H, W) uint8
        """Return a mask upright; None where it has another size."""
        turn = None if self.is_upright else TURNS.get(self.picture.orientation)
        if mask.shape != self.hw:
            return None
        return mask if turn is None else turn(mask)
