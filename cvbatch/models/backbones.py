"""A segmenter or detector is laid on the features of a classifier; any classifier will do."""

from __future__ import annotations

from typing import Any

import keras

from cvbatch.core.errors import ModelError
from cvbatch.core.suggestions import offer
from cvbatch.models.applications import APPLICATIONS, Weights, build_features
from cvbatch.models.classifiers import CLASSIFIERS
from cvbatch.models.fully_convolutional import without_head
from cvbatch.models.graph_surgery import calls_of

Tensor = Any  # a keras.KerasTensor; Keras carries no type information


def build_backbone(
    name: str, image_size: tuple[int, int], weights: Weights = None
) -> keras.Model:  # (B, H, W, 3) RGB 0..255 → (B, h, w, c)
    """Return the named classifier up to its last feature map.

    name: a network of keras.applications or of `classifiers.CLASSIFIERS`. weights: "imagenet"
    for those of keras.applications, or None for random ones.

    Raises:
        ModelError: no classifier has that name, or it has no such weights, or does not take
            images of that size or in colour.
    """
    if name in APPLICATIONS:
        return build_features(name, image_size, weights)
    if name not in CLASSIFIERS:
        raise _unknown(name)
    if weights is not None:
        raise ModelError(
            f"backbone {name!r} has no {weights} weights: Keras has them for its own networks, "
            "such as MobileNetV2; name one of those, or leave the backbone's weights out"
        )
    try:
        features = without_head(CLASSIFIERS[name].build(2, image_size))
    except ValueError as error:
        raise ModelError(
            f"backbone {name!r} cannot be built at {image_size[0]}×{image_size[1]} "
            f"({str(error).strip().splitlines()[0]}); choose a larger image_size"
        ) from error
    if features.input_shape[-1] != 3:
        raise ModelError(f"backbone {name!r} takes grey images; name one that takes RGB")
    return features


def feature_map_at_stride(
    model: keras.Model, stride: int
) -> Tensor:  # (B, H / stride, W / stride, c)
    """Return the last feature map in the model that is a `stride`-th of the image.

    Raises:
        ModelError: there is none of exactly that height and width.
    """
    wanted = tuple(side // stride for side in model.input_shape[1:3])
    found = None
    for call in calls_of(model):
        shape = call.returned[0].shape
        if len(shape) == 4 and shape[1:3] == wanted:
            found = call.returned[0]
    if found is None:
        height, width = model.input_shape[1:3]
        raise ModelError(
            f"backbone {model.name!r} has no feature map of stride {stride} at {height}×{width}; "
            "name one whose convolutions are padded, such as VGG16, ResNet50 or MobileNetV2"
        )
    return found


def total_stride(features: keras.Model) -> int:
    """Return how many pixels of the image lie between two positions of the last feature map.

    Raises:
        ModelError: that is no whole number, or not the same one in height and width.
    """
    height, width = features.input_shape[1:3]
    rows, columns = features.output_shape[1:3]
    stride = height // rows
    if (rows * stride, columns * stride) != (height, width):
        raise ModelError(
            f"the backbone of {features.name!r} makes {rows}×{columns} positions of "
            f"{height}×{width} pixels, no whole stride; choose sides its stride divides, or a "
            "backbone whose convolutions are padded, such as MobileNetV2"
        )
    return int(stride)


def _unknown(name: str) -> ModelError:
    known = (*CLASSIFIERS, *APPLICATIONS)
    return ModelError(f"no backbone is called {name!r}; {offer(name, known)}")
