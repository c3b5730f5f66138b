"""Feature extractors for segmenters and detectors: any classifier without its head."""

from __future__ import annotations

from typing import Any

from cvbatch.core.errors import ModelError
from cvbatch.core.suggestions import hint
from cvbatch.models.applications import APPLICATIONS, Weights, build_features
from cvbatch.models.classifiers import CLASSIFIERS
from cvbatch.models.frameworks import keras
from cvbatch.models.fully_convolutional import without_head
from cvbatch.models.graph_surgery import calls_of

Tensor = Any  # a keras.KerasTensor; Keras carries no type information


def build_backbone(
    name: str, image_size: tuple[int, int], weights: Weights = None
) -> keras.Model:  # (B, H, W, 3) RGB 0..255 → (B, h, w, c)
    """Return a classifier up to its last feature map.

    Args:
        name: a key of `APPLICATIONS` (keras.applications) or of `CLASSIFIERS`.
        image_size: (height, width) in pixels.
        weights: "imagenet", for a network of keras.applications; None initialises at random.

    Raises:
        ModelError: the name is unknown, or the classifier has no such weights, does not support
            the image size, or takes grey images.
    """
    if name in APPLICATIONS:
        return build_features(name, image_size, weights)
    if name not in CLASSIFIERS:
        known = (*CLASSIFIERS, *APPLICATIONS)
        raise ModelError(f"unknown backbone {name!r}; {hint(name, known)}")
    if weights is not None:
        raise ModelError(
            f"backbone {name!r} has no {weights} weights; use a network of keras.applications, "
            "such as MobileNetV2, or remove backbone_weights"
        )
    try:
        features = without_head(CLASSIFIERS[name].build(2, image_size))
    except ValueError as error:
        raise ModelError(
            f"backbone {name!r} cannot be built at {image_size[0]}×{image_size[1]} "
            f"({str(error).strip().splitlines()[0]}); choose a larger image_size"
        ) from error
    if features.input_shape[-1] != 3:
        raise ModelError(f"backbone {name!r} takes grey images; use one that takes RGB")
    return features


def feature_map_at_stride(
    model: keras.Model, stride: int
) -> Tensor:  # (B, H / stride, W / stride, c)
    """Return the last feature map whose size is the image's divided by `stride`.

    Raises:
        ModelError: no feature map has exactly that height and width.
    """
    map_size = tuple(side // stride for side in model.input_shape[1:3])
    feature_map = None
    for call in calls_of(model):
        shape = call.returned[0].shape
        if len(shape) == 4 and shape[1:3] == map_size:
            feature_map = call.returned[0]
    if feature_map is None:
        height, width = model.input_shape[1:3]
        raise ModelError(
            f"backbone {model.name!r} has no feature map of stride {stride} at {height}×{width}; "
            "use one with padded convolutions, such as VGG16, ResNet50 or MobileNetV2"
        )
    return feature_map


def total_stride(features: keras.Model) -> int:
    """Return the stride of the last feature map: image pixels per position.

    Raises:
        ModelError: the stride is not a whole number, or differs between height and width.
    """
    height, width = features.input_shape[1:3]
    rows, columns = features.output_shape[1:3]
    stride = height // rows
    if (rows * stride, columns * stride) != (height, width):
        raise ModelError(
            f"the backbone of {features.name!r} reduces {height}×{width} pixels to "
            f"{rows}×{columns}, which is not a whole stride; use an image_size divisible by its "
            "stride, or a backbone with padded convolutions, such as MobileNetV2"
        )
    return int(stride)
