"""Image classifiers; each takes pixels 0..255 and rescales them itself."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from cvbatch.models import blocks
from cvbatch.models.custom_layers import LocalResponseNormalization
from cvbatch.models.googlenet import googlenet, se_googlenet
from cvbatch.models.lenet import lenet5, lenet5_original
from cvbatch.models.resnets import resnet34, resnet152, se_resnet34
from cvbatch.models.zoo_entry import ZooEntry

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

# Filters in widths, whether a 2×2 pool follows.
_SMALL = ((1, True), (2, True), (4, True), (8, True), (8, False))
_SMALL_150 = ((1, True), (2, True), (4, True), (4, True))
_MNIST = ((1, True), (2, True), (4, False))
_RESIDUAL = ((1, True), (2, True), (4, False))
# Filters in widths, kernel, whether a 2×2 pool follows.
_FASHION = ((1, 7, True), (2, 3, False), (2, 3, True), (4, 3, False), (4, 3, True))
# Filters, kernel, stride, padding, whether normalisation and a 3×3 pool of stride 2 follow.
_ALEXNET = (
    (96, 11, 4, "valid", True), (256, 5, 1, "same", True),
    (384, 3, 1, "same", False), (384, 3, 1, "same", False), (256, 3, 1, "same", False),
)  # fmt: skip


def small_convnet(
    num_classes: int,
    image_size: tuple[int, int] = (180, 180),
    *,
    multi_label: bool = False,
    width: int = 32,
) -> keras.Model:  # (B, H, W, 3) → (B, num_classes)
    """Return five convolutions with pools between (Chollet, Deep Learning with Python, 8.2.5).

    image_size: (height, width) in pixels, 78 and more. width: filters of the first convolution.
    991,041 parameters with one class.
    """
    inputs = keras.Input((*image_size, 3), name="image")
    x = _convolve_and_pool(layers.Rescaling(1.0 / 255)(inputs), _SMALL, width)
    x = layers.Dropout(0.5)(layers.Flatten()(x))
    scores = blocks.class_scores(x, num_classes, multi_label)
    return keras.Model(inputs, scores, name="small_convnet")


def small_convnet_150(
    num_classes: int,
    image_size: tuple[int, int] = (150, 150),
    *,
    multi_label: bool = False,
    width: int = 32,
) -> keras.Model:  # (B, H, W, 3) → (B, num_classes)
    """Return four convolutions, each pooled, and a hidden layer (Chollet, 1st edition, 5.2.3).

    image_size: (height, width) in pixels, 46 and more. width: filters of the first convolution;
    the hidden layer has 16 times as many. 3,453,121 parameters with one class.
    """
    inputs = keras.Input((*image_size, 3), name="image")
    x = _convolve_and_pool(layers.Rescaling(1.0 / 255)(inputs), _SMALL_150, width)
    x = layers.Dense(16 * width, activation="relu", name="hidden")(layers.Flatten()(x))
    scores = blocks.class_scores(x, num_classes, multi_label)
    return keras.Model(inputs, scores, name="small_convnet_150")


def mnist_convnet(
    num_classes: int,
    image_size: tuple[int, int] = (28, 28),
    *,
    multi_label: bool = False,
    pools: bool = True,
    width: int = 32,
) -> keras.Model:  # (B, H, W, 1) grey → (B, num_classes)
    """Return three convolutions for grey digits (Chollet, Deep Learning with Python, 8.1).

    image_size: (height, width) in pixels, 18 and more with pools, 7 without. width: filters of
    the first convolution. 104,202 parameters with 10 classes; 712,202 without the pools.
    """
    inputs = keras.Input((*image_size, 1), name="image")
    table = [(filters, pools and has_pool) for filters, has_pool in _MNIST]
    x = _convolve_and_pool(layers.Rescaling(1.0 / 255)(inputs), table, width)
    scores = blocks.class_scores(layers.Flatten()(x), num_classes, multi_label)
    return keras.Model(inputs, scores, name="mnist_convnet")


def fashion_convnet(
    num_classes: int,
    image_size: tuple[int, int] = (28, 28),
    *,
    multi_label: bool = False,
    width: int = 64,
) -> keras.Model:  # (B, H, W, 1) grey → (B, num_classes)
    """Return five convolutions and two hidden layers (Géron, Hands-On Machine Learning, ch. 14).

    image_size: (height, width) in pixels, 8 and more. width: filters of the first convolution.
    1,413,834 parameters with 10 classes.
    """
    inputs = keras.Input((*image_size, 1), name="image")
    x = layers.Rescaling(1.0 / 255)(inputs)
    for i, (filters, kernel, has_pool) in enumerate(_FASHION, start=1):
        x = layers.Conv2D(
            filters * width, kernel, padding="same", activation="relu", name=f"conv_{i}"
        )(x)  # fmt: skip
        if has_pool:
            x = layers.MaxPooling2D(2, name=f"pool_{i}")(x)
    x = layers.Flatten()(x)
    for i, units in enumerate((2 * width, width), start=1):
        x = layers.Dense(units, activation="relu", name=f"hidden_{i}")(x)
        x = layers.Dropout(0.5)(x)
    scores = blocks.class_scores(x, num_classes, multi_label)
    return keras.Model(inputs, scores, name="fashion_convnet")


def residual_convnet(
    num_classes: int,
    image_size: tuple[int, int] = (32, 32),
    *,
    multi_label: bool = False,
    width: int = 32,
) -> keras.Model:  # (B, H, W, 3) → (B, num_classes)
    """Return three residual blocks (Chollet, Deep Learning with Python, 2nd edition, 9.3.2).

    image_size: (height, width) in pixels, any. width: filters of the first block. 297,697
    parameters with one class.
    """
    inputs = keras.Input((*image_size, 3), name="image")
    x = layers.Rescaling(1.0 / 255)(inputs)
    for i, (filters, has_pool) in enumerate(_RESIDUAL, start=1):
        x = blocks.pooled_residual(x, filters * width, has_pool=has_pool, name=f"block_{i}")
    x = layers.GlobalAveragePooling2D()(x)
    scores = blocks.class_scores(x, num_classes, multi_label)
    return keras.Model(inputs, scores, name="residual_convnet")


def mini_xception(
    num_classes: int,
    image_size: tuple[int, int] = (180, 180),
    width: int = 32,
    num_blocks: int = 5,
    *,
    multi_label: bool = False,
) -> keras.Model:  # (B, H, W, 3) → (B, num_classes)
    """Return a small Xception (Chollet, Deep Learning with Python, 2nd edition, 9.3.5).

    num_classes: 1 gives one sigmoid, more a softmax. image_size: (height, width) in pixels, 5
    and more. width: filters of the first block; every later block has twice those of the one
    before. 721,857 parameters with one class at width 32 with 5 blocks.
    """
    inputs = keras.Input((*image_size, 3), name="image")
    x = layers.Rescaling(1.0 / 255)(inputs)
    x = layers.Conv2D(width, 5, use_bias=False)(x)
    for i in range(num_blocks):
        x = blocks.separable_residual(x, width * 2**i)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.5)(x)
    scores = blocks.class_scores(x, num_classes, multi_label)
    return keras.Model(inputs, scores, name="mini_xception")


def alexnet(
    num_classes: int,
    image_size: tuple[int, int] = (227, 227),
    *,
    multi_label: bool = False,
    width: int = 96,
) -> keras.Model:  # (B, H, W, 3) → (B, num_classes)
    """Return AlexNet on one device, without the pool after its last convolution.

    Krizhevsky et al., ImageNet Classification with Deep CNNs, 2012: the mean colour is taken
    off and the scale of 0..255 kept, for which the constants of the response normalisation are
    made. image_size: (height, width) in pixels, 35 and more. width: filters of the first
    convolution, a multiple of 3; all others are in proportion. 201,838,952 parameters with 1000
    classes.
    """
    inputs = keras.Input((*image_size, 3), name="image")
    x = layers.Rescaling(1.0, [-mean for mean in blocks.IMAGENET_MEAN_RGB])(inputs)
    for i, (filters, kernel, stride, padding, is_pooled) in enumerate(_ALEXNET, start=1):
        x = layers.Conv2D(
            filters * width // 96, kernel, stride, padding, activation="relu", name=f"conv_{i}"
        )(x)  # fmt: skip
        if is_pooled:
            x = LocalResponseNormalization(name=f"norm_{i}")(x)
            x = layers.MaxPooling2D(3, strides=2, name=f"pool_{i}")(x)
    x = layers.Flatten()(x)
    for i in (1, 2):
        x = layers.Dense(4096 * width // 96, activation="relu", name=f"hidden_{i}")(x)
        x = layers.Dropout(0.5)(x)
    scores = blocks.class_scores(x, num_classes, multi_label)
    return keras.Model(inputs, scores, name="alexnet")


def _convolve_and_pool(x: Tensor, table: Any, width: int) -> Tensor:
    """Return a 3×3 valid convolution with relu for each row of a table, pooled where it says."""
    for i, (filters, has_pool) in enumerate(table, start=1):
        x = layers.Conv2D(filters * width, 3, activation="relu", name=f"conv_{i}")(x)
        if has_pool:
            x = layers.MaxPooling2D(2, name=f"pool_{i}")(x)
    return x


# All classifiers but those of keras.applications; a backbone is one of them by its name.
CLASSIFIERS: dict[str, ZooEntry] = {
    build.__name__: ZooEntry.classifier(build, num_classes, side, minimum)
    for build, num_classes, side, minimum in (
        (small_convnet, 1, 180, 78),
        (small_convnet_150, 1, 150, 46),
        (mnist_convnet, 10, 28, 18),
        (fashion_convnet, 10, 28, 8),
        (residual_convnet, 1, 32, 1),
        (mini_xception, 1, 180, 5),
        (lenet5, 10, 32, 32),
        (lenet5_original, 10, 32, 32),
        (alexnet, 1000, 227, 35),
        (googlenet, 1000, 224, 1),
        (se_googlenet, 1000, 224, 1),
        (resnet34, 1000, 224, 1),
        (resnet152, 1000, 224, 1),
        (se_resnet34, 1000, 224, 1),
    )
}
