"""Networks that give every pixel a class; every one takes RGB 0..255 and rescales itself."""

from __future__ import annotations

import keras
from keras import layers

_ENCODER = ((1, 2), (1, 1), (2, 2), (2, 1), (4, 2), (4, 1))  # filters in widths, stride
_DECODER = ((4, 1), (4, 2), (2, 1), (2, 2), (1, 1), (1, 2))


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
