"""EXIF orientation for the sizes, boxes and masks of labels.

Labels of a rotated image refer to its pixels as stored or to the upright image; results always
refer to the upright image.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cvbatch.core.types import Failure
from cvbatch.images.decode import UPRIGHT_TRANSFORMS, Limits, read_header
from cvbatch.images.headers import SIDEWAYS

DEFAULT_LIMITS = Limits()
# EXIF orientation → swap x and y, then flip x, flip y
_BOX_TRANSFORMS = {
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
    """Size and orientation of an image, from its header."""

    stored_hw: Size
    orientation: int  # of EXIF, 1..8

    @property
    def upright_hw(self) -> Size:
        """Size of the upright image."""
        height, width = self.stored_hw
        return (width, height) if self.orientation in SIDEWAYS else (height, width)


def read_image_info(data: bytes) -> ImageInfo | Failure:
    """Read the size and the orientation of an image from its header."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        header = read_header(data, DEFAULT_LIMITS)
    if isinstance(header, Failure):
        return header
    return ImageInfo((header.height, header.width), header.orientation)


@dataclass(frozen=True)
class LabelCoordinates:
    """Coordinate system of an image's labels: its pixels as stored, or those of the upright image.

    Attributes:
        image_info: size and orientation of the image.
        is_upright: labels refer to the upright image.
    """

    image_info: ImageInfo
    is_upright: bool

    @property
    def size_hw(self) -> Size:
        """Size of the image in the coordinate system of its labels."""
        return self.image_info.upright_hw if self.is_upright else self.image_info.stored_hw

    def boxes_to_upright(
        self,
        boxes: np.ndarray,  # (M, 4) half-open xyxy
    ) -> np.ndarray:  # (M, 4)
        """Map boxes of the labels to pixels of the upright image."""
        if self.is_upright or self.image_info.orientation == 1:
            return boxes
        height, width = self.image_info.upright_hw
        is_transposed, flips_x, flips_y = _BOX_TRANSFORMS[self.image_info.orientation]
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
        """Map a mask of the labels to the upright image; None if its size is not `size_hw`."""
        transform = None if self.is_upright else UPRIGHT_TRANSFORMS.get(self.image_info.orientation)
        if mask.shape != self.size_hw:
            return None
        return mask if transform is None else transform(mask)
