"""Read mask PNGs of any bit depth and palette."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cvbatch.core.errors import AccessDeniedError, NotFoundError
from cvbatch.core.types import VOID_CLASS, Failure
from cvbatch.images.decode import PILLOW_ERRORS, read_header
from cvbatch.images.orientation import DEFAULT_LIMITS, Size
from cvbatch.importers.annotations import Annotation, MaskFault
from cvbatch.storage import store
from cvbatch.storage.store import Storage

_GREY_STEPS = {2: 85, 4: 17}  # by bits of a grey PNG: Pillow spreads its values over 0..255
_BIT_DEPTH = 24  # where a PNG's header has it


@dataclass(frozen=True)
class MaskFiles:
    """Reads masks that are PNG files of one channel, a value for each class.

    values: of each class, in the order of the ids. A pixel of 255 is void unless it stands there.
    """

    storage: Storage
    values: Sequence[int]

    def read(self, example: Annotation, frame_hw: Size) -> np.ndarray | MaskFault | None:
        """Return the mask as class ids, (h, w) uint8; see `MaskReader`."""
        if not example.mask_at:
            return None
        try:
            data = self.storage.read_bytes(example.mask_at, DEFAULT_LIMITS.max_bytes)
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
        header = read_header(data, DEFAULT_LIMITS)
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
