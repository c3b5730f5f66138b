"""Laws of decoding: Pillow's own upright RGB is the oracle, and no bytes whatever raise."""

from __future__ import annotations

import resource
import struct
import zlib
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from cvbatch.core.types import Decoded, EncodedImage, Failure, ImageBatch, InputKey, Tiling
from cvbatch.geometry.resize import resize_image
from cvbatch.geometry.tiling import count_tiles, tile_placements
from cvbatch.images.decode import Limits, decode, decode_images

HEIGHT, WIDTH = 48, 64
SAME_SIZE = InputKey(HEIGHT, WIDTH, "stretch")


def photo(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Image.Image:
    """Return blobs of colour with a little noise: compresses and reduces like a photograph."""
    rng = np.random.default_rng(seed)
    blobs = rng.integers(0, 256, (6, 8, 3), np.uint8)
    smooth = cv2.resize(blobs, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    noisy = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255)
    return Image.fromarray(noisy.astype(np.uint8))


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def encode_opencv(array: np.ndarray, extension: str) -> bytes:
    return cv2.imencode(extension, array)[1].tobytes()


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(7).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


RGB = photo()
GREY = RGB.convert("L")
ALPHA = Image.fromarray(noise(HEIGHT, WIDTH))
RGBA = RGB.copy()
RGBA.putalpha(ALPHA)
GREY_ALPHA = GREY.copy()
GREY_ALPHA.putalpha(ALPHA)
PALETTE = RGB.quantize(200)
TURNED = [RGB, RGB.rotate(180)]
ANIMATED = {"save_all": True, "append_images": TURNED[1:]}

EXACT = {
    "png": encode(RGB, "PNG"),
    "png grey": encode(GREY, "PNG"),
    "png grey alpha": encode(GREY_ALPHA, "PNG"),
    "png alpha": encode(RGBA, "PNG"),
    "png 1-bit": encode(RGB.convert("1"), "PNG"),
    "png palette": encode(PALETTE, "PNG"),
    "png palette of 4 bits": encode(RGB.quantize(16), "PNG"),
    "png palette, one transparent": encode(PALETTE, "PNG", transparency=3),
    "png palette, half transparent": encode(PALETTE, "PNG", transparency=bytes(range(200))),
    "png transparent colour": encode(RGB, "PNG", transparency=(1, 2, 3)),
    "png animated": encode(RGB, "PNG", **ANIMATED),
    "png animated, picture apart": encode(
        RGB, "PNG", save_all=True, default_image=True, append_images=TURNED[::-1]
    ),
    "webp": encode(RGB, "WEBP"),
    "webp lossless": encode(RGB, "WEBP", lossless=True),
    "webp alpha": encode(RGBA, "WEBP", lossless=True, exact=True),
    "webp animated": encode(RGBA, "WEBP", lossless=True, **ANIMATED),
    "gif": encode(PALETTE, "GIF"),
    "gif transparent": encode(PALETTE, "GIF", transparency=3),
    "gif animated": encode(RGB, "GIF", **ANIMATED),
    "bmp": encode(RGB, "BMP"),
    "bmp grey": encode(GREY, "BMP"),
    "bmp palette": encode(PALETTE, "BMP"),
    "bmp alpha": encode(RGBA, "BMP"),
    "bmp 1-bit": encode(RGB.convert("1"), "BMP"),
    "tiff": encode(RGB, "TIFF"),
    "tiff lzw": encode(RGB, "TIFF", compression="tiff_lzw"),
    "tiff deflate": encode(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "tiff jpeg": encode(RGB, "TIFF", compression="jpeg"),
    "tiff big": encode(RGB, "TIFF", big_tiff=True),
    "tiff alpha": encode(RGBA, "TIFF"),
    "tiff palette": encode(PALETTE, "TIFF"),
    "tiff cmyk": encode(RGB.convert("CMYK"), "TIFF"),
    "tiff fax": encode(RGB.convert("1"), "TIFF", compression="group4"),
}
JPEGS = {
    "jpeg": encode(RGB, "JPEG"),
    "jpeg progressive": encode(RGB, "JPEG", progressive=True),
    "jpeg grey": encode(GREY, "JPEG"),
    "jpeg 4:4:4": encode(RGB, "JPEG", subsampling=0),
    "jpeg with restarts": encode(RGB, "JPEG", restart_marker_rows=1),
    "jpeg cmyk": encode(RGB.convert("CMYK"), "JPEG"),
    "jpeg of two pictures": encode(RGB, "MPO", **ANIMATED),
}


def pixels_of(data: bytes, limits: Limits = Limits()) -> np.ndarray:  # noqa: B008 - frozen
    """Return the pixels at the image's own size, which is that of `SAME_SIZE`."""
    decoded = decode(data, [SAME_SIZE], limits)
    if isinstance(decoded, Failure):
        pytest.fail(f"not decoded: {decoded}")
    return decoded.pixels[SAME_SIZE]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def oracle(data: bytes) -> np.ndarray:
    with Image.open(BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def failure_of(data: bytes, limits: Limits = Limits()) -> Failure:  # noqa: B008 - frozen
    failure = decode(data, [SAME_SIZE], limits)
    if isinstance(failure, Decoded):
        pytest.fail("decoded, though it should have failed")
    check_failure(failure)
    return failure


def check_failure(failure: Failure) -> None:
    kinds = {"empty", "not_an_image", "unsupported", "too_large", "truncated", "corrupt"}
    assert failure.stage == "decode"
    assert failure.kind in kinds
    assert 0 < len(failure.message) <= 300
    assert failure.message.isascii() and failure.message.isprintable()
    assert " at 0x" not in failure.message


# ---- what cannot be decoded


def test_no_bytes() -> None:
    assert failure_of(b"") == Failure("decode", "empty", "the file has no bytes")


@pytest.mark.parametrize(
    "data", [b"\xff", b"hello, world", b"<html></html>", b"BMW is a car maker", bytes(1000)]
)
def test_what_is_no_image(data: bytes) -> None:
    assert failure_of(data).kind == "not_an_image"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encode(RGB, "AVIF"), "AVIF"),
        (encode(RGB, "JPEG2000"), "JPEG 2000"),
        (encode(RGB, "PPM"), "Netpbm"),
        (encode(RGB, "ICO", sizes=[(16, 16)]), "icon"),
        (encode(RGB, "EPS"), "PostScript"),
        (encode(RGB, "PDF"), "PDF"),
        (b"8BPS\0\1" + bytes(50), "Photoshop"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "32-bit"),
        (encode(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"), "32-bit"),
        (encode_opencv(np.ones((4, 4, 3), np.float32), ".tiff"), "TIFF"),
        (
            encode(RGB, "TIFF").replace(
                struct.pack("<HHIHH", 259, 3, 1, 1, 0), struct.pack("<HHIHH", 259, 3, 1, 34712, 0)
            ),
            "compression 34712",
        ),
    ],
)
def test_images_of_kinds_that_are_not_read(data: bytes, name: str) -> None:
    failure = failure_of(data)
    assert failure.kind == "unsupported"
    assert name in failure.message


# ---- pixels


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_pixels_are_pillows(name: str) -> None:
    assert np.array_equal(pixels_of(EXACT[name]), oracle(EXACT[name]))


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_pixels_are_pillows_within_rounding(name: str) -> None:
    difference = np.abs(pixels_of(JPEGS[name]).astype(int) - oracle(JPEGS[name]))
    assert difference.max() <= 2


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_of_16_bits_the_high_byte_is_kept(extension: str, channels: int) -> None:
    array = noise(HEIGHT, WIDTH, channels, dtype=np.uint16)
    high = (array >> 8).astype(np.uint8)
    expected = np.repeat(high, 3, axis=2) if channels == 1 else high[..., 2::-1]
    assert np.array_equal(pixels_of(encode_opencv(array, extension)), expected)


def test_pillow_writes_16_bits_too() -> None:
    array = noise(HEIGHT, WIDTH, dtype=np.uint16)
    for data in (encode(Image.fromarray(array), "TIFF"), encode(Image.fromarray(array), "PNG")):
        assert np.array_equal(pixels_of(data)[..., 1], array >> 8)


# ---- orientation

UNDO = {  # what a camera held that way stores
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def oriented(orientation: int, format: str, **options: object) -> bytes:
    method = UNDO[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    stored = RGB if method is None else RGB.transpose(method)
    return encode(stored, format, exif=exif, **options)


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]
)
def test_every_orientation_is_upright(
    orientation: int, format: str, options: dict[str, object]
) -> None:
    data = oriented(orientation, format, **options)
    decoded = decode(data, [SAME_SIZE], Limits())
    assert isinstance(decoded, Decoded)
    assert (decoded.height, decoded.width) == (HEIGHT, WIDTH)
    assert np.array_equal(decoded.pixels[SAME_SIZE], np.asarray(RGB))


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
def test_orientation_of_compressed_tiff(orientation: int, compression: str) -> None:
    data = oriented(orientation, "TIFF", compression=compression)
    assert np.array_equal(pixels_of(data), oracle(data))


@pytest.mark.parametrize("orientation", UNDO)
def test_every_orientation_of_a_reduced_jpeg_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    upright = photo(480, 640)
    method = UNDO[orientation]
    stored = upright if method is None else upright.transpose(method)
    key = InputKey(60, 80, "stretch")
    decoded = decode(encode(stored, "JPEG", quality=95, exif=exif), [key], Limits())
    assert isinstance(decoded, Decoded)
    assert (decoded.height, decoded.width) == (480, 640)
    expected = cv2.resize(np.asarray(upright), (80, 60), interpolation=cv2.INTER_AREA)
    assert np.abs(decoded.pixels[key].astype(int) - expected).mean() < 2


def test_orientation_after_the_pixels_of_a_png() -> None:
    data = encode(RGB, "PNG")
    exif = Image.Exif()
    exif[274] = 3
    end = data.rindex(b"IEND") - 4
    data = data[:end] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[end:]
    assert np.array_equal(pixels_of(data), oracle(data))
    assert np.array_equal(pixels_of(data), np.asarray(RGB)[::-1, ::-1])


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\3\0\0\0\1\0\6\0\0" * 3,
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0",  # orientation 99
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\2six\0\0\0\0\0",  # as text
    ],
)
def test_bad_exif_fails_nothing(exif: bytes) -> None:
    for format in ("JPEG", "PNG", "WEBP"):
        assert pixels_of(encode(RGB, format, exif=exif)).shape == (HEIGHT, WIDTH, 3)


