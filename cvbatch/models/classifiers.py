"""Image classifiers, and the table of all but those of keras.applications.

Every network takes pixels 0..255 and rescales them itself. Common arguments of the builders:
num_classes: outputs; one class is a sigmoid, several are a softmax. image_size: (height, width)
in pixels. multi_label: a sigmoid for each class. width: filters of the first convolution.
"""

from __future__ import annotations

from typing import Any

from cvbatch.models import blocks
from cvbatch.models.custom_layers import LocalResponseNormalization
from cvbatch.models.frameworks import keras, layers
from cvbatch.models.googlenet import googlenet, se_googlenet
from cvbatch.models.lenet import lenet5, lenet5_original
from cvbatch.models.resnets import resnet34, resnet152, se_resnet34
from cvbatch.models.zoo_entry import ZooEntry

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

# Filters as multiples of width, whether a 2×2 pool follows.
_SMALL = ((1, True), (2, True), (4, True), (8, True), (8, False))
_SMALL_150 = ((1, True), (2, True), (4, True), (4, True))
_MNIST = ((1, True), (2, True), (4, False))
_RESIDUAL = ((1, True), (2, True), (4, False))
# Filters as multiples of width, kernel, whether a 2×2 pool follows.
_FASHION = ((1, 7, True), (2, 3, False), (2, 3, True), (4, 3, False), (4, 3, True))
# Filters at width 96, kernel, stride, padding, whether normalisation and a 3×3 pool follow.
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
    """Return a network of five convolutions with pooling; 991,041 parameters with one class.

    Args:
        image_size: at least 78×78.

    Source: Chollet, Deep Learning with Python, 2nd edition, 8.2.5.
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
    """Return a network of four pooled convolutions; 3,453,121 parameters with one class.

    Args:
        image_size: at least 46×46.
        width: filters of the first convolution; the hidden Dense layer has 16 times as many units.

    Source: Chollet, Deep Learning with Python, 1st edition, 5.2.3.
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
    """Return three convolutions for grey digits; 104,202 parameters with 10 classes.

    Args:
        image_size: at least 18×18, or 7×7 without pooling.
        pools: apply max pooling; without, the network has 712,202 parameters.

    Source: Chollet, Deep Learning with Python, 2nd edition, 8.1.
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
    """Return a network of five convolutions for grey images; 1,413,834 parameters with 10 classes.

    Args:
        image_size: at least 8×8.

    Source: Géron, Hands-On Machine Learning, chapter 14.
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
    """Return a network of three residual blocks; 297,697 parameters with one class.

    Source: Chollet, Deep Learning with Python, 2nd edition, 9.3.2.
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
    """Return a small Xception; 721,857 parameters with one class.

    Args:
        image_size: at least 5×5.
        num_blocks: each block has twice the filters of the previous one.

    Source: Chollet, Deep Learning with Python, 2nd edition, 9.3.5.
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
    """Return one-branch AlexNet without its last pool; 201,838,952 parameters with 1000 classes.

    The mean colour is subtracted from RGB 0..255 without rescaling: the constants of the response
    normalisation are chosen for that range.

    Args:
        image_size: at least 35×35.
        width: filters of the first convolution, a multiple of 3; all others are in proportion.

    Source: Krizhevsky et al., ImageNet Classification with Deep CNNs, 2012.
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
    """Apply a 3×3 valid convolution with relu, and a pool if specified, for each row of a table."""
    for i, (filters, has_pool) in enumerate(table, start=1):
        x = layers.Conv2D(filters * width, 3, activation="relu", name=f"conv_{i}")(x)
        if has_pool:
            x = layers.MaxPooling2D(2, name=f"pool_{i}")(x)
    return x


# Name → builder and defaults; these classifiers can also be backbones.
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
