"""Boxes and masks of labels follow the pixels in every format that has an orientation."""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from cvbatch.images.orientation import ImageInfo, LabelCoordinates, read_image_info
from tests.images.test_tiff import ORIENTATION, written
from tests.support.encoded_images import encode, pixels_of

HEIGHT, WIDTH = 48, 64
BOX = (6, 4, 30, 14)  # half-open xyxy of the stored pixels


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def tiff(pixels: np.ndarray, orientation: int) -> bytes:
    return written(pixels, rowsperstrip=5, extratags=[(ORIENTATION, 3, 1, orientation, True)])


def jpeg_xl(pixels: np.ndarray, orientation: int) -> bytes:
    exif = exif_of(orientation)
    jpeg = encode(Image.fromarray(pixels), "JPEG", quality=98, subsampling=0, exif=exif)
    return imagecodecs.jpegxl_encode_jpeg(jpeg)


def avif(pixels: np.ndarray, orientation: int) -> bytes:
    return encode(Image.fromarray(pixels), "AVIF", quality=98, exif=exif_of(orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("encoder", [tiff, jpeg_xl, avif])
def test_a_box_and_a_mask_cover_the_same_pixels_as_in_the_stored_image(
    encoder: Any, orientation: int
) -> None:
    upright_hw = (WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH)
    stored = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stored[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    data = encoder(stored, orientation)
    info = read_image_info(data)
    assert isinstance(info, ImageInfo)
    assert info.upright_hw == upright_hw
    labels = LabelCoordinates(info, is_upright=False)
    x0, y0, x1, y1 = labels.boxes_to_upright(np.array([BOX]))[0]
    mask = labels.mask_to_upright((stored[..., 0] > 128).astype(np.uint8))
    pixels = pixels_of(data) if orientation < 5 else upright_pixels(data)
    ys, xs = np.nonzero(pixels[..., 0] > 128)
    assert (x0, y0, x1, y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert mask is not None and np.array_equal(mask, pixels[..., 0] > 128)


def upright_pixels(data: bytes) -> np.ndarray:
    from cvbatch.core.types import Decoded, InputKey
    from cvbatch.images.decode import Limits, decode

    key = InputKey(WIDTH, HEIGHT, "stretch")
    decoded = decode(data, [key], Limits())
    assert isinstance(decoded, Decoded)
    return decoded.pixels[key]
