"""Read mask files, PNG, TIFF or BMP: class ids of any bit depth and palette, or colours."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from cvbatch.core.errors import AccessDeniedError, NotFoundError
from cvbatch.core.types import VOID_CLASS, Failure
from cvbatch.images.decode import read_header
from cvbatch.images.failures import READER_ERRORS
from cvbatch.images.orientation import DEFAULT_LIMITS, Size
from cvbatch.importers.annotations import Annotation, MaskIssue
from cvbatch.storage import store
from cvbatch.storage.store import Storage

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
# Pillow's, which keep indices and values of 16 bits, as the readers of images do not.
_READERS: dict[str, type[ImageFile]] = {
    "PNG": PngImageFile,
    "TIFF": TiffImageFile,
    "BMP": BmpImageFile,
}
_INDEX_MODES = ("P", "L", "1", "I;16", "I;16B", "I")
_COLOUR_MODES = ("RGB", "RGBA")
_GREY_STEPS = {2: 85, 4: 17}  # by bit depth of a grey PNG: Pillow scales its values to 0..255
_BIT_DEPTH_OFFSET = 24  # in the header of a PNG
VOID_COLOUR = (224, 224, 192)  # of the contours in Pascal VOC

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class MaskFiles:
    """Reads masks from files.

    Args:
        storage: reads the files.
        values: pixel value of each class id in a mask of one channel. 255 is void unless it is one
            of them.
        colours: class id of each colour, for masks of colours and palettes; {}: there are only
            pixel values.
        has_palette_colours: the colours of a palette have a meaning, not its indices.
    """

    storage: Storage
    values: Sequence[int]
    colours: Mapping[Colour, int] = field(default_factory=dict)
    has_palette_colours: bool = True

    def read(self, annotation: Annotation, frame_hw: Size) -> np.ndarray | MaskIssue | None:
        """Return the mask as class ids, (h, w) uint8; see `MaskReader`."""
        uri = annotation.mask_uri
        if not uri:
            return None
        try:
            data = self.storage.read_bytes(uri, DEFAULT_LIMITS.max_bytes)
        except (NotFoundError, AccessDeniedError, store.TooLargeError) as error:
            return MaskIssue("mask_unreadable", str(error))
        modes = (*_COLOUR_MODES, "P") if self.has_palette_colours else _COLOUR_MODES
        pixels = read_mask_file(data, frame_hw, modes if self.colours else ())
        if isinstance(pixels, MaskIssue):
            return pixels._replace(message=f"{uri}: {pixels.message}")
        return (
            self._from_colours(pixels, uri) if pixels.ndim == 3 else self._from_values(pixels, uri)
        )

    def _from_values(self, values: np.ndarray, uri: str) -> np.ndarray | MaskIssue:  # (h, w) uint8
        table = np.full(256, -1, np.int16)
        table[VOID_CLASS] = VOID_CLASS
        table[list(self.values)] = np.arange(len(self.values))
        class_id = table[values]
        if class_id.min() < 0:
            value = int(values[class_id < 0][0])
            return MaskIssue("mask_value", f"{uri}: pixel value {value} is not a class")
        return np.asarray(class_id, np.uint8)

    def _from_colours(
        self,
        pixels: np.ndarray,  # (h, w, 3) uint8
        uri: str,
    ) -> np.ndarray | MaskIssue:  # (h, w) uint8
        code = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        codes, index = np.unique(code, return_inverse=True)
        class_of = {VOID_COLOUR: VOID_CLASS} | dict(self.colours)
        ids = []
        for value in codes.tolist():
            colour = (value >> 16, value >> 8 & 255, value & 255)
            if colour not in class_of:
                listed = ",".join(map(str, colour))
                return MaskIssue("mask_value", f"{uri}: colour {listed} is not in labelmap.txt")
            ids.append(class_of[colour])
        return np.array(ids, np.uint8)[index.reshape(code.shape)]


def read_mask_file(
    data: bytes, frame_hw: Size, colour_modes: Sequence[str] = ()
) -> np.ndarray | MaskIssue:  # (h, w) or (h, w, 3) uint8
    """Return the pixels of a mask file, or why it cannot be used.

    The values are palette indices, or grey values of up to 32 bits that are at most 255; images of
    `colour_modes` give colours. A mask with another number of pixels than the frame is not decoded.

    Args:
        data: the encoded file.
        frame_hw: height and width of its image.
        colour_modes: some of Pillow's modes RGB, RGBA and P.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        header = read_header(data, DEFAULT_LIMITS)
        if isinstance(header, Failure):
            return MaskIssue("mask_unreadable", header.message)
        if header.format not in _READERS:
            return MaskIssue(
                "mask_unreadable",
                f"{header.format} does not keep the values of a mask; use {', '.join(_READERS)}",
            )
        height, width = frame_hw
        if header.width * header.height != width * height:
            size = f"{header.width} x {header.height}"
            return MaskIssue("mask_size", f"{size}; the image is {width} x {height}")
        try:
            image = _READERS[header.format](BytesIO(data))
            pixels = _pixels(image, colour_modes)
        except READER_ERRORS as error:
            return MaskIssue("mask_unreadable", f"the {header.format} is damaged: {error}")
    if isinstance(pixels, MaskIssue) or pixels.ndim == 3:
        return pixels
    if pixels.min() < 0 or pixels.max() > 255:
        value = pixels.max() if pixels.max() > 255 else pixels.min()
        return MaskIssue("mask_value", f"pixel value {value} is not from 0 to 255")
    is_packed = header.format == "PNG" and image.mode == "L"
    step = _GREY_STEPS.get(data[_BIT_DEPTH_OFFSET], 1) if is_packed else 1
    return (pixels // step).astype(np.uint8)


def _pixels(image: Image.Image, colour_modes: Sequence[str]) -> np.ndarray | MaskIssue:
    """Return the values of a mask of one channel, (h, w), or its colours, (h, w, 3) uint8."""
    if image.mode in colour_modes:
        return np.asarray(image.convert("RGB"))
    if image.mode in _INDEX_MODES:
        return np.asarray(image)
    if image.mode in _COLOUR_MODES:
        values = np.asarray(image.convert("RGB"))
        if (values == values[..., :1]).all():  # grey, stored three times
            return values[..., 0]
        return MaskIssue("mask_unreadable", "it has colours, which need a labelmap.txt")
    return MaskIssue("mask_unreadable", f"mode {image.mode}; a mask has one channel, or colours")


def voc_colours(num_classes: int) -> dict[Colour, int]:
    """Return the class of each colour of Pascal VOC's palette.

    Source: VOCdevkit, VOClabelcolormap.m.
    """
    index = np.arange(num_classes)
    colour = np.zeros((num_classes, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colour[:, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return {(red, green, blue): i for i, (red, green, blue) in enumerate(colour.tolist())}
