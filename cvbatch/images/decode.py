"""Decode one image to upright RGB uint8 (H, W, 3) in sRGB, or to a Failure.

The header is read first, without decoding, and compared with the limits; then the samples are read,
reduced to 8 bits and converted to sRGB. `cvbatch.images.headers.READERS` is the table of formats.

Grey is repeated in three channels, alpha is dropped as in `keras.utils.load_img`. Of an animation
the first frame is used, of a file with pages the first one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np

from cvbatch.core.types import Decoded, EncodedImage, Failure, ImageBatch, InputKey
from cvbatch.geometry.resize import jpeg_reduction, resize_image
from cvbatch.geometry.tiling import count_tiles, tile_placements
from cvbatch.images.bit_depth import to_8_bits
from cvbatch.images.color import to_srgb
from cvbatch.images.failures import READER_ERRORS, decode_failure, failure_from_error
from cvbatch.images.headers import READERS, read_header
from cvbatch.images.options import Limits
from cvbatch.images.readers import Header
from cvbatch.images.samples import Samples

__all__ = [
    "UPRIGHT_TRANSFORMS",
    "DecodeOne",
    "Limits",
    "decode",
    "decode_images",
    "read_header",
]

# EXIF orientation → the transform that makes the stored array upright
UPRIGHT_TRANSFORMS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def decode(data: bytes, keys: Sequence[InputKey], limits: Limits) -> Decoded | Failure:
    """Decode an image, make it upright and resize it for every network.

    Args:
        data: the image file; no bytes raise an exception.
        keys: inputs of the networks.
        limits: maximum sizes of the file, the image and its tiles.

    Returns:
        The resized image, with the size of the upright original even if a JPEG was decoded at a
        reduced size; or a failure of the kind empty, not_an_image, unsupported, too_large,
        truncated or corrupt. The same bytes give the same pixels or the same message.
    """
    with warnings.catch_warnings():
        # Only warnings of Pillow: `catch_warnings` is not thread-safe, the filter may outlive this.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        header = read_header(data, limits)
        if isinstance(header, Failure):
            return header
        height, width = header.upright_hw
        if (too_large := _find_tile_failure(height, width, keys, limits)) is not None:
            return too_large
        reduction = jpeg_reduction(height, width, keys) if limits.reduced_jpeg else 1
        pixels = _read_pixels(header, limits, reduction)
    if isinstance(pixels, Failure):
        return pixels
    if header.orientation in UPRIGHT_TRANSFORMS:
        pixels = UPRIGHT_TRANSFORMS[header.orientation](pixels)
    return Decoded(width, height, {key: _resize(pixels, height, width, key) for key in keys})


DecodeOne = Callable[[bytes, Sequence[InputKey], Limits], Decoded | Failure]


def _resize(
    pixels: np.ndarray,  # (h, w, 3) uint8, upright, perhaps at a reduced size
    height: int,  # of the original
    width: int,
    key: InputKey,
) -> np.ndarray:  # (H, W, 3) uint8, or (T, H, W, 3) under a key with tiling
    placements = tile_placements(height, width, key)
    if key.tiling is None:
        return resize_image(pixels, placements[0], key.interpolation, key.antialias)
    tiles = np.empty((len(placements), key.height, key.width, 3), np.uint8)
    for tile, placement in zip(tiles, placements, strict=True):
        tile[:] = resize_image(pixels, placement, key.interpolation, key.antialias)
    return tiles


def _find_tile_failure(
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
    """Decode images and group them into consecutive batches.

    One image is decoded ahead of the batch that is yielded. If a key has a tiling, a batch ends
    before the image that would make its tiles exceed `limits.batch_tile_bytes`; an image that
    exceeds this alone is yielded before another one is decoded.

    Args:
        images: encoded images, in the order of the chunk.
        keys: inputs of the networks.
        limits: maximum sizes of files, images and tiles.
        chunk_id: of the chunk that the images belong to.
        batch_size: decoded images of a batch.
        decode_one: decodes one image.

    Yields:
        Batches; without tiles each but the last has exactly `batch_size` decoded images. Failures
        have their positions in a batch and are not counted; failures after the last decoded image
        are in the last batch. No images give no batch.
    """
    batch = _BatchBuilder(chunk_id, keys, batch_size, limits.batch_tile_bytes)
    for image in images:
        result = image.failure or decode_one(image.data, keys, limits)
        if isinstance(result, Decoded) and not batch.has_room_for(result):
            yield batch.finish()
            batch = _BatchBuilder(chunk_id, keys, batch_size, limits.batch_tile_bytes)
        batch.add(image, result)
        del result  # frees the pixels that were copied into the batch
        if batch.is_overfull:
            yield batch.finish()
            batch = _BatchBuilder(chunk_id, keys, batch_size, limits.batch_tile_bytes)
    if batch.image_id:
        yield batch.finish()


class _BatchBuilder:
    """Collects decoded images and failures of one `ImageBatch`.

    Images without tiles are written directly into the arrays of the batch; tiles, whose number is
    not known in advance, are concatenated at the end.
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
        self._untiled = {
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
        """Whether the tiles exceed the limit; only a single image can make them do so."""
        return any(size > self._max_tile_bytes for size in self._tile_bytes.values())

    def has_room_for(self, image: Decoded) -> bool:
        if self._num_decoded == 0:
            return True
        return self._num_decoded < self._batch_size and all(
            size + _num_bytes(image, key) <= self._max_tile_bytes
            for key, size in self._tile_bytes.items()
        )

    def add(self, image: EncodedImage, result: Decoded | Failure) -> None:
        if isinstance(result, Failure):
            self._failures[len(self.image_id)] = result
            width, height = 0, 0
        else:
            width, height = result.width, result.height
            for key, pixels in self._untiled.items():
                pixels[self._num_decoded] = result.pixels[key]
            for key, tiles in self._tiles.items():
                tiles.append(result.pixels[key])
                self._tile_bytes[key] += _num_bytes(result, key)
            self._num_decoded += 1
        self.image_id.append(image.image_id)
        self._uri.append(image.uri)
        self._width.append(width)
        self._height.append(height)

    def finish(self) -> ImageBatch:
        pixels = {key: images[: self._num_decoded] for key, images in self._untiled.items()}
        for key, tiles in self._tiles.items():
            empty = np.empty((0, key.height, key.width, 3), np.uint8)
            pixels[key] = tiles[0] if len(tiles) == 1 else np.concatenate([empty, *tiles])
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


def _num_bytes(image: Decoded, key: InputKey) -> int:
    """Return the bytes of an image's tiles and of a mask merged from them."""
    return image.pixels[key].nbytes + image.height * image.width


def _read_pixels(
    header: Header, limits: Limits, reduction: int
) -> np.ndarray | Failure:  # (h, w, 3) uint8, as stored
    try:
        samples = READERS[header.format].read(header, limits, reduction)
        return _to_rgb(samples, header.profile, limits)
    except READER_ERRORS as error:
        return failure_from_error(error, header.format, header.data)


def _divide_by_alpha(
    values: np.ndarray,  # (h, w, c)
    alpha: np.ndarray,  # (h, w, 1), of the same type
    bits: int,
) -> np.ndarray:  # (h, w, c), of the same type
    """Return the colours that were multiplied by alpha; black where nothing is visible."""
    is_visible = alpha > 0
    if values.dtype.kind == "f":  # 1 is opaque
        return np.asarray(np.divide(values, alpha, out=np.zeros_like(values), where=is_visible))
    opaque = (1 << bits) - 1
    product = values.astype(np.uint32 if bits <= 16 else np.uint64) * opaque
    colors = product // np.maximum(alpha, 1)
    return np.where(is_visible, np.minimum(colors, opaque), 0).astype(values.dtype)


def _to_rgb(
    samples: Samples, profile: bytes | None, limits: Limits
) -> np.ndarray:  # (h, w, 3) uint8
    values = samples.values
    if samples.alpha is not None and values.dtype.kind in "uf":
        values = _divide_by_alpha(values, samples.alpha, samples.bits)
    values = to_8_bits(values, samples.bits, limits.bit_depth)
    if samples.is_inverted:
        values = 255 - values
    return to_srgb(values, samples.color_space, profile, limits.color)
