"""Turns the bytes of one image into upright RGB pixels, or says why that cannot be done.

The header is read first, by Pillow, without decoding: format, size, mode and EXIF orientation.
The limits are checked against it, then the pixels are read. OpenCV reads JPEG, PNG and WebP; it is
the faster and gives the same pixels. Pillow reads what OpenCV leaves or gets wrong: CMYK JPEG,
animations, GIF, BMP, and TIFF, where OpenCV multiplies alpha in and overlooks damage. Both notice
truncation, in every format; what OpenCV refuses, Pillow judges again and its word is final.

Grey is repeated, alpha is dropped as `keras.utils.load_img` does, CMYK is converted without
profiles, of 16 bits the high byte is kept. Of an animation the first picture counts.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import cv2
import numpy as np
from PIL import Image, TiffTags
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cvbatch.arrays.pixels import jpeg_reduction, resize_image
from cvbatch.arrays.tiles import count_tiles, place_all
from cvbatch.data.formats import format_of, is_complete
from cvbatch.types import Decoded, EncodedImage, Failure, ImageBatch, InputKey

# A broken image is a failed row that names its file; OpenCV's own line on stderr names none.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_MAX_MESSAGE = 300
_ORIENTATION_TAG = 274
_PNG_TAIL = 2**16  # where EXIF that follows a PNG's pixels is looked for

# What Pillow's readers raise for damaged bytes, found by decoding thousands of mutated files;
# and MemoryError, so that a picture too large for this machine fails alone.
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    MemoryError,
)

# The readers that may be reached. Built directly, not through `Image.open`: its limit on pixels is
# one for the whole process, and its other plug-ins start Ghostscript and the like.
_READERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}
_OPENCV_FORMATS = ("JPEG", "PNG", "WebP")

_UNSUPPORTED_WORDS = re.compile(
    r"Unsupported|unknown pixel mode|unknown data organization|More samples per pixel"
    r"|cannot handle|not available|conversion from"
)

# EXIF orientation → the turn that makes the stored array upright.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
_SIDEWAYS = (5, 6, 7, 8)

_REDUCED_FLAGS = {1: 0, 2: 16, 4: 32, 8: 64}  # IMREAD_REDUCED_COLOR_n without its BGR bit


@dataclass(frozen=True)
class Limits:
    """What may be decoded: bytes of the file, pixels of the picture and its tiles, by its header.

    `batch_tile_bytes` bounds what is laid out for a model with tiles at once.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 100_000_000
    reduced_jpeg: bool = True  # large JPEGs at 1/2, 1/4 or 1/8, never below what a network gets
    max_tile_bytes: int = 2**30  # of one image, for one model
    batch_tile_bytes: int = 256 * 2**20  # of a batch, for one model; one image may pass it


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are read; sizes as stored, not yet turned."""

    format: str
    data: bytes
    image: ImageFile
    width: int
    height: int
    orientation: int  # 1..8

    @property
    def upright_hw(self) -> tuple[int, int]:
        """Return the height and width of the upright image."""
        if self.orientation in _SIDEWAYS:
            return self.width, self.height
        return self.height, self.width


def decode(data: bytes, keys: Sequence[InputKey], limits: Limits) -> Decoded | Failure:
    """Return the image upright, RGB, resized for every key, or the `Failure` it comes to.

    Kinds of failure: empty, not_an_image, unsupported, too_large, truncated, corrupt. Nothing is
    raised whatever the bytes are, and the same bytes give the same pixels or the same message.
    `Decoded.width` and `height` are the upright original's, also where a JPEG was read reduced.
    """
    with warnings.catch_warnings():
        # only Pillow's, so that a thread that leaves at the wrong moment silences nothing else
        warnings.filterwarnings("ignore", module=r"PIL\.")
        header = read_header(data, limits)
        if isinstance(header, Failure):
            return header
        height, width = header.upright_hw
        refused = _refused_tiles(height, width, keys, limits)
        if refused is not None:
            return refused
        reduction = jpeg_reduction(height, width, keys) if limits.reduced_jpeg else 1
        pixels = _read_pixels(header, reduction)
    if isinstance(pixels, Failure):
        return pixels
    if header.orientation in TURNS:
        pixels = TURNS[header.orientation](pixels)
    return Decoded(width, height, {key: _laid_out(pixels, height, width, key) for key in keys})


def _laid_out(
    pixels: np.ndarray,  # (h, w, 3) uint8, upright, perhaps read reduced
    height: int,  # of the original
    width: int,
    key: InputKey,
) -> np.ndarray:  # (H, W, 3) uint8, or (T, H, W, 3) under a key with tiling
    placements = place_all(height, width, key)
    if key.tiling is None:
        return resize_image(pixels, placements[0])
    tiles = np.empty((len(placements), key.height, key.width, 3), np.uint8)
    for tile, placement in zip(tiles, placements, strict=True):
        tile[:] = resize_image(pixels, placement)
    return tiles


def _refused_tiles(
    height: int, width: int, keys: Iterable[InputKey], limits: Limits
) -> Failure | None:
    for key in keys:
        count = count_tiles(height, width, key)
        size = count * key.height * key.width * 3
        if key.tiling is not None and size > limits.max_tile_bytes:
            return _failure(
                "too_large",
                f"{count} tiles of {key.height} x {key.width} come to {size} bytes, over the limit "
                f"of {limits.max_tile_bytes}; raise tiles.size or lower tiles.overlap",
            )
    return None


def decode_images(
    images: Iterable[EncodedImage],
    keys: Sequence[InputKey],
    limits: Limits,
    chunk_id: str,
    batch_size: int,
) -> Iterator[ImageBatch]:
    """Yield consecutive batches; each but the last holds exactly `batch_size` decoded images.

    Failures stand at their positions and do not count; those that follow the last decoded image
    are in the last batch. No images, no batch. One image is decoded ahead of the batch given out.

    Where a key has a tiling, a batch ends sooner, before the image with which its tiles would pass
    `limits.batch_tile_bytes`; one that passes them alone is given out before another is decoded.
    """
    batch = _GrowingBatch(chunk_id, keys, batch_size, limits.batch_tile_bytes)
    for image in images:
        result = image.failure or decode(image.data, keys, limits)
        if isinstance(result, Decoded) and not batch.has_room_for(result):
            yield batch.finish()
            batch = _GrowingBatch(chunk_id, keys, batch_size, limits.batch_tile_bytes)
        batch.add(image, result)
        del result  # the batch has its pixels
        if batch.is_overfull:
            yield batch.finish()
            batch = _GrowingBatch(chunk_id, keys, batch_size, limits.batch_tile_bytes)
    if batch.image_id:
        yield batch.finish()


class _GrowingBatch:
    """An `ImageBatch` while it fills.

    Images that are not cut are written once, where they will stay; tiles are joined at the end.
    """

    def __init__(
        self, chunk_id: str, keys: Sequence[InputKey], batch_size: int, max_tile_bytes: int
    ) -> None:
        self.chunk_id = chunk_id
        self.image_id: list[str] = []
        self._batch_size = batch_size
        self._max_tile_bytes = max_tile_bytes
        self._num_decoded = 0
        self._uri: list[str] = []
        self._width: list[int] = []
        self._height: list[int] = []
        self._failures: dict[int, Failure] = {}
        self._whole = {
            key: np.empty((batch_size, key.height, key.width, 3), np.uint8)
            for key in keys
            if key.tiling is None
        }
        self._tiles: dict[InputKey, list[np.ndarray]] = {
            key: [] for key in keys if key.tiling is not None
        }
        self._tile_bytes = dict.fromkeys(self._tiles, 0)

    @property
    def is_overfull(self) -> bool:
        """Say whether one image has passed the bytes that several may have together."""
        return any(size > self._max_tile_bytes for size in self._tile_bytes.values())

    def has_room_for(self, image: Decoded) -> bool:
        if self._num_decoded == 0:
            return True
        return self._num_decoded < self._batch_size and all(
            size + _weight(image, key) <= self._max_tile_bytes
            for key, size in self._tile_bytes.items()
        )

    def add(self, image: EncodedImage, result: Decoded | Failure) -> None:
        if isinstance(result, Failure):
            self._failures[len(self.image_id)] = result
            width, height = 0, 0
        else:
            width, height = result.width, result.height
            for key, pixels in self._whole.items():
                pixels[self._num_decoded] = result.pixels[key]
            for key, tiles in self._tiles.items():
                tiles.append(result.pixels[key])
                self._tile_bytes[key] += _weight(result, key)
            self._num_decoded += 1
        self.image_id.append(image.image_id)
        self._uri.append(image.uri)
        self._width.append(width)
        self._height.append(height)

    def finish(self) -> ImageBatch:
        pixels = {key: whole[: self._num_decoded] for key, whole in self._whole.items()}
        for key, tiles in self._tiles.items():
            none = np.empty((0, key.height, key.width, 3), np.uint8)
            pixels[key] = tiles[0] if len(tiles) == 1 else np.concatenate([none, *tiles])
            tiles.clear()
        return ImageBatch(
            chunk_id=self.chunk_id,
            image_id=self.image_id,
            uri=self._uri,
            width=np.array(self._width, np.int32),
            height=np.array(self._height, np.int32),
            failures=self._failures,
            pixels=pixels,
        )


def _weight(image: Decoded, key: InputKey) -> int:
    """Return the bytes of an image's tiles, and of the mask that may be merged from them."""
    return image.pixels[key].nbytes + image.height * image.width


