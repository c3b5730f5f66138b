"""The networks of keras.applications, each with the preprocessing its weights were made with.

The preprocessing is laid into the same flat graph, so a saved file wants plain RGB 0..255 and
no model lies nested in another.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import keras
from keras import layers, ops

from cvbatch.errors import ModelError

Preprocessing = Literal["tf", "torch", "caffe", "own"]
Tensor = Any  # a keras.KerasTensor; Keras carries no type information


class Application(NamedTuple):
    """What Keras says of one of its networks."""

    preprocessing: Preprocessing  # "own": the network carries it already
    side: int  # of the square its ImageNet weights were trained on, in pixels


APPLICATIONS: dict[str, Application] = {
    **{f"ConvNeXt{size}": Application("own", 224) for size in ("Tiny", "Small", "Base", "Large")},
    "ConvNeXtXLarge": Application("own", 224),
    **{f"DenseNet{depth}": Application("torch", 224) for depth in (121, 169, 201)},
    **{
        f"EfficientNetB{i}": Application("own", side)
        for i, side in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
    },
    **{
        f"EfficientNetV2B{i}": Application("own", side)
        for i, side in enumerate((224, 240, 260, 300))
    },
    "EfficientNetV2S": Application("own", 384),
    "EfficientNetV2M": Application("own", 480),
    "EfficientNetV2L": Application("own", 480),
    "InceptionResNetV2": Application("tf", 299),
    "InceptionV3": Application("tf", 299),
    "MobileNet": Application("tf", 224),
    "MobileNetV2": Application("tf", 224),
    "MobileNetV3Large": Application("own", 224),
    "MobileNetV3Small": Application("own", 224),
    "NASNetLarge": Application("tf", 331),
    "NASNetMobile": Application("tf", 224),
    **{f"ResNet{depth}": Application("caffe", 224) for depth in (50, 101, 152)},
    **{f"ResNet{depth}V2": Application("tf", 224) for depth in (50, 101, 152)},
    "VGG16": Application("caffe", 224),
    "VGG19": Application("caffe", 224),
    "Xception": Application("tf", 299),
}
IMAGENET_CLASSES = 1000


def build_application(
    name: str, num_classes: int, image_size: tuple[int, int], weights: Literal["imagenet"] | None
) -> keras.Model:  # (B, H, W, 3) RGB 0..255 → (B, num_classes), a softmax
    """Return the keras.applications network of that name, from `APPLICATIONS`.

    weights: "imagenet" loads Keras' own from its cache or the network; None draws them at random.

    Raises:
        ModelError: the weights cannot be had, or are for another size or number of classes.
    """
    inputs = keras.Input((*image_size, 3), name="image")
    network = getattr(keras.applications, name)
    try:
        built = network(
            weights=weights,
            input_tensor=preprocess(inputs, APPLICATIONS[name].preprocessing),
            input_shape=(*image_size, 3),
            classes=num_classes,
        )
    except ValueError as error:
        raise ModelError(
            f"{name} cannot be built with {num_classes} classes, image size {image_size} and "
            f"weights {weights!r}: {error}"
        ) from error
    except Exception as error:  # keras.utils.get_file raises no narrower one
        if not str(error).startswith("URL fetch failure on"):
            raise
        raise _no_download(name, str(error)) from error
    return keras.Model(inputs, built.output, name=built.name)  # Keras' takes a list of inputs


def preprocess(x: Tensor, kind: Preprocessing) -> Tensor:  # (B, H, W, 3) → the same shape
    """Return RGB 0..255 as keras.applications' `preprocess_input` of that kind returns it.

    "tf": −1..1. "torch": 0..1, then ImageNet's mean and deviation taken off. "caffe": blue,
    green, red, their ImageNet means taken off. "own": unchanged.
    """
    if kind == "tf":
        return layers.Rescaling(1 / 127.5, -1.0)(x)
    if kind == "torch":
        mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return layers.Rescaling(
            [1 / (255 * d) for d in deviation],
            [-m / d for m, d in zip(mean, deviation, strict=True)],
        )(x)
    if kind == "caffe":
        return layers.Rescaling(1.0, [-103.939, -116.779, -123.68])(ops.flip(x, axis=-1))
    return x


def keras_cache() -> Path:
    """Return the folder where Keras keeps what it downloaded, ImageNet's class index among it."""
    home = os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser()
    return Path(home) / "models"


def _no_download(name: str, message: str) -> ModelError:
    """Return the error for a failed download; Keras' message holds the address it asked for."""
    address = message.removeprefix("URL fetch failure on ").split(": ")[0]
    file = PurePosixPath(address).name
    return ModelError(
        f"the ImageNet weights of {name} could not be downloaded from {address}; fetch {file} "
        f"elsewhere and put it into {keras_cache()}, or name a weights file"
    )
