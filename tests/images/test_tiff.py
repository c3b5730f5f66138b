"""TIFF of every layout, sample type and compression gives the pixels that were written."""

from __future__ import annotations

import resource
import zlib
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from cvbatch.images.decode import Limits, decode
from cvbatch.images.orientation import ImageInfo, read_image_info
from tests.support.encoded_images import (
    HEIGHT,
    RGB,
    SAME_SIZE,
    WIDTH,
    encode,
    failure_of,
    photo,
    pixels_of,
    random_array,
)
from tests.support.tiff_files import (
    BITS,
    COLORS,
    COMPRESSION,
    EXTRA,
    INK_SET,
    ORIENTATION,
    PHOTOMETRIC,
    PLANAR,
    ROWS,
    SAMPLE_FORMAT,
    STRIP_BYTES,
    STRIP_OFFSETS,
    image_tags,
    pack_bits,
    write_tiff,
)

COLOR = random_array(HEIGHT, WIDTH, 4, dtype=np.uint16)
GREY = COLOR[..., 0]
NEAREST_HIGH = (COLOR >> 8).astype(np.uint8)
ORDERS = ["<", ">"]


def written(array: np.ndarray, **options: Any) -> bytes:
    """Return an array written by tifffile."""
    file = BytesIO()
    options.setdefault("photometric", "rgb" if array.ndim == 3 else "minisblack")
    tifffile.imwrite(file, array, metadata=None, **options)
    return file.getvalue()


def grey3(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[..., None], 3, axis=2)


def in_strips(values: np.ndarray, rows: int, order: str, bits: int) -> list[bytes]:
    strips = [values[i : i + rows] for i in range(0, len(values), rows)]
    if bits % 8:
        return [pack_bits(strip, bits) for strip in strips]
    return [strip.astype(f"{order}u{bits // 8}").tobytes() for strip in strips]


def cmyk_to_rgb(cmyk: np.ndarray) -> np.ndarray:
    """Multiply each colour with what black ink lets through."""
    ink = 255 - cmyk.astype(int)
    return ink[..., :3] * ink[..., 3:] / 255


# ---- layouts


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 7}, {"tile": (16, 32)}])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_do_not_depend_on_the_layout(
    order: str, planar: str, layout: dict[str, Any], channels: int, dtype: type
) -> None:
    array = COLOR[..., :channels] if dtype == np.uint16 else NEAREST_HIGH[..., :channels]
    stored = np.moveaxis(array, -1, 0) if planar == "separate" else array
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    data = written(stored, byteorder=order, planarconfig=planar, **layout, **extra)
    assert np.array_equal(pixels_of(data), NEAREST_HIGH[..., :3])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("is_big", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("is_white_zero", [False, True])
def test_grey_of_any_bits_is_scaled_by_the_bits_declared(
    order: str, is_big: bool, bits: int, is_white_zero: bool
) -> None:
    largest = 2**bits - 1
    levels = GREY >> (16 - bits)
    stored = largest - levels if is_white_zero else levels
    tags = image_tags(HEIGHT, WIDTH, bits, 1, 0 if is_white_zero else 1) | {ROWS: ("I", [5])}
    data = write_tiff(tags, in_strips(stored, 5, order, bits), order, is_big)
    if bits > 8:
        expected = levels >> (bits - 8)
    else:
        expected = levels.astype(int) * 255 // largest
        if is_white_zero:
            expected = 255 - stored.astype(int) * 255 // largest
    assert np.array_equal(pixels_of(data), grey3(expected))


@pytest.mark.parametrize("bits", [5, 10, 12, 14])
def test_packed_rgb(bits: int) -> None:
    levels = COLOR[..., :3] >> (16 - bits)
    data = write_tiff(image_tags(HEIGHT, WIDTH, bits, 3, 2), in_strips(levels, HEIGHT, "<", bits))
    expected = levels >> (bits - 8) if bits > 8 else levels.astype(int) * 255 // (2**bits - 1)
    assert np.array_equal(pixels_of(data), expected)


LOSSLESS = ["lzw", "deflate", "adobe_deflate", "packbits", "lzma", "zstd", "lerc", "png"]


@pytest.mark.parametrize("compression", LOSSLESS)
@pytest.mark.parametrize("layout", [{"rowsperstrip": 10}, {"tile": (16, 16)}])
def test_lossless_compressions(compression: str, layout: dict[str, Any]) -> None:
    data = written(NEAREST_HIGH[..., :3], compression=compression, **layout)
    assert np.array_equal(pixels_of(data), NEAREST_HIGH[..., :3])


@pytest.mark.parametrize("compression", ["jpeg", "webp", "jpeg2000", "jpegxl"])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 16}, {"tile": (16, 32)}])
def test_images_inside_tiff(compression: str, layout: dict[str, Any]) -> None:
    data = written(np.asarray(RGB), compression=compression, **layout)
    assert np.abs(pixels_of(data).astype(int) - np.asarray(RGB)).mean() < 6