def read_header(data: bytes, limits: Limits) -> Header | Failure:
    """Return what an image's header says, the limits held against it; or why there is none."""
    if not data:
        return _failure("empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        return _too_large(f"{len(data)} bytes", limits.max_bytes, "source.max_bytes")
    name = format_of(data)
    if name is None:
        return _failure("not_an_image", "the bytes do not begin like any known image format")
    if name not in _READERS:
        known = ", ".join(_READERS)
        return _failure("unsupported", f"{name} is not read; convert the image to one of {known}")
    if name == "JPEG":
        # a file cut short and filled up with zeros would pass: they decode to grey
        data = data.rstrip(b"\0")
    try:
        image = _READERS[name](BytesIO(data))
    except PILLOW_ERRORS as error:
        return _refused(error, name, data)
    width, height = image.size
    if width * height > limits.max_pixels:
        size = f"{width} x {height} = {width * height} pixels"
        return _too_large(size, limits.max_pixels, "source.max_pixels")
    orientation = _read_orientation(name, image, data)
    return Header(name, data, image, width, height, orientation)


def _read_orientation(name: str, image: ImageFile, data: bytes) -> int:
    """Return the EXIF orientation, 1 where it is absent, unknown or unreadable."""
    if name == "TIFF":  # there it is part of the format, and Pillow turns the picture itself
        return 1
    try:
        # the plain method: PNG's own would decode all pixels to see whether EXIF follows them
        exif = Image.Image.getexif(image)
        if name == "PNG" and (start := data.rfind(b"eXIf", -_PNG_TAIL)) >= 0:
            size = int.from_bytes(data[start - 4 : start])
            exif.load(data[start + 4 : start + 4 + size])
        orientation = exif.get(_ORIENTATION_TAG)
    except PILLOW_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) and orientation in TURNS else 1