# ---- reduced JPEGs


@pytest.mark.parametrize("mode", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("size_hw", [(37, 53), (100, 100), (150, 200), (301, 401)])
def test_reduced_looks_like_full(mode: str, size_hw: tuple[int, int]) -> None:
    data = encode(photo(603, 805), "JPEG", quality=95)
    key = InputKey(*size_hw, mode)  # type: ignore[arg-type]
    reduced = decode(data, [key], Limits())
    full = decode(data, [key], Limits(reduced_jpeg=False))
    assert isinstance(reduced, Decoded) and isinstance(full, Decoded)
    assert (reduced.height, reduced.width) == (full.height, full.width) == (603, 805)
    difference = np.abs(reduced.pixels[key].astype(int) - full.pixels[key])
    assert difference.mean() < 3


def test_a_network_that_needs_all_pixels_gets_them() -> None:
    data = encode(photo(480, 640), "JPEG")
    small, whole = InputKey(40, 40, "stretch"), InputKey(480, 640, "stretch")
    decoded = decode(data, [small, whole], Limits())
    assert isinstance(decoded, Decoded)
    assert np.abs(decoded.pixels[whole].astype(int) - oracle(data)).max() <= 2


# ---- truncated and damaged

WHOLE = {
    name: data
    for name, data in (EXACT | JPEGS).items()
    if "animated" not in name and "two pictures" not in name
}


@pytest.mark.parametrize("name", WHOLE)
def test_cut_at_every_tenth(name: str) -> None:
    data = WHOLE[name]
    intact = pixels_of(data)
    for tenth in range(1, 10):
        result = decode(data[: len(data) * tenth // 10], [SAME_SIZE], Limits())
        if isinstance(result, Failure):
            check_failure(result)
            assert result.kind in ("truncated", "corrupt")
        else:
            assert np.array_equal(result.pixels[SAME_SIZE], intact)


@pytest.mark.parametrize(
    "name", ["jpeg", "jpeg progressive", "png", "webp", "webp lossless", "gif", "bmp", "tiff"]
)
def test_cut_in_the_middle_is_called_truncated(name: str) -> None:
    assert failure_of(WHOLE[name][: len(WHOLE[name]) // 2]).kind == "truncated"


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "jpeg grey", "jpeg with restarts"])
def test_every_cut_of_a_jpeg_is_noticed_also_when_filled_with_zeros(name: str) -> None:
    data = JPEGS[name]
    for length in range(3, len(data) - 2, 17):
        assert failure_of(data[:length]).kind == "truncated"
        assert failure_of(data[:length].ljust(2 * len(data), b"\0")).kind == "truncated"


@pytest.mark.parametrize("name", [name for name in WHOLE if not name.startswith("tiff")])
def test_bytes_after_the_end_do_no_harm(name: str) -> None:
    data = WHOLE[name]
    assert np.array_equal(pixels_of(data + b"and a film of two seconds" * 9), pixels_of(data))


def test_a_damaged_png_is_corrupt() -> None:
    data = bytearray(EXACT["png"])
    data[len(data) // 2] ^= 0x10
    assert failure_of(bytes(data)).kind == "corrupt"


# ---- limits


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def gif_that_claims(width: int, height: int) -> bytes:
    data = bytearray(EXACT["gif"])
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_that_claims(width: int, height: int) -> bytes:
    data = bytearray(encode(RGBA, "WEBP", exif=b"Exif\0\0"))
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def tiff_that_claims(width: int, height: int) -> bytes:
    data = EXACT["tiff"]
    start = data.index(struct.pack("<HHI", 256, 4, 1))
    entry = struct.pack("<HHII", 256, 4, 1, width) + struct.pack("<HHII", 257, 4, 1, height)
    return data[:start] + entry + data[start + 24 :]


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = bytearray(JPEGS["jpeg"])
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_that_claims(width: int, height: int) -> bytes:
    data = bytearray(EXACT["bmp"])
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


LIARS = [
    png_that_claims, gif_that_claims, webp_that_claims, tiff_that_claims, jpeg_that_claims,
    bmp_that_claims,
]  # fmt: skip


@pytest.mark.parametrize("claim", LIARS)
@pytest.mark.parametrize("size", [(60_000, 60_000), (12_000, 10_000)])
def test_bombs_are_refused_from_their_header(claim, size: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failure = failure_of(claim(*size))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if claim is webp_that_claims and failure.kind == "corrupt":
        assert size == (12_000, 10_000)  # the library sees that picture and canvas differ
    else:
        assert failure.kind == "too_large"
        assert str(size[0] * size[1]) in failure.message
    assert grown_kib < 30_000


@pytest.mark.parametrize(
    "claim", [png_that_claims, webp_that_claims, tiff_that_claims, bmp_that_claims]
)
def test_headers_that_claim_more_than_there_is_fail(claim) -> None:  # type: ignore[no-untyped-def]
    check_failure(failure_of(claim(WIDTH * 3, HEIGHT * 3)))


def test_a_chunk_that_claims_gigabytes_takes_none() -> None:
    data = bytearray(EXACT["png"])
    start = data.index(b"IDAT") - 4
    data[start : start + 4] = b"\x7f\xff\xff\xf0"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert np.array_equal(pixels_of(bytes(data)), np.asarray(RGB))  # Pillow reads on to the end
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_more_pixels_than_the_limit_are_refused_in_every_format(name: str) -> None:
    failure = failure_of(WHOLE[name], Limits(max_pixels=HEIGHT * WIDTH - 1))
    assert failure.kind == "too_large"
    assert f"{WIDTH} x {HEIGHT} = {WIDTH * HEIGHT} pixels" in failure.message


def test_limits_are_met_exactly_and_named() -> None:
    data = EXACT["png"]
    fits = Limits(max_bytes=len(data), max_pixels=HEIGHT * WIDTH)
    assert isinstance(decode(data, [SAME_SIZE], fits), Decoded)
    for limits, key, value in (
        (Limits(max_bytes=len(data) - 1), "source.max_bytes", len(data)),
        (Limits(max_pixels=HEIGHT * WIDTH - 1), "source.max_pixels", HEIGHT * WIDTH),
    ):
        failure = failure_of(data, limits)
        assert failure.kind == "too_large"
        assert key in failure.message
        assert str(value) in failure.message and str(value - 1) in failure.message


def test_pillows_own_limit_does_not_interfere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # warns over 10, refuses over 20
    for name in ("jpeg", "jpeg cmyk", "png", "bmp", "gif"):
        assert pixels_of((EXACT | JPEGS)[name]).shape == (HEIGHT, WIDTH, 3)


# ---- anything at all


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Return the bytes with a few flipped, cut out or put in, most of them near an end."""
    result = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        near = min(len(result), 400) if rng.random() < 0.7 else len(result)
        at = int(rng.integers(near))
        at = at if rng.random() < 0.7 else len(result) - 1 - at
        match rng.integers(4):
            case 0:
                result[at] ^= 1 << int(rng.integers(8))
            case 1:
                del result[at : at + int(rng.integers(1, 20))]
            case 2:
                result[at:at] = rng.bytes(int(rng.integers(1, 20)))
            case _:
                result[at : at + 4] = rng.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4])
    return bytes(result)


@pytest.mark.parametrize("name", EXACT | JPEGS)
def test_no_bytes_raise(name: str) -> None:
    rng = np.random.default_rng(len(name))
    data = (EXACT | JPEGS)[name]
    for _ in range(40):
        broken = mutated(data, rng)
        result = decode(broken, [SAME_SIZE], Limits(max_pixels=2**20))
        if isinstance(result, Failure):
            check_failure(result)
            assert decode(broken, [SAME_SIZE], Limits(max_pixels=2**20)) == result
        else:
            assert result.pixels[SAME_SIZE].shape == (HEIGHT, WIDTH, 3)


def test_random_bytes_behind_a_signature_do_not_raise() -> None:
    rng = np.random.default_rng(3)
    for data in (EXACT | JPEGS).values():
        for kept in (2, 8, 16, 32):
            check_failure(failure_of(data[:kept] + rng.bytes(300)))


# ---- batches

GOOD = JPEGS["jpeg"]
OTHER_SIZE = InputKey(20, 30, "letterbox")


def batches_of(pattern: str, batch_size: int) -> list[ImageBatch]:
    """Return the batches of images in a row: "o" is one that decodes, "x" one that fails."""
    images = [
        EncodedImage(f"{i}", f"file:{i}", encode(photo(seed=i), "JPEG") if sign == "o" else b"no")
        for i, sign in enumerate(pattern)
    ]
    keys = [SAME_SIZE, OTHER_SIZE]
    return list(decode_images(images, keys, Limits(), "c0", batch_size))


def test_nothing_in_no_batch_out() -> None:
    assert batches_of("", 2) == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    "pattern", ["o", "x", "xxx", "ooo", "oooo", "oxoxo", "xxoooxxx", "ooxx", "xoox", "ooxxooxx"]
)
def test_batches_hold_every_image_once_in_order(pattern: str, batch_size: int) -> None:
    batches = batches_of(pattern, batch_size)
    assert [i for batch in batches for i in batch.image_id] == [str(i) for i in range(len(pattern))]
    assert all(len(batch.decoded) == batch_size for batch in batches[:-1])
    assert len(batches) == max(1, -(-pattern.count("o") // batch_size))
    for batch in batches:
        assert batch.chunk_id == "c0"
        assert batch.uri == [f"file:{i}" for i in batch.image_id]
        assert batch.width.dtype == batch.height.dtype == np.int32
        signs = [pattern[int(i)] for i in batch.image_id]
        assert sorted(batch.failures) == [i for i, sign in enumerate(signs) if sign == "x"]
        assert batch.width.tolist() == [WIDTH if sign == "o" else 0 for sign in signs]
        assert batch.height.tolist() == [HEIGHT if sign == "o" else 0 for sign in signs]
        for key in (SAME_SIZE, OTHER_SIZE):
            assert batch.pixels[key].shape == (len(batch.decoded), key.height, key.width, 3)
        for row, position in enumerate(batch.decoded):
            data = encode(photo(seed=int(batch.image_id[position])), "JPEG")
            alone = decode(data, [SAME_SIZE, OTHER_SIZE], Limits())
            assert isinstance(alone, Decoded)
            for key, pixels in alone.pixels.items():
                assert np.array_equal(batch.pixels[key][row], pixels)


def test_a_failure_to_read_passes_through() -> None:
    missing = Failure("read", "missing", "no such file")
    images = [EncodedImage("a", "a", b"", missing), EncodedImage("b", "b", GOOD)]
    (batch,) = decode_images(images, [SAME_SIZE], Limits(), "c0", 8)
    assert batch.failures == {0: missing}
    assert batch.decoded.tolist() == [1]


def test_batches_given_out_are_not_written_again() -> None:
    images = (EncodedImage(f"{i}", "", encode(photo(seed=i), "JPEG")) for i in range(4))
    stream = decode_images(images, [SAME_SIZE], Limits(), "c0", 2)
    first = next(stream)
    kept = first.pixels[SAME_SIZE].copy()
    next(stream)
    assert np.array_equal(first.pixels[SAME_SIZE], kept)


# ---- tiles

TILED = InputKey(16, 24, "letterbox", Tiling(32, 32, 8, 8))


def images_of(sizes: list[tuple[int, int]]) -> list[EncodedImage]:
    """Return an image of each size; (0, 0) stands for one that fails."""
    return [
        EncodedImage(f"{i}", "", encode(photo(*size, seed=i), "PNG") if all(size) else b"no")
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 5), (48, 64), (100, 31)])
def test_tiles_are_those_of_the_whole_image(size: tuple[int, int]) -> None:
    image = photo(*size)
    whole = TILED._replace(tiling=None)
    decoded = decode(encode(image, "PNG"), [TILED, whole], Limits())
    assert isinstance(decoded, Decoded)
    expected = [resize_image(np.asarray(image), one) for one in tile_placements(*size, TILED)]
    np.testing.assert_array_equal(decoded.pixels[TILED], expected)
    if len(expected) == 1:
        np.testing.assert_array_equal(decoded.pixels[TILED][0], decoded.pixels[whole])


def test_tiles_of_a_reduced_jpeg_show_the_same() -> None:
    key = InputKey(16, 16, "stretch", Tiling(64, 64, 16, 16))
    data = encode(photo(300, 400), "JPEG", quality=95)
    reduced, full = (decode(data, [key], Limits(reduced_jpeg=said)) for said in (True, False))
    assert isinstance(reduced, Decoded) and isinstance(full, Decoded)
    difference = reduced.pixels[key].astype(int) - full.pixels[key]
    assert reduced.pixels[key].shape == (count_tiles(300, 400, key), 16, 16, 3)
    assert 0 < np.abs(difference).mean() < 6


def test_more_tiles_than_the_limit_fail_their_image_before_it_is_decoded() -> None:
    count = count_tiles(48, 64, TILED)
    size = count * 16 * 24 * 3
    data = encode(photo(), "PNG")
    assert isinstance(decode(data, [TILED], Limits(max_tile_bytes=size)), Decoded)
    broken = data[: len(data) // 2]  # the header is whole
    for one in (data, broken):
        failure = decode(one, [SAME_SIZE, TILED], Limits(max_tile_bytes=size - 1))
        assert failure == Failure(
            "decode",
            "too_large",
            f"{count} tiles of 16 x 24 come to {size} bytes, over the limit of {size - 1}; raise "
            "tiles.size or lower tiles.overlap",
        )
    assert isinstance(decode(data, [SAME_SIZE], Limits(max_tile_bytes=1)), Decoded)


def test_as_many_tiles_as_there_are_pixels_are_refused_without_making_them() -> None:
    key = InputKey(224, 224, "stretch", Tiling(1, 1, 0, 0))
    failure = decode(encode(Image.new("1", (9000, 9000)), "PNG"), [key], Limits())
    assert isinstance(failure, Failure)
    assert failure.kind == "too_large"
    assert "81000000 tiles" in failure.message


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
@pytest.mark.parametrize("tile_bytes", [1, 20_000, 1 << 30])
def test_batches_end_before_their_tiles_are_too_many(batch_size: int, tile_bytes: int) -> None:
    sizes = [(48, 64), (0, 0), (10, 10), (200, 90), (31, 31), (0, 0), (64, 48), (5, 5), (0, 0)]
    images = images_of(sizes)
    keys = [TILED, SAME_SIZE]
    limits = Limits(batch_tile_bytes=tile_bytes)
    batches = list(decode_images(images, keys, limits, "c", batch_size))
    assert [i for batch in batches for i in batch.image_id] == [str(i) for i in range(len(sizes))]
    for batch in batches:
        assert batch.pixels[TILED].shape[1:] == (16, 24, 3)
        assert len(batch.pixels[SAME_SIZE]) == len(batch.decoded) <= batch_size
        weight = batch.pixels[TILED].nbytes + int((batch.height * batch.width).sum())
        assert weight <= tile_bytes or len(batch.decoded) == 1
        alone = [decode(images[int(batch.image_id[i])].data, keys, limits) for i in batch.decoded]
        if alone:
            for key in keys:
                tiles = [one.pixels[key].reshape(-1, *key[:2], 3) for one in alone]  # type: ignore[union-attr]
                np.testing.assert_array_equal(batch.pixels[key], np.concatenate(tiles))
    if tile_bytes == 1 << 30:  # as without tiles
        assert all(len(batch.decoded) == batch_size for batch in batches[:-1])
    if tile_bytes == 1:
        assert len(batches) == 6 + 1  # the last failure, behind an image that was given out


def test_nothing_is_decoded_ahead_of_an_image_that_passes_the_bytes_alone() -> None:
    taken = []

    def images():  # type: ignore[no-untyped-def]
        for image in images_of([(48, 64), (48, 64)]):
            taken.append(image.image_id)
            yield image

    stream = decode_images(images(), [TILED], Limits(batch_tile_bytes=100), "c", 8)
    assert next(stream).image_id == ["0"]
    assert taken == ["0"]
