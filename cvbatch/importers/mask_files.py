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
from cvbatch.importers.annotations import Annotation, MaskIssue
from cvbatch.storage import store
from cvbatch.storage.store import Storage

_GREY_STEPS = {2: 85, 4: 17}  # by bit depth of a grey PNG: Pillow scales its values to 0..255
_BIT_DEPTH_OFFSET = 24  # in the header of a PNG


@dataclass(frozen=True)
class PngMasks:
    """Reads masks from PNG files with one channel.

    Args:
        storage: reads the files.
        values: pixel value of each class id. 255 is void unless it is one of them.
    """

    storage: Storage
    values: Sequence[int]

    def read(self, annotation: Annotation, frame_hw: Size) -> np.ndarray | MaskIssue | None:
        """Return the mask as class ids, (h, w) uint8; see `MaskReader`."""
        if not annotation.mask_uri:
            return None
        try:
            data = self.storage.read_bytes(annotation.mask_uri, DEFAULT_LIMITS.max_bytes)
        except (NotFoundError, AccessDeniedError, store.TooLargeError) as error:
            return MaskIssue("mask_unreadable", str(error))
        values = read_mask_file(data, frame_hw)
        if isinstance(values, MaskIssue):
            return values._replace(message=f"{annotation.mask_uri}: {values.message}")
        table = np.full(256, -1, np.int16)
        table[VOID_CLASS] = VOID_CLASS
        table[list(self.values)] = np.arange(len(self.values))
        class_id = table[values]
        if class_id.min() < 0:
            value = int(values[class_id < 0][0])
            message = f"{annotation.mask_uri}: pixel value {value} is not a class"
            return MaskIssue("mask_value", message)
        return np.asarray(class_id, np.uint8)


def read_mask_file(data: bytes, frame_hw: Size) -> np.ndarray | MaskIssue:  # (h, w) uint8
    """Return the pixel values of a mask PNG, or why it cannot be used.

    The values are palette indices, or grey values of up to 16 bits that are at most 255. A mask
    with another number of pixels than the frame is not decoded.

    Args:
        data: the encoded file.
        frame_hw: height and width of its image.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        header = read_header(data, DEFAULT_LIMITS)
        if isinstance(header, Failure):
            return MaskIssue("mask_unreadable", header.message)
        size = f"{header.width} x {header.height}"
        if header.format != "PNG" or header.image.mode not in ("P", "L", "1", "I;16", "I"):
            kind = f"{header.format} of mode {header.image.mode}"
            return MaskIssue("mask_unreadable", f"{kind}; a mask must be a PNG with one channel")
        height, width = frame_hw
        if header.width * header.height != width * height:
            return MaskIssue("mask_size", f"{size}; the image is {width} x {height}")
        try:
            values = np.asarray(header.image)
        except PILLOW_ERRORS as error:
            return MaskIssue("mask_unreadable", f"the PNG is damaged: {error}")
    if values.max() > 255:
        return MaskIssue("mask_value", f"pixel value {values.max()} is above 255")
    bits = data[_BIT_DEPTH_OFFSET]
    step = _GREY_STEPS.get(bits, 1) if header.image.mode == "L" else 1
    return (values // step).astype(np.uint8)
