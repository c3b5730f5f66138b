"""Building blocks shared by the networks: functions from tensor to tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cvbatch.models.custom_layers import Bilinear
from cvbatch.models.frameworks import layers

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

IMAGENET_MEAN_RGB = (123.68, 116.779, 103.939)  # of 0..255
SQUEEZE_RATIO = 16
_RESNET_EPSILON = 1.001e-5  # of keras.applications' ResNets


def separable_residual(
    x: Tensor, filters: int
) -> Tensor:  # (B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, filters)
    """Apply Xception's entry block: two separable convolutions, a pool, a projected shortcut.

    Batch normalisation and relu come before each convolution.

    Source: Chollet, Xception, 2017, figure 5.
    """
    shortcut = layers.Conv2D(filters, 1, strides=2, padding="same", use_bias=False)(x)
    for _ in range(2):
        x = layers.BatchNormalization()(x)
        x = layers.Activation("relu")(x)
        x = layers.SeparableConv2D(filters, 3, padding="same", use_bias=False)(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    return layers.Add()([x, shortcut])


def conv_norm_relu(x: Tensor, filters: int, kernel: int, stride: int) -> Tensor:
    """Apply a same-padded convolution without bias, batch normalisation and relu."""
    x = layers.Conv2D(filters, kernel, strides=stride, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation("relu")(x)


def pooled_residual(
    x: Tensor, filters: int, *, has_pool: bool, name: str
) -> Tensor:  # (B, H, W, C) → (B, H, W, filters), or with a pool (B, ⌈H/2⌉, ⌈W/2⌉, filters)
    """Apply two 3×3 convolutions and add their input, without batch normalisation.

    If the shapes differ, the shortcut is a 1×1 convolution.

    Source: Chollet, Deep Learning with Python, 2nd edition, 9.3.2.
    """
    shortcut = x
    for i in (1, 2):
        x = layers.Conv2D(
            filters, 3, padding="same", activation="relu", name=f"{name}_conv{i}"
        )(x)  # fmt: skip
    if has_pool:
        x = layers.MaxPooling2D(2, padding="same", name=f"{name}_pool")(x)
    if has_pool or shortcut.shape[-1] != filters:
        stride = 2 if has_pool else 1
        shortcut = layers.Conv2D(filters, 1, strides=stride, name=f"{name}_shortcut")(shortcut)
    return layers.Add(name=f"{name}_add")([x, shortcut])


def residual(
    x: Tensor, filters: int, *, stride: int = 1, has_squeeze: bool = False, name: str
) -> Tensor:  # (B, H, W, C) → (B, ⌈H/stride⌉, ⌈W/stride⌉, filters)
    """Apply a residual unit of two 3×3 convolutions.

    If the stride or the number of channels changes, the shortcut is a 1×1 convolution.

    Args:
        has_squeeze: apply `squeeze_excitation` before the sum.

    Source: He et al., Deep Residual Learning, 2016.
    """
    shortcut = x
    if stride != 1 or x.shape[-1] != filters:
        shortcut = _conv_norm(x, filters, 1, stride, f"{name}_shortcut")
    x = _conv_norm(x, filters, 3, stride, f"{name}_1")
    x = layers.Activation("relu", name=f"{name}_1_relu")(x)
    x = _conv_norm(x, filters, 3, 1, f"{name}_2")
    if has_squeeze:
        x = squeeze_excitation(x, name=name)
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.Activation("relu", name=f"{name}_out")(x)


def bottleneck(
    x: Tensor, filters: int, *, stride: int = 1, has_projection: bool = False, name: str
) -> Tensor:  # (B, H, W, C) → (B, ⌈H/stride⌉, ⌈W/stride⌉, 4·filters)
    """Apply a bottleneck residual unit: a 3×3 convolution between two 1×1 convolutions.

    The layers, their order and their names are those of the ResNets of keras.applications, so
    that their weights can be loaded.

    Source: He et al., Deep Residual Learning, 2016, figure 5 right.
    """
    shortcut = x
    if has_projection:
        shortcut = layers.Conv2D(4 * filters, 1, strides=stride, name=f"{name}_0_conv")(x)
        shortcut = resnet_batch_norm(shortcut, f"{name}_0_bn")
    for i, (width, kernel, conv_stride) in enumerate(
        ((filters, 1, stride), (filters, 3, 1), (4 * filters, 1, 1)), start=1
    ):
        x = layers.Conv2D(
            width, kernel, strides=conv_stride, padding="same", name=f"{name}_{i}_conv"
        )(x)  # fmt: skip
        x = resnet_batch_norm(x, f"{name}_{i}_bn")
        if i < 3:
            x = layers.Activation("relu", name=f"{name}_{i}_relu")(x)
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.Activation("relu", name=f"{name}_out")(x)


def squeeze_excitation(
    x: Tensor, *, ratio: int = SQUEEZE_RATIO, name: str
) -> Tensor:  # (B, H, W, C) → the same shape
    """Scale each channel by a factor in 0..1, computed from the averages of all channels.

    It has C · ⌊C/ratio⌋ · 2 + ⌊C/ratio⌋ + C parameters.

    Source: Hu et al., Squeeze-and-Excitation Networks, 2018.
    """
    channels = x.shape[-1]
    scale = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    scale = layers.Dense(
        max(1, channels // ratio), activation="relu", name=f"{name}_reduce"
    )(scale)  # fmt: skip
    scale = layers.Dense(channels, activation="sigmoid", name=f"{name}_excite")(scale)
    return layers.Multiply(name=f"{name}_scale")([x, scale])


def inception(
    x: Tensor, filters: Sequence[int], *, name: str
) -> Tensor:  # (B, H, W, C) → (B, H, W, sum of the four branches' filters)
    """Apply an inception module: concatenated branches of 1×1, 3×3, 5×5, and pool with 1×1.

    Args:
        filters: six numbers: 1×1; reduction before 3×3, 3×3; reduction before 5×5, 5×5; 1×1
            after the pool.

    Source: Szegedy et al., Going Deeper with Convolutions, 2015.
    """
    filters_1, reduce_3, filters_3, reduce_5, filters_5, filters_pool = filters

    def convolve(y: Tensor, width: int, kernel: int, suffix: str) -> Tensor:
        return layers.Conv2D(
            width, kernel, padding="same", activation="relu", name=f"{name}_{suffix}"
        )(y)  # fmt: skip

    pool = layers.MaxPooling2D(3, strides=1, padding="same", name=f"{name}_pool")(x)
    branches = [
        convolve(x, filters_1, 1, "1x1"),
        convolve(convolve(x, reduce_3, 1, "3x3_reduce"), filters_3, 3, "3x3"),
        convolve(convolve(x, reduce_5, 1, "5x5_reduce"), filters_5, 5, "5x5"),
        convolve(pool, filters_pool, 1, "pool_1x1"),
    ]
    return layers.Concatenate(name=f"{name}_out")(branches)


def bilinear_upsampling(
    x: Tensor, factor: int, *, name: str | None = None
) -> Tensor:  # (B, H, W, C) → (B, factor·H, factor·W, C)
    """Apply a trainable transposed convolution, initialised to bilinear interpolation.

    Initially it equals resizing with half-pixel centres, except at the border, where it
    interpolates with zeros. The kernel size is 2·factor − factor mod 2.

    Source: Long et al., Fully Convolutional Networks, 2015, section 3.3.
    """
    return layers.Conv2DTranspose(
        x.shape[-1],
        2 * factor - factor % 2,
        strides=factor,
        padding="same",
        use_bias=False,
        kernel_initializer=Bilinear(),
        name=name,
    )(x)


def class_scores(
    x: Tensor, num_classes: int, multi_label: bool = False, *, name: str = "scores"
) -> Tensor:  # (B, features) → (B, num_classes)
    """Apply the last layer of a classifier: Dense with the activation of `score_activation`."""
    activation = score_activation(num_classes, multi_label)
    return layers.Dense(num_classes, activation=activation, name=name)(x)


def score_activation(num_classes: int, multi_label: bool) -> str:
    """Return "sigmoid" for one class or independent (multi-label) classes, else "softmax"."""
    return "sigmoid" if multi_label or num_classes == 1 else "softmax"


def _conv_norm(x: Tensor, filters: int, kernel: int, stride: int, name: str) -> Tensor:
    """Apply a same-padded convolution without bias, then batch normalisation."""
    x = layers.Conv2D(
        filters, kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_conv"
    )(x)
    return layers.BatchNormalization(name=f"{name}_norm")(x)


def resnet_batch_norm(x: Tensor, name: str) -> Tensor:
    """Apply batch normalisation with the epsilon of keras.applications' ResNets."""
    return layers.BatchNormalization(epsilon=_RESNET_EPSILON, name=name)(x)
