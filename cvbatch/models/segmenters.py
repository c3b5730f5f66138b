"""Semantic segmentation networks; each takes RGB 0..255 and rescales it itself.

All return class scores per pixel: a softmax over the last axis, or a sigmoid for one class (FCN).
"""

from __future__ import annotations

from typing import Any

from cvbatch.models import blocks
from cvbatch.models.applications import (
    APPLICATIONS,
    IMAGENET_CLASSES,
    Weights,
    build_application,
    build_features,
)
from cvbatch.models.backbones import build_backbone, feature_map_at_stride
from cvbatch.models.frameworks import keras, layers
from cvbatch.models.fully_convolutional import to_fully_convolutional, without_head
from cvbatch.models.graph_surgery import LayerCopier, apply_graph, output_of

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

_ENCODER = ((1, 2), (1, 1), (2, 2), (2, 1), (4, 2), (4, 1))  # filters as multiples of width, stride
_DECODER = ((4, 1), (4, 2), (2, 1), (2, 2), (1, 1), (1, 2))

FCN_STRIDE = 32  # of the backbone's last map; images are padded to multiples of it
# Stride → layer that the paper's skip connections start from, for VGG.
_VGG_POOLS = {16: "block4_pool", 8: "block3_pool"}
_VGG_UNITS = 4096


def encoder_decoder(
    num_classes: int, image_size: tuple[int, int] = (200, 200), width: int = 64
) -> keras.Model:  # (B, H, W, 3) → (B, H, W, num_classes), a softmax over the last axis
    """Return an encoder-decoder of strided convolutions; 2,880,643 parameters with 3 classes.

    Args:
        image_size: (height, width) in pixels, multiples of 8.
        width: filters of the first convolution.

    Source: Chollet, Deep Learning with Python, 2nd edition, 9.2.
    """
    inputs = keras.Input((*image_size, 3), name="image")
    x = layers.Rescaling(1.0 / 255)(inputs)
    for filters, stride in _ENCODER:
        x = layers.Conv2D(filters * width, 3, stride, padding="same", activation="relu")(x)
    for filters, stride in _DECODER:
        x = layers.Conv2DTranspose(filters * width, 3, stride, padding="same", activation="relu")(x)
    outputs = layers.Conv2D(num_classes, 3, padding="same", activation="softmax", name="scores")(x)
    return keras.Model(inputs, outputs, name="encoder_decoder")


def fcn32s(
    num_classes: int,
    image_size: tuple[int, int] = (224, 224),
    backbone: str = "VGG16",
    backbone_weights: Weights = None,
    units: int = _VGG_UNITS,
) -> keras.Model:  # (B, H, W, 3) → (B, H, W, num_classes), a softmax over the last axis
    """Return a fully convolutional network that upsamples class scores of stride 32.

    Args:
        num_classes: channels of the output; one class is a sigmoid.
        image_size: (height, width) in pixels, at least 32×32. A size that is not a multiple of 32
            is padded with zeros at the right and bottom, and the output is cropped.
        backbone: VGG16 or VGG19, whose fully connected layers become convolutions, or any
            classifier with a feature map of stride 32 (and 16 and 8 for skip connections).
        backbone_weights: "imagenet" or None. For VGG they include the fully connected layers if
            `units` is 4096.
        units: width of VGG's fully connected layers; other backbones ignore it.

    Raises:
        ModelError: the backbone is unknown, has no such weights, or has no feature map of a
            required stride.

    Source: Long, Shelhamer and Darrell, Fully Convolutional Networks for Semantic Segmentation,
        2015.
    """
    return _fcn((), num_classes, image_size, backbone, backbone_weights, units)


def fcn16s(
    num_classes: int,
    image_size: tuple[int, int] = (224, 224),
    backbone: str = "VGG16",
    backbone_weights: Weights = None,
    units: int = _VGG_UNITS,
) -> keras.Model:  # (B, H, W, 3) → (B, H, W, num_classes), a softmax over the last axis
    """Return `fcn32s` with the scores of the stride-16 map added before the last upsampling.

    The layer of these scores is initialised to zeros, so an untrained skip changes nothing.
    """
    return _fcn((16,), num_classes, image_size, backbone, backbone_weights, units)


