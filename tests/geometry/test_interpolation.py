"""Resized pixels equal those of the libraries that evaluations are published with.

`tests/fixtures/preprocessing` was written in its folder, with torchvision 0.29 and timm 1.0.31, by

    import numpy as np
    from PIL import Image
    from torchvision import transforms as T
    from timm.data import create_transform
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8))
    T.Compose([T.Resize(32), T.CenterCrop(28)])(image).save("torchvision_bilinear.png")
    for mode in ("bicubic", "lanczos"):
        timm = create_transform(
            (3, 28, 28), crop_pct=0.9, interpolation=mode, mean=(0,) * 3, std=(1,) * 3
        )
        T.ToPILImage()(timm(image)).save(f"timm_{mode}.png")
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ConfigError
from cvbatch.core.types import InputKey
from cvbatch.geometry.interpolation import resize_pixels
from cvbatch.images.decode import decode
from cvbatch.images.options import Limits
from cvbatch.inference.sample_images import generated_pixels

EXPECTED = Path(__file__).parents[1] / "fixtures" / "preprocessing"
SIDES = [(37, 53), (53, 37), (200, 90), (11, 13), (37, 13), (1, 1)]


def noise(height: int, width: int) -> np.ndarray:  # (h, w, 3) uint8
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def key_of(size: int, **keys: object) -> InputKey:
    """Return the input of a model whose section of the job file has these keys."""
    model = {"task": "classification", "model": "a.keras", **keys}
    job = parse_job({"source": {"uri": "a"}, "sink": {"uri": "b"}, "models": [model]})
    return job.models[0].input_key(size, size)


def decoded(image: np.ndarray, key: InputKey, **save: object) -> np.ndarray:  # (H, W, 3) uint8
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **save)
    result = decode(buffer.getvalue(), [key], Limits(max_bytes=1 << 24))
    return result.pixels[key]


@pytest.mark.runs(
    "torchvision or timm preprocessing (resize 256, crop 224, bicubic)",
    "`resize: {mode: crop, fraction: 0.875}`, `interpolation: bicubic`",
)
@pytest.mark.parametrize(
    ("file", "fraction"),
    [("torchvision_bilinear", 0.875), ("timm_bicubic", 0.9), ("timm_lanczos", 0.9)],
)
def test_pixels_equal_those_of_torchvision_and_timm(file: str, fraction: float) -> None:
    resize = {"mode": "crop", "fraction": fraction}
    key = key_of(28, resize=resize, interpolation=file.split("_")[1])
    pixels = decoded(noise(97, 131), key, format="PNG")
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(EXPECTED / f"{file}.png")))


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("sides", [(480, 640), (901, 600), (230, 229)])
def test_a_crop_of_a_fraction_is_a_resize_and_a_crop_of_pillow(
    sides: tuple[int, int], filter_: str
) -> None:
    image = noise(*sides)
    short = min(sides)
    height, width = (256 * side // short for side in sides)
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    resampling = Image.Resampling[filter_.upper()]
    expected = Image.fromarray(image).resize((width, height), resampling)
    expected = expected.crop((left, top, left + 224, top + 224))
    key = key_of(224, resize={"mode": "crop", "fraction": 0.875}, interpolation=filter_)
    np.testing.assert_array_equal(decoded(image, key, format="PNG"), np.asarray(expected))


@pytest.mark.keras
@pytest.mark.runs(
    "`keras.utils.load_img(target_size=...)`, the preprocessing of keras.applications",
    "`interpolation: nearest`",
)
@pytest.mark.parametrize("format_", ["PNG", "JPEG"])
def test_pixels_equal_those_of_load_img(format_: str, tmp_path: Path) -> None:
    import keras

    (smooth, *_) = generated_pixels((480, 640))
    file = tmp_path / "image"
    Image.fromarray(smooth).save(file, format=format_)
    for name in ("nearest", "bilinear", "bicubic", "lanczos"):
        expected = keras.utils.load_img(file, target_size=(28, 28), interpolation=name)
        pixels = decoded(smooth, key_of(28, interpolation=name), format=format_)
        np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.keras
@pytest.mark.runs(
    "TensorFlow preprocessing (`tf.image.central_crop` 0.875, `tf.image.resize`)",
    "`resize: {mode: stretch, fraction: 0.875}`, `interpolation: bilinear`, `antialias: false`",
)
@pytest.mark.parametrize("sides", SIDES)
def test_pixels_equal_those_of_tensorflow(sides: tuple[int, int]) -> None:
    import tensorflow as tf

    image = noise(*sides)
    key = key_of(
        28,
        resize={"mode": "stretch", "fraction": 0.875},
        interpolation="bilinear",
        antialias=False,
    )
    cropped = tf.image.central_crop(image, 0.875)
    expected = tf.image.resize(cropped, (28, 28)).numpy()
    pixels = decoded(image, key, format="PNG")
    assert np.abs(pixels - expected).max() <= 0.5 + 2e-3  # rounding, and float32 weights


@pytest.mark.keras
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(
    ("name", "method", "tolerance"),
    [("bicubic", "bicubic", 0.15), ("lanczos", "lanczos3", 1e-3)],  # TensorFlow's table of weights
)
def test_kernels_that_are_not_widened_equal_those_of_tensorflow(
    name: str, method: str, tolerance: float, sides: tuple[int, int]
) -> None:
    import tensorflow as tf

    image = noise(*sides)
    expected = tf.image.resize(image, (28, 28), method, antialias=False).numpy().clip(0, 255)
    pixels = resize_pixels(image, 28, 28, name, antialias=False)
    assert np.abs(pixels - expected).max() <= 0.5 + tolerance


@pytest.mark.parametrize("name", ["area", "bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("antialias", [True, False])
def test_an_image_of_the_size_of_the_input_is_unchanged(name: str, antialias: bool) -> None:
    image = noise(20, 30)
    np.testing.assert_array_equal(resize_pixels(image, 20, 30, name, antialias), image)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"antialias": False}, "has no meaning for interpolation: area"),
        ({"interpolation": "nearest", "antialias": False}, "interpolation: nearest"),
        ({"resize": {"mode": "letterbox", "fraction": 0.9}}, "letterbox shows the whole image"),
        ({"resize": {"mode": "crop", "fraction": 1.5}}, "fraction: 1.5: must be at most 1"),
        ({"resize": {"mode": "zoom"}}, "resize"),
        ({"resize": "zoom"}, "must be stretch, letterbox or crop"),
        ({"resize": {"mode": "stretch", "fraction": 0.9}, "tiles": {}}, "borders of every tile"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        key_of(28, **keys)


def test_a_mode_without_a_fraction_is_its_short_name() -> None:
    assert key_of(28, resize={"mode": "crop"}) == key_of(28, resize="crop")