@pytest.mark.parametrize("predictor", [2, 3])
def test_predictors(predictor: int) -> None:
    array = GREY if predictor == 2 else GREY.astype(np.float32)
    data = written(array, compression="deflate", predictor=predictor, rowsperstrip=9)
    limits = Limits(bit_depth=(0.0, 65535.0))
    assert np.abs(pixels_of(data, limits)[..., 0] - GREY / 257).max() <= 0.51


# ---- colour


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_cmyk(dtype: type, planar: str) -> None:
    array = COLOR if dtype == np.uint16 else NEAREST_HIGH
    stored = np.moveaxis(array, -1, 0) if planar == "separate" else array
    data = written(stored, photometric="separated", planarconfig=planar)
    assert np.abs(pixels_of(data) - cmyk_to_rgb(NEAREST_HIGH)).max() <= 1


@pytest.mark.parametrize("shift", [8, 0])
def test_a_palette_of_16_or_8_bits(shift: int) -> None:
    colors = random_array(3, 256)
    tags = image_tags(HEIGHT, WIDTH, 8, 1, 3)
    tags[COLORS] = ("H", (colors.astype(int) << shift).ravel().tolist())
    index = NEAREST_HIGH[..., 0]
    assert np.array_equal(pixels_of(write_tiff(tags, [index.tobytes()])), colors.T[index])


@pytest.mark.parametrize(("photometric", "offset"), [(8, 0), (9, 128)])
@pytest.mark.parametrize("bits", [8, 16])
def test_lab(photometric: int, offset: int, bits: int) -> None:
    """L* = 53.2, a* = 80, b* = 67 is pure red of sRGB, under D65; D50 moves it a little."""
    lab = np.array([136, (80 + offset) % 256, (67 + offset) % 256], np.uint8)
    pixels = np.broadcast_to(lab, (HEIGHT, WIDTH, 3)).astype(f"<u{bits // 8}") << (bits - 8)
    tags = image_tags(HEIGHT, WIDTH, bits, 3, photometric)
    red = pixels_of(write_tiff(tags, [np.ascontiguousarray(pixels).tobytes()]))[0, 0].astype(int)
    assert np.abs(red - [255, 0, 0]).max() < 40


