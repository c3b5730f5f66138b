"""The networks of keras.applications, each with the preprocessing its weights were made with.

The preprocessing is laid into the same flat graph, so a saved file wants plain RGB 0..255 and
no model lies nested in another.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import keras
from keras import layers, ops

from cvbatch.core.errors import ModelError
from cvbatch.models.cost import skip_weight_allocation

Preprocessing = Literal["tf", "torch", "caffe", "own"]
Weights = Literal["imagenet"] | None
Tensor = Any  # a keras.KerasTensor; Keras carries no type information


class Application(NamedTuple):
    """What Keras says of one of its networks."""

    preprocessing: Preprocessing  # "own": the network carries it already
    side: int  # of the square its ImageNet weights were trained on, in pixels
    minimum: int = 32  # of both sides


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
    "InceptionResNetV2": Application("tf", 299, 75),
    "InceptionV3": Application("tf", 299, 75),
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
    "Xception": Application("tf", 299, 71),
}
IMAGENET_CLASSES = 1000
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)  # of red, green, blue in 0..1


def build_application(
    name: str,
    num_classes: int,
    image_size: tuple[int, int],
    weights: Weights = None,
    *,
    multi_label: bool = False,
    alpha: float | None = None,
) -> keras.Model:  # (B, H, W, 3) RGB 0..255 → (B, num_classes)
    """Return the keras.applications network of that name, from `APPLICATIONS`.

    Its answer is a softmax; a sigmoid with one class or with `multi_label`. weights: "imagenet"
    loads Keras' own from its cache or the network; None draws them at random. ImageNet weights
    serve any image size that the network's shape allows, and any classes: with others than
    ImageNet's 1,000 the head is new and random, and all below it is ImageNet's. alpha: the width
    of a MobileNet, as a factor of the filters.

    Raises:
        ModelError: the weights cannot be had, or the network cannot have that size or an alpha.
    """
    width = _width_option(name, alpha)
    options: dict[str, Any] = {"classes": num_classes, **width}
    if multi_label or num_classes == 1:
        options["classifier_activation"] = "sigmoid"
    if weights is None:
        return _network(name, image_size, None, **options)
    is_imagenets = num_classes == IMAGENET_CLASSES and not multi_label
    side = APPLICATIONS[name].side
    if is_imagenets and image_size == (side, side):
        return _network(name, image_size, weights, **options)
    built = _network(name, image_size, None, **options)
    if is_imagenets:
        _carry_whole(_network(name, (side, side), weights, **options), built, name)
    else:
        _carry_below_head(build_features(name, image_size, weights, alpha=alpha), built)
    return built


def build_features(
    name: str,
    image_size: tuple[int, int],
    weights: Weights = None,
    *,
    alpha: float | None = None,
) -> keras.Model:  # (B, H, W, 3) RGB 0..255 → (B, h, w, c)
    """Return the keras.applications network of that name without its top: its last feature map.

    Raises:
        ModelError: as `build_application`.
    """
    return _network(name, image_size, weights, include_top=False, **_width_option(name, alpha))


def _width_option(name: str, alpha: float | None) -> dict[str, float]:
    """Return the option of a network that has several widths."""
    if alpha is None:
        return {}
    if not name.startswith("MobileNet"):
        raise ModelError(f"alpha of {name}: only the MobileNets have several widths; leave it out")
    return {"alpha": alpha}


def _network(
    name: str, image_size: tuple[int, int], weights: Weights, **options: Any
) -> keras.Model:
    """Return Keras' network with its preprocessing laid before it, as one flat graph."""
    inputs = keras.Input((*image_size, 3), name="image")
    lacks_deviation = name.startswith("EfficientNetB") and weights is None
    try:
        with skip_weight_allocation() if lacks_deviation else nullcontext():  # it is only copied
            built = getattr(keras.applications, name)(
                weights=weights,
                input_tensor=preprocess(inputs, APPLICATIONS[name].preprocessing),
                input_shape=(*image_size, 3),
                **options,
            )
    except ValueError as error:
        raise ModelError(
            f"{name} cannot be built with image size {image_size[0]}×{image_size[1]} and weights "
            f"{weights!r}: {str(error).splitlines()[0]}"
        ) from error
    except Exception as error:  # keras.utils.get_file raises no narrower one
        if not str(error).startswith("URL fetch failure on"):
            raise
        raise _no_download(name, str(error)) from error
    if lacks_deviation:
        built = _with_second_deviation(built)
    return keras.Model(inputs, built.outputs[0], name=built.name)  # Keras' takes a list of inputs


def _with_second_deviation(network: keras.Model) -> keras.Model:
    """Return an EfficientNet with the layer that Keras lays into those of ImageNet alone.

    The normalisation saved in the ImageNet weights divides by the root of the deviation; a second
    division, by a layer without weights, completes it. With it in every EfficientNet a weights
    file from ImageNet means the same however it came, and all have the same layers.
    """
    second = layers.Rescaling([1 / d**0.5 for d in _IMAGENET_DEVIATION], name="deviation")

    def call(layer: keras.Layer, *args: Any, **kwargs: Any) -> Tensor:
        result = layer(*args, **kwargs)
        return second(result) if isinstance(layer, layers.Normalization) else result

    return keras.models.clone_model(network, input_tensors=network.inputs, call_function=call)


def _carry_whole(source: keras.Model, target: keras.Model, name: str) -> None:
    """Copy all weights of a network into the same network of another image size."""
    if [w.shape for w in source.weights] != [w.shape for w in target.weights]:
        height, width = target.input_shape[1:3]
        raise ModelError(
            f"{name} cannot take its ImageNet head at {height}×{width}: that head is made for "
            f"{APPLICATIONS[name].side}×{APPLICATIONS[name].side}; leave image_size out"
        )
    for mine, theirs in zip(target.weights, source.weights, strict=True):
        mine.assign(theirs)


def _carry_below_head(features: keras.Model, target: keras.Model) -> None:
    """Copy the weights of a network without top into the same network with one."""
    for mine, theirs in zip(target.weights, features.weights, strict=False):
        mine.assign(theirs)  # refuses another shape


def preprocess(x: Tensor, kind: Preprocessing) -> Tensor:  # (B, H, W, 3) → the same shape
    """Return RGB 0..255 as keras.applications' `preprocess_input` of that kind returns it.

    "tf": −1..1. "torch": 0..1, then ImageNet's mean and deviation taken off. "caffe": blue,
    green, red, their ImageNet means taken off. "own": unchanged.
    """
    if kind == "tf":
        return layers.Rescaling(1 / 127.5, -1.0)(x)
    if kind == "torch":
        mean = (0.485, 0.456, 0.406)
        return layers.Rescaling(
            [1 / (255 * d) for d in _IMAGENET_DEVIATION],
            [-m / d for m, d in zip(mean, _IMAGENET_DEVIATION, strict=True)],
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
