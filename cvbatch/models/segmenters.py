"""Networks that give every pixel a class; every one takes RGB 0..255 and rescales itself."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from cvbatch.models import blocks
from cvbatch.models.applications import (
    APPLICATIONS,
    IMAGENET_CLASSES,
    Weights,
    build_application,
    build_features,
)
from cvbatch.models.backbones import build_backbone, feature_map_at_stride
from cvbatch.models.fully_convolutional import to_fully_convolutional, without_head
from cvbatch.models.graph_surgery import LayerCopier, apply_graph, output_of

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

_ENCODER = ((1, 2), (1, 1), (2, 2), (2, 1), (4, 2), (4, 1))  # filters in widths, stride
_DECODER = ((4, 1), (4, 2), (2, 1), (2, 2), (1, 1), (1, 2))

FCN_STRIDE = 32  # of the backbone's last map; sides of the image are padded to multiples of it
# The pools the paper's skip connections start from, by stride; other backbones' are looked for.
_VGG_POOLS = {16: "block4_pool", 8: "block3_pool"}
_VGG_UNITS = 4096


def encoder_decoder(
    num_classes: int, image_size: tuple[int, int] = (200, 200), width: int = 64
) -> keras.Model:  # (B, H, W, 3) → (B, H, W, num_classes), a softmax over the last axis
    """Return a convolutional encoder and decoder (Chollet, Deep Learning with Python, 9.2).

    image_size: (height, width) in pixels, multiples of 8; strides rather than pools keep
    location. 2,880,643 parameters with 3 classes at width 64.
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
    """Return a fully convolutional network that scores at stride 32 and interpolates.

    Long, Shelhamer and Darrell, Fully Convolutional Networks for Semantic Segmentation, 2015.
    image_size: (height, width) in pixels, any from 32; what is no multiple of 32 is padded with
    zeros at the right and bottom, and the answer cut back. backbone: VGG16 or VGG19, whose fully
    connected layers become convolutions, or any classifier with a map of stride 32 (and 16 and 8
    for skips). backbone_weights: "imagenet" or None; for VGG with its fully connected layers
    where `units`, their width, is their own 4096. One class is a sigmoid.

    Raises:
        ModelError: the backbone is unknown, or lacks a map of those strides or the weights.
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

    Those begin as zeros, so an untrained skip changes nothing.
    """
    return _fcn((16,), num_classes, image_size, backbone, backbone_weights, units)


def fcn8s(
    num_classes: int,
    image_size: tuple[int, int] = (224, 224),
    backbone: str = "VGG16",
    backbone_weights: Weights = None,
    units: int = _VGG_UNITS,
) -> keras.Model:  # (B, H, W, 3) → (B, H, W, num_classes), a softmax over the last axis
    """Return `fcn16s` with the scores of the stride-8 map added as well."""
    return _fcn((16, 8), num_classes, image_size, backbone, backbone_weights, units)


def _fcn(
    skips: tuple[int, ...],  # strides, falling
    num_classes: int,
    image_size: tuple[int, int],
    backbone: str,
    weights: Weights,
    units: int,
) -> keras.Model:
    missing = [-side % FCN_STRIDE for side in image_size]
    padded = (image_size[0] + missing[0], image_size[1] + missing[1])
    maps = _maps(backbone, padded, weights, units, skips)
    inputs, found = maps.input, maps.output
    edges = ((0, missing[0]), (0, missing[1]))
    if any(missing):
        inputs = keras.Input((*image_size, 3), name="image")
        found = apply_graph(maps, [layers.ZeroPadding2D(edges, name="pad")(inputs)], LayerCopier())
    deepest, *skipped = found
    x = layers.Conv2D(num_classes, 1, name=f"score_{FCN_STRIDE}")(deepest)
    stride = FCN_STRIDE
    for finer, tensor in zip(skips, skipped, strict=True):
        x = blocks.bilinear_upsampling(x, stride // finer, name=f"up_{stride}")
        skip = layers.Conv2D(num_classes, 1, kernel_initializer="zeros", name=f"score_{finer}")
        x = layers.Add(name=f"fuse_{finer}")([x, skip(tensor)])
        stride = finer
    x = blocks.bilinear_upsampling(x, stride, name=f"up_{stride}")
    if any(missing):
        x = layers.Cropping2D(edges, name="crop")(x)
    activation = "sigmoid" if num_classes == 1 else "softmax"
    outputs = layers.Activation(activation, name="scores")(x)
    return keras.Model(inputs, outputs, name=f"fcn{stride}s")


def _maps(
    backbone: str, size: tuple[int, int], weights: Weights, units: int, skips: tuple[int, ...]
) -> keras.Model:
    """Return a model of a list of maps: that of stride 32, then those of the skips' strides."""
    if backbone in ("VGG16", "VGG19"):
        dense = _fully_connected(backbone, weights, units)
        graph = to_fully_convolutional(dense, size, padding="same")
        found = [output_of(graph, _VGG_POOLS[stride]) for stride in skips]
        return keras.Model(graph.input, [graph.output, *found])
    graph = build_backbone(backbone, size, weights)
    found = [feature_map_at_stride(graph, stride) for stride in (FCN_STRIDE, *skips)]
    return keras.Model(graph.input, found)


def _fully_connected(backbone: str, weights: Weights, units: int) -> keras.Model:
    """Return VGG up to the second of its fully connected layers, with dropout behind each."""
    side = APPLICATIONS[backbone].side
    if weights is not None and units == _VGG_UNITS:
        whole = build_application(backbone, IMAGENET_CLASSES, (side, side), weights)
        features = without_head(whole)
        dense = [whole.get_layer(name) for name in ("fc1", "fc2")]
    else:
        features = build_features(backbone, (side, side), weights)
        dense = [layers.Dense(units, activation="relu", name=name) for name in ("fc1", "fc2")]
    x = layers.Flatten()(features.output)
    for i, layer in enumerate(dense, start=1):
        x = layers.Dropout(0.5, name=f"drop{i}")(layer(x))
    return keras.Model(features.input, x, name=backbone)
