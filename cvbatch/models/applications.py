"""keras.applications networks with their preprocessing in the same graph.

The input of every network is RGB 0..255, and the graph is flat: no model is nested in another.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from cvbatch.core.errors import ModelError
from cvbatch.models.cost import skip_weight_allocation
from cvbatch.models.frameworks import keras, layers, ops

Preprocessing = Literal["tf", "torch", "caffe", "included"]
Weights = Literal["imagenet"] | None
Tensor = Any  # a keras.KerasTensor; Keras carries no type information


class Application(NamedTuple):
    """Preprocessing and image sizes of one network of keras.applications."""

    preprocessing: Preprocessing  # "included": Keras' network does it itself
    side: int  # of the square images its ImageNet weights were trained on, in pixels
    minimum: int = 32  # smallest height and width, in pixels


APPLICATIONS: dict[str, Application] = {
    **{
        f"ConvNeXt{size}": Application("included", 224)
        for size in ("Tiny", "Small", "Base", "Large")
    },
    "ConvNeXtXLarge": Application("included", 224),
    **{f"DenseNet{depth}": Application("torch", 224) for depth in (121, 169, 201)},
    **{
        f"EfficientNetB{i}": Application("included", side)
        for i, side in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
    },
    **{
        f"EfficientNetV2B{i}": Application("included", side)
        for i, side in enumerate((224, 240, 260, 300))
    },
    "EfficientNetV2S": Application("included", 384),
    "EfficientNetV2M": Application("included", 480),
    "EfficientNetV2L": Application("included", 480),
    "InceptionResNetV2": Application("tf", 299, 75),
    "InceptionV3": Application("tf", 299, 75),
    "MobileNet": Application("tf", 224),
    "MobileNetV2": Application("tf", 224),
    "MobileNetV3Large": Application("included", 224),
    "MobileNetV3Small": Application("included", 224),
    "NASNetLarge": Application("tf", 331),
    "NASNetMobile": Application("tf", 224),
    **{f"ResNet{depth}": Application("caffe", 224) for depth in (50, 101, 152)},
    **{f"ResNet{depth}V2": Application("tf", 224) for depth in (50, 101, 152)},
    "VGG16": Application("caffe", 224),
    "VGG19": Application("caffe", 224),
    "Xception": Application("tf", 299, 71),
}
IMAGENET_CLASSES = 1000
_IMAGENET_STD = (0.229, 0.224, 0.225)  # of red, green, blue in 0..1


def build_application(
    name: str,
    num_classes: int,
    image_size: tuple[int, int],
    weights: Weights = None,
    *,
    multi_label: bool = False,
    alpha: float | None = None,
) -> keras.Model:  # (B, H, W, 3) RGB 0..255 → (B, num_classes)
    """Return a network of keras.applications with its classification head.

    Args:
        name: a key of `APPLICATIONS`.
        num_classes: outputs of the head. With another number than ImageNet's 1,000, or with
            `multi_label`, "imagenet" weights are loaded below the head and the head is untrained.
        image_size: (height, width) in pixels. ImageNet weights fit any size the layers allow.
        weights: "imagenet" loads Keras' weights from its cache or downloads them; None
            initialises at random.
        multi_label: use a sigmoid for each class. The default is a softmax, or a sigmoid for
            one class.
        alpha: width multiplier of a MobileNet; None is Keras' default.

    Raises:
        ModelError: the weights cannot be loaded, or the network does not support the image size
            or `alpha`.
    """
    width = _width_option(name, alpha)
    options: dict[str, Any] = {"classes": num_classes, **width}
    if multi_label or num_classes == 1:
        options["classifier_activation"] = "sigmoid"
    if weights is None:
        return _network(name, image_size, None, **options)
    has_imagenet_head = num_classes == IMAGENET_CLASSES and not multi_label
    side = APPLICATIONS[name].side
    if has_imagenet_head and image_size == (side, side):
        return _network(name, image_size, weights, **options)
    network = _network(name, image_size, None, **options)
    if has_imagenet_head:
        _copy_all_weights(_network(name, (side, side), weights, **options), network, name)
    else:
        _copy_feature_weights(build_features(name, image_size, weights, alpha=alpha), network)
    return network


def build_features(
    name: str,
    image_size: tuple[int, int],
    weights: Weights = None,
    *,
    alpha: float | None = None,
) -> keras.Model:  # (B, H, W, 3) RGB 0..255 → (B, h, w, c)
    """Return a network of keras.applications without its head (`include_top=False`).

    Args and errors are those of `build_application`.
    """
    return _network(name, image_size, weights, include_top=False, **_width_option(name, alpha))


def _width_option(name: str, alpha: float | None) -> dict[str, float]:
    """Return the keyword argument for `alpha`, or none for None."""
    if alpha is None:
        return {}
    if not name.startswith("MobileNet"):
        raise ModelError(f"{name} does not support alpha, only the MobileNets do; remove alpha")
    return {"alpha": alpha}


def _network(
    name: str, image_size: tuple[int, int], weights: Weights, **options: Any
) -> keras.Model:
    """Return Keras' network behind its preprocessing, as one flat graph."""
    inputs = keras.Input((*image_size, 3), name="image")
    lacks_rescaling = name.startswith("EfficientNetB") and weights is None
    try:
        # A network that lacks the layer is only cloned, so its weights are never needed.
        with skip_weight_allocation() if lacks_rescaling else nullcontext():
            network = getattr(keras.applications, name)(
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
        raise _download_error(name, str(error)) from error
    if lacks_rescaling:
        network = _with_imagenet_rescaling(network)
    # Keras' network takes a list of inputs; this one takes a tensor.
    return keras.Model(inputs, network.outputs[0], name=network.name)


def _with_imagenet_rescaling(network: keras.Model) -> keras.Model:
    """Return an EfficientNet with the rescaling layer that Keras adds for ImageNet weights only.

    The normalisation stored in the ImageNet weights divides by the square root of the standard
    deviation; this layer, which has no weights, divides a second time. With it in every
    EfficientNet, an ImageNet weights file gives the same results whether Keras or cvbatch loads it.
    """
    rescaling = layers.Rescaling([1 / std**0.5 for std in _IMAGENET_STD], name="deviation")

    def call(layer: keras.Layer, *args: Any, **kwargs: Any) -> Tensor:
        result = layer(*args, **kwargs)
        return rescaling(result) if isinstance(layer, layers.Normalization) else result

    return keras.models.clone_model(network, input_tensors=network.inputs, call_function=call)


def _copy_all_weights(source: keras.Model, target: keras.Model, name: str) -> None:
    """Copy all weights of a network into the same network built for another image size."""
    if [w.shape for w in source.weights] != [w.shape for w in target.weights]:
        height, width = target.input_shape[1:3]
        raise ModelError(
            f"{name} cannot use its ImageNet head at {height}×{width}: the head was trained for "
            f"{APPLICATIONS[name].side}×{APPLICATIONS[name].side}; remove image_size"
        )
    for weight, source_weight in zip(target.weights, source.weights, strict=True):
        weight.assign(source_weight)


def _copy_feature_weights(features: keras.Model, target: keras.Model) -> None:
    """Copy the weights of a network without head into the same network with a head."""
    for weight, source_weight in zip(target.weights, features.weights, strict=False):
        weight.assign(source_weight)  # raises ValueError if the shapes differ


def preprocess(x: Tensor, kind: Preprocessing) -> Tensor:  # (B, H, W, 3) → the same shape
    """Apply the `preprocess_input` of keras.applications to RGB 0..255, by Keras layers.

    Args:
        x: RGB 0..255.
        kind: "tf" scales to −1..1. "torch" scales to 0..1, subtracts ImageNet's mean and divides
            by its standard deviation. "caffe" converts to BGR and subtracts ImageNet's mean.
            "included" changes nothing.
    """
    if kind == "tf":
        return layers.Rescaling(1 / 127.5, -1.0)(x)
    if kind == "torch":
        mean = (0.485, 0.456, 0.406)
        return layers.Rescaling(
            [1 / (255 * std) for std in _IMAGENET_STD],
            [-m / std for m, std in zip(mean, _IMAGENET_STD, strict=True)],
        )(x)
    if kind == "caffe":
        return layers.Rescaling(1.0, [-103.939, -116.779, -123.68])(ops.flip(x, axis=-1))
    return x


def keras_cache() -> Path:
    """Return the folder of Keras' downloads: weights and ImageNet's class index."""
    home = os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser()
    return Path(home) / "models"


def _download_error(name: str, message: str) -> ModelError:
    """Return the error for a failed download; Keras' message contains the URL."""
    url = message.removeprefix("URL fetch failure on ").split(": ")[0]
    file = PurePosixPath(url).name
    return ModelError(
        f"the ImageNet weights of {name} could not be downloaded from {url}; download {file} on "
        f"another machine and copy it into {keras_cache()}, set weights to a weights "
        "file, or take a network that is included, such as demo_classifier"
    )
