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

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from cvbatch.core.types import Decoded, EncodedImage, Failure, ImageBatch, InputKey
from cvbatch.geometry.resize import jpeg_reduction, resize_image
from cvbatch.geometry.tiling import count_tiles, tile_placements
from cvbatch.images.headers import PILLOW_ERRORS, Header, Limits, decode_failure, read_header, failure_from_error
from cvbatch.images.signatures import is_complete, png_has_all_rows

__all__ = [
    "PILLOW_ERRORS",
    "UPRIGHT_TRANSFORMS",
    "DecodeOne",
    "Limits",
    "decode",
    "decode_images",
    "read_header",
]

# A broken image is a failed row that names its file; OpenCV's own line on stderr names none.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_OPENCV_FORMATS = ("JPEG", "PNG", "WebP")

# EXIF orientation → the turn that makes the stored array upright.
UPRIGHT_TRANSFORMS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
_STRIP_TAG, _ROWS_TAG = 273, 278  # of a TIFF: where its strips lie, how many rows each has
_REDUCED_FLAGS = {1: 0, 2: 16, 4: 32, 8: 64}  # IMREAD_REDUCED_COLOR_n without its BGR bit


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
        if (too_large := _refused_tiles(height, width, keys, limits)) is not None:
            return too_large
        reduction = jpeg_reduction(height, width, keys) if limits.reduced_jpeg else 1
        pixels = _read_pixels(header, reduction)
    if isinstance(pixels, Failure):
        return pixels
    if header.orientation in UPRIGHT_TRANSFORMS:
        pixels = UPRIGHT_TRANSFORMS[header.orientation](pixels)
    return Decoded(width, height, {key: _laid_out(pixels, height, width, key) for key in keys})


DecodeOne = Callable[[bytes, Sequence[InputKey], Limits], Decoded | Failure]


def _laid_out(
    pixels: np.ndarray,  # (h, w, 3) uint8, upright, perhaps read reduced
    height: int,  # of the original
    width: int,
    key: InputKey,
) -> np.ndarray:  # (H, W, 3) uint8, or (T, H, W, 3) under a key with tiling
    placements = tile_placements(height, width, key)
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
            return decode_failure(
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
    decode_one: DecodeOne = decode,
) -> Iterator[ImageBatch]:
    """Yield consecutive batches; each but the last holds exactly `batch_size` decoded images.

    Failures stand at their positions and do not count; those that follow the last decoded image
    are in the last batch. No images, no batch. One image is decoded ahead of the batch given out.

    Where a key has a tiling, a batch ends sooner, before the image with which its tiles would pass
    `limits.batch_tile_bytes`; one that passes them alone is given out before another is decoded.
    """
    batch = _GrowingBatch(chunk_id, keys, batch_size, limits.batch_tile_bytes)
    for image in images:
        result = image.failure or decode_one(image.data, keys, limits)
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
        read = _read_with_pillow(image)
    except PILLOW_ERRORS as error:
        return failure_from_error(error, header.format, header.data)
    if not isinstance(read, Failure) and _has_holes(header):
        return decode_failure("truncated", f"the {header.format} ends early: it lacks rows of pixels")
    return read


def _has_holes(header: Header) -> bool:
    """Say whether an image lacks rows that its header claims; Pillow leaves those black."""
    if header.format == "PNG":
        return not png_has_all_rows(header.data)
    if not isinstance(header.image, TiffImageFile):
        return False
    tags = header.image.tag_v2
    strips, rows = tags.get(_STRIP_TAG), tags.get(_ROWS_TAG)
    if not isinstance(strips, tuple) or not isinstance(rows, int) or rows < 1:
        return False
    return len(strips) * rows < header.height


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
        return decode_failure(
            "unsupported",
            f"32-bit pixels (mode {image.mode}) have no known range; convert them to 8 or 16 bits",
        )
    return np.asarray(image.convert("RGB"))