def _read_pixels(
    header: Header, reduction: int
) -> np.ndarray | Failure:  # (h, w, 3) uint8, not yet turned
    image = header.image
    if (
        header.format in _OPENCV_FORMATS
        and image.mode != "CMYK"
        and not getattr(image, "is_animated", False)
        # OpenCV allocates what a PNG's chunk claims as its length: 3 GB for a file of 6 kB
        and (header.format != "PNG" or is_complete("PNG", header.data))
    ):
        pixels = _read_with_opencv(header, reduction if header.format == "JPEG" else 1)
        if pixels is not None:
            return pixels
    try:
        return _read_with_pillow(image)
    except PILLOW_ERRORS as error:
        return _refused(error, header.format, header.data)


def _read_with_opencv(header: Header, reduction: int) -> np.ndarray | None:  # (h, w, 3) uint8
    """Return the pixels, or None where OpenCV refuses or sees another size than the header's."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | _REDUCED_FLAGS[reduction]
    try:
        pixels = cv2.imdecode(np.frombuffer(header.data, np.uint8), flags)
    except cv2.error:
        return None
    expected = (-(-header.height // reduction), -(-header.width // reduction), 3)
    return pixels if pixels is not None and pixels.shape == expected else None


def _read_with_pillow(image: ImageFile) -> np.ndarray | Failure:  # (h, w, 3) uint8
    image.load()
    if image.mode.startswith("I;16"):
        high = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(high[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        return _failure(
            "unsupported",
            f"32-bit pixels (mode {image.mode}) have no known range; convert them to 8 or 16 bits",
        )
    return np.asarray(image.convert("RGB"))


def _refused(error: BaseException, name: str, data: bytes) -> Failure:
    """Return the failure that a reader's exception means."""
    message = _one_line(error)
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return _failure("too_large", f"the {name} is larger than Pillow can read: {message}")
    if name == "TIFF" and message.isdigit():  # all that Pillow says of what it looked up in vain
        is_tag = int(message) in TiffTags.TAGS_V2
        message = f"tag {message} is missing" if is_tag else f"Unsupported compression {message}"
    if _UNSUPPORTED_WORDS.search(message):
        return _failure("unsupported", f"this kind of {name} is not read: {message}")
    if "truncated" in message or not is_complete(name, data):
        return _failure("truncated", f"the {name} ends early: {message}")
    return _failure("corrupt", f"the {name} is damaged: {message}")


def _too_large(size: str, limit: int, key: str) -> Failure:
    return _failure("too_large", f"{size}, over the limit of {limit}; raise {key} to read it")


def _failure(kind: str, message: str) -> Failure:
    return Failure("decode", kind, message[:_MAX_MESSAGE])


def _one_line(error: BaseException) -> str:
    """Return an exception's text without addresses, line breaks and unprintable characters."""
    text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "file", str(error)) or type(error).__name__
    return re.sub(r"[^ -~]+", " ", text).strip()
