"""HEIC, AVIF, JPEG 2000 and JPEG XL, and JPEG of more than 8 bits: pixels, orientation, limits."""

from __future__ import annotations

import sys
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from cvbatch.core.types import Decoded, Failure
from cvbatch.images.decode import Limits, decode
from cvbatch.images.isolated_decode import IsolatedDecoder
from cvbatch.images.orientation import ImageInfo, read_image_info
from tests.images.test_decode_limits import mutated
from tests.images.test_tiff import INVERSE, written
from tests.support.encoded_images import (
    HEIGHT,
    RGB,
    SAME_SIZE,
    WIDTH,
    check_failure,
    encode,
    failure_of,
    pixels_of,
)

PHOTO = np.asarray(RGB)
DEEP = PHOTO.astype(np.uint16) * 257
GREY = np.asarray(RGB.convert("L"))


def heif(array: np.ndarray, mode: str, **options: Any) -> bytes:
    """Encode with x265, through pillow-heif."""
    file = BytesIO()
    image = pillow_heif.from_bytes(mode, array.shape[1::-1], array.tobytes())
    image.save(file, quality=-1, chroma=444, **options)
    return file.getvalue()


def jxl(array: np.ndarray, **options: Any) -> bytes:
    return imagecodecs.jpegxl_encode(array, lossless=True, **options)


LOSSLESS = {
    "jpeg 2000": imagecodecs.jpeg2k_encode(PHOTO, level=0, reversible=True),
    "jpeg 2000 codestream": imagecodecs.jpeg2k_encode(
        PHOTO, level=0, reversible=True, codecformat="j2k"
    ),
    "jpeg 2000 of 16 bits": imagecodecs.jpeg2k_encode(DEEP, level=0, reversible=True),
    "jpeg xl": jxl(PHOTO),
    "jpeg xl codestream": jxl(PHOTO, usecontainer=False),
    "jpeg xl of 16 bits": jxl(DEEP),
    "jpeg-ls": imagecodecs.jpegls_encode(PHOTO),
    "lossless jpeg": imagecodecs.jpeg_encode(PHOTO, lossless=True, colorspace="rgb"),
    "lossless jpeg of 16 bits": imagecodecs.jpeg_encode(DEEP, lossless=True, bitspersample=16),
}
LOSSY = {
    "heic": heif(PHOTO, "RGB"),
    "heic of 10 bits": heif(DEEP, "RGB;16"),
    "avif": encode(RGB, "AVIF", quality=95, subsampling="4:4:4"),
    "avif of 10 bits": imagecodecs.avif_encode(DEEP >> 6, level=98, bitspersample=10),
    "jpeg 2000 lossy": encode(RGB, "JPEG2000"),
    "jpeg xl lossy": imagecodecs.jpegxl_encode(PHOTO, distance=0.5),
    "jpeg of 12 bits": imagecodecs.jpeg_encode(DEEP >> 4, level=98, bitspersample=12),
}
FILES = LOSSLESS | LOSSY


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_give_the_pixels_that_were_written(name: str) -> None:
    assert np.array_equal(pixels_of(LOSSLESS[name]), PHOTO)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_files_give_nearly_the_pixels_that_were_written(name: str) -> None:
    assert np.abs(pixels_of(LOSSY[name]).astype(int) - PHOTO).mean() < 8


@pytest.mark.parametrize("name", FILES)
def test_the_isolated_decoder_gives_the_same(name: str, isolated: IsolatedDecoder) -> None:
    result = isolated(FILES[name], [SAME_SIZE], Limits())
    assert isinstance(result, Decoded)
    assert np.array_equal(result.pixels[SAME_SIZE], pixels_of(FILES[name]))


def test_the_isolated_decoder_reads_tiff(isolated: IsolatedDecoder) -> None:
    data = written(np.moveaxis(DEEP, -1, 0), planarconfig="separate", compression="zstd")
    result = isolated(data, [SAME_SIZE], Limits())
    assert isinstance(result, Decoded)
    assert np.array_equal(result.pixels[SAME_SIZE], PHOTO)


@pytest.fixture(scope="module")
def isolated() -> Any:
    with IsolatedDecoder(60.0) as decoder:
        yield decoder


@pytest.mark.parametrize(
    "data",
    [
        imagecodecs.jpeg2k_encode(GREY, level=0, reversible=True),
        jxl(GREY),
        jxl(np.dstack([GREY, GREY[::-1]])),
        jxl(np.dstack([GREY] * 3 + [GREY[::-1]])),
        imagecodecs.jpegls_encode(GREY.astype(np.uint16) * 257),
    ],
)
def test_grey_is_repeated_and_alpha_dropped(data: bytes) -> None:
    assert np.array_equal(pixels_of(data), np.repeat(GREY[..., None], 3, axis=2))


def test_deep_grey_heif() -> None:
    data = heif(GREY.astype(np.uint16) * 257, "L;16")
    assert np.abs(pixels_of(data)[..., 0].astype(int) - GREY).mean() < 2


