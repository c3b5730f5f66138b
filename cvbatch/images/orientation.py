"""What labels must know of pictures: their size, how they are turned, and masks in files."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cvbatch.core.types import Failure
from cvbatch.images.decode import UPRIGHT_TRANSFORMS, Limits, read_header

DEFAULT_LIMITS = Limits()
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


class ImageInfo(NamedTuple):
    """What an image's header says."""

    stored_hw: Size
    orientation: int  # of EXIF, 1..8

    @property
    def upright_hw(self) -> Size:
        """Return the size once turned."""
        height, width = self.stored_hw
        return (width, height) if self.orientation in SIDEWAYS else (height, width)


def read_image_info(data: bytes) -> ImageInfo | Failure:
    """Return the size of an image and its orientation, from its header alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        header = read_header(data, DEFAULT_LIMITS)
    if isinstance(header, Failure):
        return header
    return ImageInfo((header.height, header.width), header.orientation)


@dataclass(frozen=True)
class LabelCoordinates:
    """The pixels that labels refer to: the image's as stored, or once upright."""

    image_info: ImageInfo
    is_upright: bool

    @property
    def size_hw(self) -> Size:
        """Return the size that labels take the image to have."""
        return self.image_info.upright_hw if self.is_upright else self.image_info.stored_hw

    def boxes_to_upright(
        self,
        boxes: np.ndarray,  # (M, 4) half-open xyxy
    ) -> np.ndarray:  # (M, 4)
        """Return boxes in upright pixels."""
        if self.is_upright or self.image_info.orientation == 1:
            return boxes
        height, width = self.image_info.upright_hw
        is_transposed, flips_x, flips_y = _TURNS_OF_BOXES[self.image_info.orientation]
        left, top, right, bottom = boxes[:, [1, 0, 3, 2]].T if is_transposed else boxes.T
        if flips_x:
            left, right = width - right, width - left
        if flips_y:
            top, bottom = height - bottom, height - top
        return np.stack([left, top, right, bottom], axis=1)

    def mask_to_upright(
        self,
        mask: np.ndarray,  # (h, w) uint8
    ) -> np.ndarray | None:  # (H, W) uint8
        """Return a mask upright; None where it has another size."""
        turn = None if self.is_upright else UPRIGHT_TRANSFORMS.get(self.image_info.orientation)
        if mask.shape != self.size_hw:
            return None
        return mask if turn is None else turn(mask)
