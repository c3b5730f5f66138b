"""Networks that give a whole image its classes; every one takes RGB 0..255 and rescales itself."""

from __future__ import annotations

import keras
from keras import layers

from cvbatch.models import blocks


def mini_xception(
    num_classes: int,
    image_size: tuple[int, int] = (180, 180),
    width: int = 32,
    num_blocks: int = 5,
) -> keras.Model:  # (B, H, W, 3) → (B, num_classes)
    """Return a small Xception (Chollet, Deep Learning with Python, 2nd edition, 9.3.5).

    num_classes: 1 gives one sigmoid, more a softmax. image_size: (height, width) in pixels.
    width: filters of the first block; every later block has twice those of the one before.
    721,857 parameters with one class at width 32 with 5 blocks.
    """
    inputs = keras.Input((*image_size, 3), name="image")
    x = layers.Rescaling(1.0 / 255)(inputs)
    x = layers.Conv2D(width, 5, use_bias=False)(x)
    for i in range(num_blocks):
        x = blocks.separable_residual(x, width * 2**i)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.5)(x)
    activation = "sigmoid" if num_classes == 1 else "softmax"
    outputs = layers.Dense(num_classes, activation=activation, name="scores")(x)
    return keras.Model(inputs, outputs, name="mini_xception")