def test_subsampled_ycbcr_without_jpeg() -> None:
    """One colour in blocks of 2 x 2: four luma values, then Cb and Cr (BT.601)."""
    y, cb, cr = 120, 90, 200
    blocks = bytes([y] * 4 + [cb, cr]) * (HEIGHT * WIDTH // 4)
    tags = image_tags(HEIGHT, WIDTH, 8, 3, 6) | {530: ("H", [2, 2])}
    expected = [y + 1.402 * (cr - 128), y - 0.344 * (cb - 128) - 0.714 * (cr - 128)]
    expected.append(y + 1.772 * (cb - 128))
    assert np.abs(pixels_of(write_tiff(tags, [blocks])) - np.array(expected)).max() < 2


def test_associated_alpha_is_divided_out_and_other_alpha_dropped() -> None:
    colors, alpha = NEAREST_HIGH[..., :3].astype(int), NEAREST_HIGH[..., 3:].astype(int) | 128
    stored = np.concatenate([colors * alpha // 255, alpha], axis=2).astype(np.uint8)
    for kind, expected in ((1, colors), (2, stored[..., :3]), (0, stored[..., :3])):
        tags = image_tags(HEIGHT, WIDTH, 8, 4, 2) | {EXTRA: ("H", [kind])}
        pixels = pixels_of(write_tiff(tags, [stored.tobytes()]))
        assert np.abs(pixels - expected).max() <= 2


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("bit_depth", [(0.25, 0.75), "percentile"])
def test_deep_colours_are_divided_by_alpha_before_they_are_stretched(
    dtype: Any, bit_depth: Any
) -> None:
    opaque = 65535 if dtype == np.uint16 else 1.0
    colors = COLOR[..., :3] / 65535
    alpha = 0.5 + COLOR[..., 3:] / 131070
    stored = (np.concatenate([colors * alpha, alpha], axis=2) * opaque).astype(dtype)
    low, high = np.percentile(colors, (1, 99)) if bit_depth == "percentile" else bit_depth
    limits = bit_depth if bit_depth == "percentile" else (low * opaque, high * opaque)
    pixels = pixels_of(written(stored, extrasamples=["assocalpha"]), Limits(bit_depth=limits))
    expected = ((colors - low) / (high - low) * 255).clip(0, 255)
    assert np.abs(pixels - expected).max() <= 1


@pytest.mark.parametrize("bands", [3, 5])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_bands_that_are_not_rgb_are_refused(bands: int, planar: str) -> None:
    array = random_array(HEIGHT, WIDTH, bands)
    stored = np.moveaxis(array, -1, 0) if planar == "separate" else array
    data = written(stored, photometric="minisblack", planarconfig=planar)
    failure = failure_of(data)
    assert failure.kind == "unsupported"
    assert f"{bands} bands" in failure.message


def test_rgb_with_further_bands_is_rgb() -> None:
    array = random_array(HEIGHT, WIDTH, 6)
    data = written(array, photometric="rgb", extrasamples=["unspecified"] * 3)
    assert np.array_equal(pixels_of(data), array[..., :3])


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        ({PHOTOMETRIC: ("H", [32803])}, "raw photographs"),
        ({50706: ("B", [1, 4, 0, 0])}, "raw photographs"),
        ({PHOTOMETRIC: ("H", [5]), INK_SET: ("H", [2])}, "inks"),
        ({32997: ("I", [5])}, "5 slices"),
        ({COMPRESSION: ("H", [22610])}, "JPEG XR"),
        ({COMPRESSION: ("H", [9999])}, "compression 9999"),
        ({SAMPLE_FORMAT: ("H", [6, 6, 6]), BITS: ("H", [32] * 3)}, "not read"),
    ],
)
def test_what_is_not_read_is_named(tags: dict[int, Any], name: str) -> None:
    data = write_tiff(image_tags(HEIGHT, WIDTH, 8, 3, 2) | tags, [bytes(5 * HEIGHT * WIDTH * 12)])
    failure = failure_of(data)
    assert failure.kind == "unsupported"
    assert name in failure.message


# ---- orientation

INVERSE = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", INVERSE)
@pytest.mark.parametrize("layout", [{"rowsperstrip": 5}, {"tile": (16, 16)}])
def test_every_orientation_becomes_upright(orientation: int, layout: dict[str, Any]) -> None:
    upright = np.asarray(RGB)
    stored = np.ascontiguousarray(INVERSE[orientation](upright))
    data = written(stored, extratags=[(ORIENTATION, 3, 1, orientation, True)], **layout)
    assert np.array_equal(pixels_of(data), upright)
    assert read_image_info(data) == ImageInfo(stored.shape[:2], orientation)


# ---- missing and damaged

STRIP_FILE = written(NEAREST_HIGH[..., :3], rowsperstrip=8)


def without_strips(rows_stored: int, is_zero: bool) -> bytes:
    strips = in_strips(NEAREST_HIGH[..., :3], 8, "<", 8)
    number = rows_stored // 8
    kept = strips[:number] + ([b""] * (len(strips) - number) if is_zero else [])
    return write_tiff(image_tags(HEIGHT, WIDTH, 8, 3, 2) | {ROWS: ("I", [8])}, kept)


@pytest.mark.parametrize("is_zero", [False, True])
@pytest.mark.parametrize("rows_stored", [8, 32, 40])
def test_missing_strips_are_truncated_never_black(is_zero: bool, rows_stored: int) -> None:
    failure = failure_of(without_strips(rows_stored, is_zero))
    assert failure.kind == "truncated"
    assert f"{(HEIGHT - rows_stored) // 8} of its {HEIGHT // 8} strips" in failure.message


def test_all_strips_of_that_file_would_be_read() -> None:
    data = without_strips(HEIGHT, True)
    assert np.array_equal(pixels_of(data), NEAREST_HIGH[..., :3])


def test_a_strip_that_ends_early_is_truncated() -> None:
    strips = in_strips(NEAREST_HIGH[..., :3], HEIGHT, "<", 8)
    for packed in (strips[0][:-10], zlib.compress(strips[0][:-10])):
        tags = image_tags(HEIGHT, WIDTH, 8, 3, 2)
        if len(packed) != len(strips[0]) - 10:
            tags[COMPRESSION] = ("H", [8])
        assert failure_of(write_tiff(tags, [packed])).kind in ("truncated", "corrupt")


def test_missing_tiles_of_a_sparse_file_have_its_nodata_value() -> None:
    strips = in_strips(GREY >> 8, 8, "<", 8)
    strips[2] = b""
    tags = image_tags(HEIGHT, WIDTH, 8, 1, 1) | {ROWS: ("I", [8])}
    assert failure_of(write_tiff(tags, strips)).kind == "truncated"
    nodata = b"77\0"
    tags[42113] = ("B", list(nodata))
    expected = (GREY >> 8).copy()
    expected[16:24] = 77
    data = bytearray(write_tiff(tags, strips))
    position = data.index(b"\x81\xa4\x01\x00")  # the tag as ASCII instead of BYTE
    data[position + 2] = 2
    assert np.array_equal(pixels_of(bytes(data)), grey3(expected))


def test_a_single_strip_may_have_no_byte_count() -> None:
    values = NEAREST_HIGH[..., :3]
    tags = image_tags(HEIGHT, WIDTH, 8, 3, 2) | {STRIP_BYTES: ("I", [0])}
    assert np.array_equal(pixels_of(write_tiff(tags, [values.tobytes()])), values)


# ---- limits


@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        ({322: ("I", [60_000]), 323: ("I", [60_000])}, "too_large"),
        ({277: ("H", [60_000])}, "truncated"),
        ({256: ("I", [60_000]), 257: ("I", [60_000])}, "too_large"),
        ({256: ("I", [9_000]), 257: ("I", [9_000])}, "truncated"),
        ({STRIP_OFFSETS: ("I", [1 << 31])}, "truncated"),
    ],
)
def test_declared_sizes_take_no_memory(tags: dict[int, Any], kind: str) -> None:
    data = write_tiff(image_tags(HEIGHT, WIDTH, 8, 3, 2) | tags, [bytes(HEIGHT * WIDTH * 3)])
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert failure_of(data).kind == kind
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 30_000


