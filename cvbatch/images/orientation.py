"""What labels must know of pictures: their size, how they are turned, and masks in files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cvbatch.core.errors import AccessDeniedError, NotFoundError
from cvbatch.core.types import VOID_CLASS, Failure
from cvbatch.images.decode import PILLOW_ERRORS, TURNS, Limits, read_header
from cvbatch.importers.annotations import Example, MaskFault
from cvbatch.storage import store

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
_GREY_STEPS = {2: 85, 4: 17}  # by bits of a grey PNG: Pillow spreads its values over 0..255
_BIT_DEPTH = 24  # where a PNG's header has it

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


@dataclass(frozen=True)
class MaskFiles:
    """Reads masks that are PNG files of one channel, a value for each class.

    values: of each class, in the order of the ids. A pixel of 255 is void unless it stands there.
    """

    values: Sequence[int]

    def read(self, example: Example, frame_hw: Size) -> np.ndarray | MaskFault | None:
        """Return the mask as class ids, (h, w) uint8; see `MaskReader`."""
        if not example.mask_at:
            return None
        try:
            data = store.read_bytes(example.mask_at, LIMITS.max_bytes)
        except (NotFoundError, AccessDeniedError, store.TooLargeError) as error:
            return MaskFault("mask_unreadable", str(error))
        found = read_mask_file(data, frame_hw)
        if isinstance(found, MaskFault):
            return found._replace(message=f"{example.mask_at}: {found.message}")
        table = np.full(256, -1, np.int16)
        table[VOID_CLASS] = VOID_CLASS
        table[list(self.values)] = np.arange(len(self.values))
        class_id = table[found]
        if class_id.min() < 0:
            value = int(found[class_id < 0][0])
            told = f"{example.mask_at}: a pixel of {value}, which is no class"
            return MaskFault("mask_value", told)
        return np.asarray(class_id, np.uint8)


def read_mask_file(data: bytes, frame_hw: Size) -> np.ndarray | MaskFault:  # (h, w) uint8
    """Return the values of a mask: palette indices, or grey of up to 16 bits that fits in 8.

    Of another number of pixels than the frame's it is not decoded.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        header = read_header(data, LIMITS)
        if isinstance(header, Failure):
            return MaskFault("mask_unreadable", header.message)
        size = f"{header.width} x {header.height}"
        if header.format != "PNG" or header.image.mode not in ("P", "L", "1", "I;16", "I"):
            kind = f"{header.format} of mode {header.image.mode}"
            return MaskFault("mask_unreadable", f"{kind}; a mask is a PNG of one channel")
        height, width = frame_hw
        if header.width * header.height != width * height:
            return MaskFault("mask_size", f"{size}; its image is {width} x {height}")
        try:
            values = np.asarray(header.image)
        except PILLOW_ERRORS as error:
            return MaskFault("mask_unreadable", f"the PNG is damaged: {error}")
    if values.max() > 255:
        return MaskFault("mask_value", f"a pixel of {values.max()}, over 255")
    bits = data[_BIT_DEPTH]
    step = _GREY_STEPS.get(bits, 1) if header.image.mode == "L" else 1
    return (values // step).astype(np.uint8)
