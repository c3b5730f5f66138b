"""Samples of any type become 8 bits by one rule in every format that holds them."""

from __future__ import annotations

import cv2
import imagecodecs
import numpy as np
import pytest

from cvbatch.images.bit_depth import PERCENTILES, to_8_bits
from cvbatch.images.decode import Limits
from tests.images.test_modern_formats import heif
from tests.images.test_tiff import written
from tests.support.encoded_images import HEIGHT, WIDTH, encode_opencv, failure_of, pixels_of

RNG = np.random.default_rng(3)
LOW, HIGH = 1000, 5000
# Ten levels per value of 8 bits in a sixteenth of the range of 16 bits, and some outliers
DEEP = RNG.normal(3000, 500, (HEIGHT, WIDTH, 3)).clip(0, 65535).astype(np.uint16)
DEEP[0, :3] = 0, 65535, 40000
FILES = {
    "png": encode_opencv(DEEP[..., ::-1], ".png"),
    "tiff": written(DEEP),
    "jpeg 2000": imagecodecs.jpeg2k_encode(DEEP, level=0, reversible=True),
    "jpeg xl": imagecodecs.jpegxl_encode(DEEP, lossless=True),
}


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return ((values.astype(float) - low) / (high - low)).clip(0, 1) * 255


@pytest.mark.parametrize("name", FILES)
def test_high_byte(name: str) -> None:
    assert np.array_equal(pixels_of(FILES[name]), DEEP >> 8)


@pytest.mark.parametrize("name", FILES)
def test_a_range(name: str) -> None:
    pixels = pixels_of(FILES[name], Limits(bit_depth=(LOW, HIGH)))
    assert np.abs(pixels - stretched(DEEP, LOW, HIGH)).max() <= 0.501


@pytest.mark.parametrize("name", FILES)
def test_percentiles_are_of_all_channels_together(name: str) -> None:
    pixels = pixels_of(FILES[name], Limits(bit_depth="percentile"))
    low, high = (np.sort(DEEP.ravel())[round(p / 100 * (DEEP.size - 1))] for p in PERCENTILES)
    assert np.abs(pixels - stretched(DEEP, low, high)).max() <= 1.5


def test_ten_bits_of_avif_and_heif_have_values_of_ten_bits() -> None:
    levels = np.broadcast_to(np.linspace(200, 400, WIDTH).astype(np.uint16), (HEIGHT, WIDTH))
    grey = np.ascontiguousarray(np.repeat(levels[..., None], 3, axis=2))
    avif = imagecodecs.avif_encode(grey, level=100, bitspersample=10)
    for data in (avif, heif(grey << 6, "RGB;16")):
        pixels = pixels_of(data, Limits(bit_depth=(200, 400)))
        assert np.abs(pixels - stretched(grey, 200, 400)).max() <= 6
        assert np.abs(pixels_of(data).astype(int) - (grey >> 2)).max() <= 2


@pytest.mark.parametrize("rule", ["percentile", (0.0, 10.0)])
@pytest.mark.parametrize("extension", [".png", ".jpg", ".tiff", ".webp"])
def test_eight_bits_stay_as_they_are(rule: str, extension: str) -> None:
    data = encode_opencv((DEEP >> 5).astype(np.uint8), extension)
    assert np.array_equal(pixels_of(data, Limits(bit_depth=rule)), pixels_of(data))  # type: ignore[arg-type]


TYPES = ["int8", "int16", "int32", "uint32", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", TYPES)
def test_types_without_a_known_range_need_a_rule(dtype: str) -> None:
    array = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 100).astype(dtype)
    data = written(array)
    failure = failure_of(data)
    assert failure.kind == "unsupported"
    assert "source.bit_depth" in failure.message
    assert str(np.dtype(dtype).itemsize * 8) in failure.message
    pixels = pixels_of(data, Limits(bit_depth=(10, 60)))
    assert np.abs(pixels[..., 0] - stretched(array, 10, 60)).max() <= 0.51
    assert pixels_of(data, Limits(bit_depth="percentile")).max() == 255


def test_values_that_are_no_numbers_are_clipped_and_do_not_count() -> None:
    array = np.linspace(-1, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.float32)
    array[0, :3] = np.nan, np.inf, -np.inf
    for rule in ("percentile", (-1.0, 1.0)):
        pixels = pixels_of(written(array), Limits(bit_depth=rule))  # type: ignore[arg-type]
        assert pixels[0, :3, 0].tolist() == [0, 255, 0]
        assert np.abs(pixels[1:, :, 0] - stretched(array[1:], -1, 1)).max() <= 3.5


@pytest.mark.parametrize("value", [0, 7, -3])
def test_one_value_is_black_and_few_objects_on_a_ground_are_seen(value: int) -> None:
    ground = np.full((20, 30, 1), value, np.int16)
    assert to_8_bits(ground, 16, "percentile").max() == 0
    ground[5, 5] = value + 90
    assert to_8_bits(ground, 16, "percentile")[5, 5, 0] == 255


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (1, 1, 1), (3000, 2000, 1)])
def test_any_size(shape: tuple[int, ...]) -> None:
    values = RNG.integers(0, 4096, shape, np.uint16)
    assert np.array_equal(to_8_bits(values, 12, "high_byte"), values >> 4)
    assert to_8_bits(values, 12, "percentile").shape == shape


def test_a_png_of_16_bits_with_alpha_drops_it() -> None:
    alpha = RNG.integers(0, 65536, (HEIGHT, WIDTH, 1), np.uint16)
    bgra = np.concatenate([DEEP[..., ::-1], alpha], axis=2)
    limits = Limits(bit_depth=(LOW, HIGH))
    data = cv2.imencode(".png", bgra)[1].tobytes()
    assert np.array_equal(pixels_of(data, limits), pixels_of(FILES["png"], limits))