def test_signed_jpeg_2000_has_the_range_of_its_bits() -> None:
    signed = (DEEP.astype(int) - 32768).astype(np.int16)
    data = imagecodecs.jpeg2k_encode(signed, level=0, reversible=True)
    assert np.array_equal(pixels_of(data), PHOTO)


# ---- orientation


@pytest.mark.parametrize("orientation", INVERSE)
def test_the_orientation_of_avif_is_applied_once(orientation: int) -> None:
    stored = np.ascontiguousarray(INVERSE[orientation](PHOTO))
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(Image.fromarray(stored), "AVIF", quality=95, exif=exif)
    assert np.abs(pixels_of(data).astype(int) - PHOTO).mean() < 8
    assert read_image_info(data) == ImageInfo(stored.shape[:2], orientation)


@pytest.mark.parametrize("orientation", INVERSE)
def test_the_orientation_of_heif_is_applied_once(orientation: int) -> None:
    """The encoder turns the EXIF orientation into rotation and mirroring of the file itself."""
    stored = np.ascontiguousarray(INVERSE[orientation](PHOTO))
    exif = Image.Exif()
    exif[274] = orientation
    file = BytesIO()
    pillow_heif.register_heif_opener()
    Image.fromarray(stored).save(file, "HEIF", quality=95, exif=exif.tobytes())
    assert np.abs(pixels_of(file.getvalue()).astype(int) - PHOTO).mean() < 8


@pytest.mark.parametrize("orientation", INVERSE)
def test_the_orientation_of_jpeg_xl_is_applied_once(orientation: int) -> None:
    """The encoder copies the EXIF orientation of a JPEG into the codestream."""
    stored = np.ascontiguousarray(INVERSE[orientation](PHOTO))
    exif = Image.Exif()
    exif[274] = orientation
    jpeg = encode(Image.fromarray(stored), "JPEG", quality=95, subsampling=0, exif=exif)
    data = imagecodecs.jpegxl_encode_jpeg(jpeg)
    assert np.abs(pixels_of(data).astype(int) - PHOTO).mean() < 8
    assert read_image_info(data) == ImageInfo(stored.shape[:2], orientation)


# ---- limits and damage


@pytest.mark.parametrize("name", FILES)
def test_the_limit_of_pixels_is_inclusive(name: str) -> None:
    assert pixels_of(FILES[name], Limits(max_pixels=HEIGHT * WIDTH)).shape == PHOTO.shape
    failure = failure_of(FILES[name], Limits(max_pixels=HEIGHT * WIDTH - 1))
    assert failure.kind == "too_large"
    assert f"{WIDTH} x {HEIGHT} = {WIDTH * HEIGHT} pixels" in failure.message


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_fails(name: str) -> None:
    data = FILES[name]
    for twentieth in range(1, 20):
        failure = failure_of(data[: len(data) * twentieth // 20])
        assert failure.kind in ("truncated", "corrupt", "not_an_image")
    assert failure_of(data[: len(data) // 2]).kind == "truncated"


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_never_raise(name: str) -> None:
    rng = np.random.default_rng(len(name))
    for _ in range(25):
        result = decode(mutated(FILES[name], rng), [SAME_SIZE], Limits(max_pixels=2**20))
        if isinstance(result, Failure):
            check_failure(result)


def test_cmyk_and_many_bands_are_named() -> None:
    data = imagecodecs.jpeg2k_encode(np.dstack([PHOTO] * 2), level=0, planar=False)
    failure = failure_of(data)
    assert failure.kind == "unsupported"
    assert "6 components" in failure.message


def test_without_pillow_heif_a_heic_fails_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    failure = failure_of(LOSSY["heic"])
    assert failure.kind == "unsupported"
    assert "pillow-heif" in failure.message


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heif_of_another_codec_is_unsupported_or_damaged(brand: bytes) -> None:
    data = LOSSY["heic"].replace(b"hvc1", b"xxx1").replace(b"ftypheic", b"ftyp" + brand)
    assert failure_of(data).kind in ("unsupported", "corrupt")


def test_a_damaged_animation_is_not_a_damaged_first_frame() -> None:
    data = encode(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180)])
    start = data.index(b"fcTL", data.index(b"IDAT")) - 4
    assert np.array_equal(pixels_of(data[:start] + data[start + 38 :]), PHOTO)


def test_malformed_parts_beside_the_pixels_do_not_matter() -> None:
    jpeg, png = encode(RGB, "JPEG"), encode(RGB, "PNG")
    without_version = jpeg[:2] + b"\xff\xe0\0\x07JFIF\0" + jpeg[2:]
    assert np.array_equal(pixels_of(without_version), pixels_of(jpeg))
    profile = b"\0\0\0\x08iCCP" + b"name\0\1xx" + b"\0\0\0\0"  # compression method 1
    start = png.index(b"IDAT") - 4
    assert np.array_equal(pixels_of(png[:start] + profile + png[start:]), PHOTO)