def fcn8s(
    num_classes: int,
    image_size: tuple[int, int] = (224, 224),
    backbone: str = "VGG16",
    backbone_weights: Weights = None,
    units: int = _VGG_UNITS,
) -> keras.Model:  # (B, H, W, 3) → (B, H, W, num_classes), a softmax over the last axis
    """Return `fcn16s` with the scores of the stride-8 map added, too."""
    return _fcn((16, 8), num_classes, image_size, backbone, backbone_weights, units)


def _fcn(
    skips: tuple[int, ...],  # strides, descending
    num_classes: int,
    image_size: tuple[int, int],
    backbone: str,
    weights: Weights,
    units: int,
) -> keras.Model:
    padding = [-side % FCN_STRIDE for side in image_size]
    padded_size = (image_size[0] + padding[0], image_size[1] + padding[1])
    backbone_model = _feature_maps(backbone, padded_size, weights, units, skips)
    inputs, feature_maps = backbone_model.input, backbone_model.output
    edges = ((0, padding[0]), (0, padding[1]))
    if any(padding):
        inputs = keras.Input((*image_size, 3), name="image")
        padded = layers.ZeroPadding2D(edges, name="pad")(inputs)
        feature_maps = apply_graph(backbone_model, [padded], LayerCopier())
    deepest, *skip_maps = feature_maps
    x = layers.Conv2D(num_classes, 1, name=f"score_{FCN_STRIDE}")(deepest)
    stride = FCN_STRIDE
    for skip_stride, skip_map in zip(skips, skip_maps, strict=True):
        x = blocks.bilinear_upsampling(x, stride // skip_stride, name=f"up_{stride}")
        score = layers.Conv2D(
            num_classes, 1, kernel_initializer="zeros", name=f"score_{skip_stride}"
        )
        x = layers.Add(name=f"fuse_{skip_stride}")([x, score(skip_map)])
        stride = skip_stride
    x = blocks.bilinear_upsampling(x, stride, name=f"up_{stride}")
    if any(padding):
        x = layers.Cropping2D(edges, name="crop")(x)
    activation = "sigmoid" if num_classes == 1 else "softmax"
    outputs = layers.Activation(activation, name="scores")(x)
    return keras.Model(inputs, outputs, name=f"fcn{stride}s")


def _feature_maps(
    backbone: str, size: tuple[int, int], weights: Weights, units: int, skips: tuple[int, ...]
) -> keras.Model:
    """Return a model that outputs the map of stride 32, then those of the skips' strides."""
    if backbone in ("VGG16", "VGG19"):
        dense = _fully_connected(backbone, weights, units)
        graph = to_fully_convolutional(dense, size, padding="same")
        skip_maps = [output_of(graph, _VGG_POOLS[stride]) for stride in skips]
        return keras.Model(graph.input, [graph.output, *skip_maps])
    graph = build_backbone(backbone, size, weights)
    feature_maps = [feature_map_at_stride(graph, stride) for stride in (FCN_STRIDE, *skips)]
    return keras.Model(graph.input, feature_maps)


def _fully_connected(backbone: str, weights: Weights, units: int) -> keras.Model:
    """Return VGG up to its second fully connected layer, with dropout after each."""
    side = APPLICATIONS[backbone].side
    if weights is not None and units == _VGG_UNITS:
        classifier = build_application(backbone, IMAGENET_CLASSES, (side, side), weights)
        features = without_head(classifier)
        dense = [classifier.get_layer(name) for name in ("fc1", "fc2")]
    else:
        features = build_features(backbone, (side, side), weights)
        dense = [layers.Dense(units, activation="relu", name=name) for name in ("fc1", "fc2")]
    x = layers.Flatten()(features.output)
    for i, layer in enumerate(dense, start=1):
        x = layers.Dropout(0.5, name=f"drop{i}")(layer(x))
    return keras.Model(features.input, x, name=backbone)
