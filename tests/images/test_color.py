"""Profiles are converted to sRGB by the formulas of their spaces, and never fail an image."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from cvbatch.core.types import Decoded, InputKey
from cvbatch.images import color
from cvbatch.images.color_profiles import rgb_profile
from cvbatch.images.decode import Limits, decode
from tests.images.test_modern_formats import heif
from tests.images.test_tiff import written
from tests.support.encoded_images import RGB, encode, photo, pixels_of, png_chunk

PHOTO = np.asarray(RGB)
IGNORE = Limits(color="ignore")
D65 = (0.3127, 0.3290)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ADOBE_GAMMA = 563 / 256


def to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Matrix from linear RGB to XYZ, by the definition of primaries and white point."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
    return columns * np.linalg.solve(columns, white)


def srgb_light(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def converted(pixels: np.ndarray, primaries: Any, gamma: float | None) -> np.ndarray:
    """Return sRGB in 0..255 of pixels of another RGB space with the same white."""
    values = pixels / 255
    light = srgb_light(values) if gamma is None else values**gamma
    linear = light @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return encoded * 255


PROFILES = {
    "Adobe RGB": (rgb_profile(ADOBE, D65, ADOBE_GAMMA), ADOBE, ADOBE_GAMMA),
    "Display P3": (rgb_profile(P3, D65, None), P3, None),
    "linear": (rgb_profile(SRGB, D65, 1.0), SRGB, 1.0),
}
ENCODERS: dict[str, Any] = {
    "png": lambda profile: encode(RGB, "PNG", icc_profile=profile),
    "webp": lambda profile: encode(RGB, "WEBP", lossless=True, icc_profile=profile),
    "tiff": lambda profile: encode(RGB, "TIFF", icc_profile=profile),
    "tiff of 16 bits": lambda profile: written(PHOTO.astype(np.uint16) * 257, iccprofile=profile),
    "jpeg": lambda profile: encode(RGB, "JPEG", quality=98, icc_profile=profile),
    "avif": lambda profile: encode(RGB, "AVIF", quality=95, icc_profile=profile),
    "heic": lambda profile: heif(PHOTO, "RGB", icc_profile=profile, icc_profile_type="prof"),
}


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("format_", ENCODERS)
def test_a_profile_is_converted_by_its_formula(format_: str, name: str) -> None:
    profile, primaries, gamma = PROFILES[name]
    data = ENCODERS[format_](profile)
    stored = pixels_of(data, IGNORE)
    expected = converted(stored, primaries, gamma)
    difference = np.abs(pixels_of(data) - expected)
    dark = 4 if name == "linear" else 2  # 8 bits of light are coarse in the dark
    assert difference.mean() < 0.7 and np.quantile(difference, 0.99) <= dark


@pytest.mark.parametrize("format_", ENCODERS)
def test_srgb_and_no_profile_change_nothing(format_: str) -> None:
    data = ENCODERS[format_](SRGB_PROFILE)
    assert np.array_equal(pixels_of(data), pixels_of(data, IGNORE))
    if format_ in ("png", "webp", "tiff"):
        assert np.array_equal(pixels_of(data), PHOTO)


@pytest.mark.parametrize("format_", ["png", "webp", "tiff", "jpeg"])
@pytest.mark.parametrize(
    "profile",
    [
        b"no profile at all",
        bytes(200),
        SRGB_PROFILE[:200],
        SRGB_PROFILE[:16] + b"CMYK" + SRGB_PROFILE[20:],
        SRGB_PROFILE[:128] + b"\xff" * 400,
        PROFILES["Adobe RGB"][0][:-60],
    ],
)
def test_a_malformed_profile_is_ignored(format_: str, profile: bytes) -> None:
    data = ENCODERS[format_](profile)
    assert np.array_equal(pixels_of(data), pixels_of(data, IGNORE))


def test_the_transform_is_made_once_and_the_cache_is_bounded() -> None:
    color._find_transform.cache_clear()
    for _ in range(5):
        pixels_of(ENCODERS["png"](PROFILES["Adobe RGB"][0]))
    assert color._find_transform.cache_info().misses == 1
    for i in range(40):
        pixels_of(ENCODERS["png"](rgb_profile(ADOBE, D65, 1 + i / 100)))
    assert color._find_transform.cache_info().currsize <= 32


def test_a_reduced_jpeg_is_converted_too() -> None:
    large = photo(480, 640)
    key = InputKey(60, 80, "stretch")
    data = encode(large, "JPEG", quality=95, icc_profile=PROFILES["Adobe RGB"][0])
    small = decode(data, [key], Limits())
    assert isinstance(small, Decoded)
    full = converted(np.asarray(large), ADOBE, ADOBE_GAMMA)
    expected = cv2.resize(full, (80, 60), interpolation=cv2.INTER_AREA)
    assert np.abs(small.pixels[key] - expected).mean() < 2


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "TIFF"])
def test_grey_with_a_profile(format_: str) -> None:
    """A grey profile of gamma 1.8, by hand: header, white point, one curve."""
    tags = {
        b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061),
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(1.8 * 256)),
    }
    profile = icc(b"GRAY", b"XYZ ", tags)
    grey = RGB.convert("L")
    data = encode(
        grey, format_, icc_profile=profile, **({"quality": 98} if format_ == "JPEG" else {})
    )
    stored = pixels_of(data, IGNORE)[..., 0]
    expected = converted(np.repeat(stored[..., None], 3, axis=2), SRGB, round(1.8 * 256) / 256)
    assert np.abs(pixels_of(data) - expected).max() <= 2


@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_cmyk_with_a_profile_is_not_converted_naively(format_: str) -> None:
    """A table of two grid points per ink: paper white, and dark grey where there is any ink."""
    identity = bytes(range(256))
    grid = b"".join(
        struct.pack("BBB", 255 if not any(ink) else 80, 128, 128) for ink in np.ndindex(2, 2, 2, 2)
    )
    table = b"mft1\0\0\0\0" + struct.pack(">4B9i", 4, 3, 2, 0, *(65536, 0, 0, 0) * 2, 65536)
    profile = icc(b"CMYK", b"Lab ", {b"A2B0": table + identity * 4 + grid + identity * 3})
    cyan = Image.new("CMYK", RGB.size, (255, 0, 0, 0))
    data = encode(cyan, format_, icc_profile=profile)
    pixel = pixels_of(data)[20, 20].astype(int)
    assert np.ptp(pixel) <= 8 and 50 < pixel.mean() < 110  # L* = 80 / 2.55 is this grey
    assert np.abs(pixels_of(data, IGNORE)[20, 20].astype(int) - [0, 255, 255]).max() <= 8


def icc(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Assemble a profile of version 2."""
    start, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(">I4sI", start + len(body), b"test", 0x02100000) + kind + space + connection
    head = head.ljust(36, b"\0") + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


