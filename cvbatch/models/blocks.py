"""The pieces that several networks are laid from, each a function from tensor to tensor."""

from __future__ import annotations

from typing import Any

from keras import layers

Tensor = Any  # a keras.KerasTensor; Keras carries no type information


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
