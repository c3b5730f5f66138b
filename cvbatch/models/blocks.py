"""The pieces that several networks are laid from, each a function from tensor to tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import layers

from cvbatch.models.custom_layers import Bilinear

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

IMAGENET_MEAN_RGB = (123.68, 116.779, 103.939)  # of 0..255
SQUEEZE_RATIO = 16
_PUBLISHED_EPSILON = 1.001e-5


def separable_residual(
    x: Tensor, filters: int
) -> Tensor:  # (B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, filters)
    """Return Xception's entry block: two separable convolutions, a pool, a projected shortcut.

    Batch normalisation and relu stand before each convolution (Chollet 2017, figure 5).
    """
    shortcut = layers.Conv2D(filters, 1, strides=2, padding="same", use_bias=False)(x)
    for _ in range(2):
        x = layers.BatchNormalization()(x)
        x = layers.Activation("relu")(x)
        x = layers.SeparableConv2D(filters, 3, padding="same", use_bias=False)(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    return layers.Add()([x, shortcut])


def conv_norm_relu(x: Tensor, filters: int, kernel: int, stride: int) -> Tensor:
    """Return a same-padded convolution without bias, batch normalisation, relu."""
    x = layers.Conv2D(filters, kernel, strides=stride, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation("relu")(x)


def pooled_residual(
    x: Tensor, filters: int, *, has_pool: bool, name: str
) -> Tensor:  # (B, H, W, C) → (B, H, W, filters), or with a pool (B, ⌈H/2⌉, ⌈W/2⌉, filters)
    """Return two 3×3 convolutions, their input added; a 1×1 convolution makes the shapes equal.

    There is no batch normalisation (Chollet, Deep Learning with Python, 2nd edition, 9.3.2).
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
    """Return a residual unit of two 3×3 convolutions (He et al., Deep Residual Learning, 2016).

    Where stride or the number of maps changes, the shortcut is a 1×1 convolution. has_squeeze:
    the maps are scaled by `squeeze_excitation` before the sum.
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
    """Return a residual unit that convolves 3×3 between two 1×1 convolutions.

    Its layers, their order and their names are those of keras.applications' ResNets, so that
    their weights fit (He et al. 2016, figure 5 right).
    """
    shortcut = x
    if has_projection:
        shortcut = layers.Conv2D(4 * filters, 1, strides=stride, name=f"{name}_0_conv")(x)
        shortcut = resnet_batch_norm(shortcut, f"{name}_0_bn")
    for i, (width, kernel, step) in enumerate(
        ((filters, 1, stride), (filters, 3, 1), (4 * filters, 1, 1)), start=1
    ):
        x = layers.Conv2D(
            width, kernel, strides=step, padding="same", name=f"{name}_{i}_conv"
        )(x)  # fmt: skip
        x = resnet_batch_norm(x, f"{name}_{i}_bn")
        if i < 3:
            x = layers.Activation("relu", name=f"{name}_{i}_relu")(x)
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.Activation("relu", name=f"{name}_out")(x)


def squeeze_excitation(
    x: Tensor, *, ratio: int = SQUEEZE_RATIO, name: str
) -> Tensor:  # (B, H, W, C) → the same shape
    """Return the maps, each times a number in 0..1 that all maps' averages together decide.

    C · ⌊C/ratio⌋ · 2 + ⌊C/ratio⌋ + C parameters (Hu et al., Squeeze-and-Excitation, 2018).
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
) -> Tensor:  # (B, H, W, C) → (B, H, W, the sum of four of the filters)
    """Return four branches side by side: 1×1, 3×3, 5×5, and a 3×3 pool with 1×1.

    filters: of 1×1; of the reduction before 3×3 and of 3×3; of that before 5×5 and of 5×5; of
    the convolution after the pool (Szegedy et al., Going Deeper with Convolutions, 2015).
    """
    of_1, before_3, of_3, before_5, of_5, of_pool = filters

    def convolve(y: Tensor, width: int, kernel: int, part: str) -> Tensor:
        return layers.Conv2D(
            width, kernel, padding="same", activation="relu", name=f"{name}_{part}"
        )(y)  # fmt: skip

    pool = layers.MaxPooling2D(3, strides=1, padding="same", name=f"{name}_pool")(x)
    branches = [
        convolve(x, of_1, 1, "1x1"),
        convolve(convolve(x, before_3, 1, "3x3_reduce"), of_3, 3, "3x3"),
        convolve(convolve(x, before_5, 1, "5x5_reduce"), of_5, 5, "5x5"),
        convolve(pool, of_pool, 1, "pool_1x1"),
    ]
    return layers.Concatenate(name=f"{name}_out")(branches)


def bilinear_upsampling(
    x: Tensor, factor: int, *, name: str | None = None
) -> Tensor:  # (B, H, W, C) → (B, factor·H, factor·W, C)
    """Return a trainable transposed convolution that begins as bilinear interpolation.

    Away from the border it equals resizing with half-pixel centres; at the border it mixes in
    zeros. kernel 2·factor − factor mod 2, C·C·kernel² parameters (Long et al. 2015, 3.3).
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
    """Return the Dense layer that a classifier ends in, its activation in it."""
    activation = score_activation(num_classes, multi_label)
    return layers.Dense(num_classes, activation=activation, name=name)(x)


def score_activation(num_classes: int, multi_label: bool) -> str:
    """Return "softmax"; for one class, or where each may hold by itself, "sigmoid"."""
    return "sigmoid" if multi_label or num_classes == 1 else "softmax"


def _conv_norm(x: Tensor, filters: int, kernel: int, stride: int, name: str) -> Tensor:
    """Return a same-padded convolution without bias and its batch normalisation."""
    x = layers.Conv2D(
        filters, kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_conv"
    )(x)
    return layers.BatchNormalization(name=f"{name}_norm")(x)


def resnet_batch_norm(x: Tensor, name: str) -> Tensor:
    """Return batch normalisation with the constant that the published ResNets have."""
    return layers.BatchNormalization(epsilon=_PUBLISHED_EPSILON, name=name)(x)