# ---- colour spaces without a profile


def with_chunk(kind: bytes, content: bytes) -> bytes:
    data = encode(RGB, "PNG")
    start = data.index(b"IDAT") - 4
    return data[:start] + png_chunk(kind, content) + data[start:]


@pytest.mark.parametrize(
    ("chunk", "content", "primaries", "gamma"),
    [
        (b"gAMA", struct.pack(">I", 100_000), SRGB, 1.0),
        (b"gAMA", struct.pack(">I", 45_455), None, None),  # that of sRGB
        (b"cICP", bytes([12, 13, 0, 1]), P3, None),
        (b"cICP", bytes([1, 13, 0, 1]), None, None),
        (b"cICP", bytes([9, 16, 0, 1]), None, None),  # PQ is not converted
        (
            b"cHRM",
            struct.pack(">8I", *(round(v * 1e5) for v in (*D65, *np.ravel(P3)))),
            P3,
            None,
        ),
    ],
)
def test_chunks_of_png(chunk: bytes, content: bytes, primaries: Any, gamma: float | None) -> None:
    pixels = pixels_of(with_chunk(chunk, content))
    if primaries is None:
        assert np.array_equal(pixels, PHOTO)
    else:
        assert np.quantile(np.abs(pixels - converted(PHOTO, primaries, gamma)), 0.99) <= 4


def test_display_p3_by_number_in_avif_and_heif() -> None:
    avif = imagecodecs.avif_encode(PHOTO, level=100, primaries=12, transfer=13)
    nclx = {"save_nclx_profile": True, "color_primaries": 12, "transfer_characteristics": 13}
    for data in (avif, heif(PHOTO, "RGB", **nclx)):
        expected = converted(pixels_of(data, IGNORE), P3, None)
        assert np.quantile(np.abs(pixels_of(data) - expected), 0.99) <= 2


def test_a_compressed_profile_may_not_be_a_bomb() -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    assert np.array_equal(pixels_of(with_chunk(b"iCCP", b"x\0\0" + bomb)), PHOTO)


def test_profiles_of_pillow_are_equal_to_those_written_here() -> None:
    profile = ImageCms.ImageCmsProfile(BytesIO(PROFILES["Display P3"][0])).profile
    assert np.abs(np.array(profile.red_primary[1][:2]) - [0.68, 0.32]).max() < 0.1