@pytest.mark.parametrize("compression", [8, 32773, 34925, 50000])
def test_a_strip_that_inflates_to_more_than_its_rows_takes_no_memory(compression: int) -> None:
    encoders: dict[int, Any] = {
        8: lambda data: zlib.compress(data, 9),
        32773: lambda data: b"\x81\0" * (len(data) // 128),
        34925: imagecodecs.lzma_encode,
        50000: imagecodecs.zstd_encode,
    }
    strip = encoders[compression](bytes(100_000_000))
    tags = image_tags(HEIGHT, WIDTH, 8, 3, 2) | {COMPRESSION: ("H", [compression])}
    data = write_tiff(tags, [strip])
    del strip
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decode(data, [SAME_SIZE], Limits())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 30_000


EMBEDDED: dict[int, Any] = {
    7: lambda image: encode(image, "JPEG"),
    50001: lambda image: encode(image, "WEBP", lossless=True),
    33005: lambda image: encode(image, "JPEG2000"),
    34933: lambda image: encode(image, "PNG"),
    50002: lambda image: imagecodecs.jpegxl_encode(np.asarray(image)),
    34887: lambda image: imagecodecs.lerc_encode(np.asarray(image)),
}


@pytest.mark.parametrize("compression", EMBEDDED)
def test_an_image_inside_that_ends_early_is_not_filled_in(compression: int) -> None:
    image = EMBEDDED[compression](RGB)
    photometric = 6 if compression == 7 else 2
    tags = image_tags(HEIGHT, WIDTH, 8, 3, photometric) | {COMPRESSION: ("H", [compression])}
    assert np.abs(pixels_of(write_tiff(tags, [image])).astype(int) - np.asarray(RGB)).mean() < 8
    for tenth in range(1, 10):
        cut = write_tiff(tags, [image[: len(image) * tenth // 10]])
        assert failure_of(cut).kind in ("truncated", "corrupt")


@pytest.mark.parametrize("compression", EMBEDDED)
def test_an_image_inside_has_the_limit_of_an_image(compression: int) -> None:
    tags = image_tags(HEIGHT, WIDTH, 8, 3, 2) | {COMPRESSION: ("H", [compression])}
    data = write_tiff(tags, [EMBEDDED[compression](photo(200, 300))])
    failure = failure_of(data, Limits(max_pixels=200 * 300 - 1))
    assert failure.kind == "too_large"
    assert "300 x 200 = 60000 pixels" in failure.message


def test_only_the_first_page_is_read() -> None:
    pages = np.stack([NEAREST_HIGH[..., :3], np.asarray(RGB)])
    data = written(pages, photometric="rgb")
    assert np.array_equal(pixels_of(data), NEAREST_HIGH[..., :3])


def test_planes_in_one_file_with_any_number_of_strips() -> None:
    planes = np.moveaxis(COLOR[..., :3], -1, 0)
    tags = image_tags(HEIGHT, WIDTH, 16, 3, 2) | {PLANAR: ("H", [2]), ROWS: ("I", [10])}
    strips = [strip for plane in planes for strip in in_strips(plane, 10, ">", 16)]
    assert np.array_equal(pixels_of(write_tiff(tags, strips, ">")), NEAREST_HIGH[..., :3])
