"""LeNet-5: a modern variant, and the network as published."""

from __future__ import annotations

from cvbatch.models import blocks
from cvbatch.models.custom_layers import (
    PartialConv2D,
    RadialBasis,
    TrainableSubsampling,
    scaled_tanh,
)
from cvbatch.models.frameworks import keras, layers

CODE_LENGTH = 84  # units of layer F6 and length of the code of a class
# LeCun et al. 1998, table I: for each map of layer C3 the maps of S2 that it reads.
C3_CONNECTIONS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip


def lenet5(
    num_classes: int, image_size: tuple[int, int] = (32, 32), *, multi_label: bool = False
) -> keras.Model:  # (B, H, W, 1) grey → (B, num_classes)
    """Return LeNet-5 with average pooling, full convolutions and a softmax.

    Args:
        image_size: at least 32×32. 61,706 parameters with 10 classes.
    """
    inputs = keras.Input((*image_size, 1), name="image")
    x = layers.Rescaling(1.0 / 255)(inputs)
    x = layers.Conv2D(6, 5, activation="tanh", name="c1")(x)
    x = layers.AveragePooling2D(2, name="s2")(x)
    x = layers.Conv2D(16, 5, activation="tanh", name="c3")(x)
    x = layers.AveragePooling2D(2, name="s4")(x)
    x = layers.Conv2D(120, 5, activation="tanh", name="c5")(x)
    x = layers.Dense(CODE_LENGTH, activation="tanh", name="f6")(layers.Flatten()(x))
    scores = blocks.class_scores(x, num_classes, multi_label)
    return keras.Model(inputs, scores, name="lenet5")


def lenet5_original(
    num_classes: int, image_size: tuple[int, int] = (32, 32), *, multi_label: bool = False
) -> keras.Model:  # (B, H, W, 1) grey → (B, num_classes)
    """Return LeNet-5 as published.

    Subsampling has trainable parameters, C3 is connected to S2 by the paper's table I, and each
    class has a fixed code. The scores are the softmax of the negative squared distances between
    F6 and the codes. Ink has the value 255, background 0. It has 60,000 trainable parameters, and
    84 fixed ones per class.

    Args:
        image_size: at least 32×32.

    Source: LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998.
    """
    inputs = keras.Input((*image_size, 1), name="image")
    x = layers.Rescaling(1.275 / 255, -0.1)(
        inputs
    )  # background −0.1, ink 1.175: mean 0, variance 1
    for name, layer in (
        ("c1", layers.Conv2D(6, 5, name="c1")),
        ("s2", TrainableSubsampling(name="s2")),
        ("c3", PartialConv2D(C3_CONNECTIONS, 5, name="c3")),
        ("s4", TrainableSubsampling(name="s4")),
        ("c5", layers.Conv2D(120, 5, name="c5")),
        ("flat", layers.Flatten(name="flat")),
        ("f6", layers.Dense(CODE_LENGTH, name="f6")),
    ):
        x = layer(x)
        if name != "flat":
            x = layers.Activation(scaled_tanh, name=f"{name}_tanh")(x)
    x = RadialBasis(num_classes, name="rbf")(x)
    activation = blocks.score_activation(num_classes, multi_label)
    if activation == "sigmoid":  # 0.5 half-way between a code and its negative
        x = layers.Rescaling(1.0, CODE_LENGTH, name="threshold")(x)
    scores = layers.Activation(activation, name="scores")(x)
    return keras.Model(inputs, scores, name="lenet5_original")
