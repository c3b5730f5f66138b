"""GoogLeNet, plain and with squeeze-and-excitation."""

from __future__ import annotations

from typing import Any

from cvbatch.models import blocks
from cvbatch.models.custom_layers import LocalResponseNormalization
from cvbatch.models.frameworks import keras, layers

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

AUXILIARY_LOSS_WEIGHT = 0.3  # of each auxiliary head's loss in the total loss
# Szegedy et al. 2015, table 1: filters as in `blocks.inception`.
_MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
_POOLED = ("3b", "4e")
_AUXILIARY = {"4a": "auxiliary_1", "4d": "auxiliary_2"}  # module → auxiliary head on its output


def googlenet(
    num_classes: int,
    image_size: tuple[int, int] = (224, 224),
    *,
    multi_label: bool = False,
    auxiliary: bool = False,
    width: int = 64,
) -> keras.Model:  # (B, H, W, 3) → (B, num_classes)
    """Return GoogLeNet; 6,998,552 parameters with 1000 classes, 13,378,280 with auxiliary heads.

    The mean colour is subtracted from RGB 0..255, without rescaling.

    Args:
        image_size: any; at least 65×65 with auxiliary heads.
        auxiliary: output a dict of "scores", "auxiliary_1" and "auxiliary_2", for training. The
            losses of the auxiliary heads have the weight `AUXILIARY_LOSS_WEIGHT`.
        width: filters of the first convolution, a multiple of 8; all others are in proportion.

    Source: Szegedy et al., Going Deeper with Convolutions, 2015.
    """
    inputs, scores = _build(num_classes, image_size, multi_label, width, auxiliary, False)
    return keras.Model(inputs, scores if auxiliary else scores["scores"], name="googlenet")


def se_googlenet(
    num_classes: int,
    image_size: tuple[int, int] = (224, 224),
    *,
    multi_label: bool = False,
    width: int = 64,
) -> keras.Model:  # (B, H, W, 3) → (B, num_classes)
    """Return GoogLeNet with squeeze-and-excitation after each inception module.

    The arguments are those of `googlenet`; 7,478,655 parameters with 1000 classes.

    Source: Hu et al., Squeeze-and-Excitation Networks, 2018, figure 2.
    """
    inputs, scores = _build(num_classes, image_size, multi_label, width, False, True)
    return keras.Model(inputs, scores["scores"], name="se_googlenet")


def _build(
    num_classes: int,
    image_size: tuple[int, int],
    multi_label: bool,
    width: int,
    has_auxiliary: bool,
    has_squeeze: bool,
) -> tuple[Tensor, dict[str, Tensor]]:  # input, scores of each head
    inputs = keras.Input((*image_size, 3), name="image")
    x = _stem(inputs, width)
    heads = {}
    for module, filters in _MODULES.items():
        name = f"inception_{module}"
        x = blocks.inception(x, [f * width // 64 for f in filters], name=name)
        if has_squeeze:
            x = blocks.squeeze_excitation(x, name=name)
        if has_auxiliary and module in _AUXILIARY:
            head = _AUXILIARY[module]
            heads[head] = _auxiliary_scores(x, num_classes, multi_label, width, head)
        if module in _POOLED:
            x = layers.MaxPooling2D(3, strides=2, padding="same", name=f"pool_{module}")(x)
    x = layers.Dropout(0.4)(layers.GlobalAveragePooling2D()(x))
    return inputs, {"scores": blocks.class_scores(x, num_classes, multi_label), **heads}


def _stem(x: Tensor, width: int) -> Tensor:  # (B, H, W, 3) → (B, ⌈H/8⌉, ⌈W/8⌉, 3·width)
    x = layers.Rescaling(1.0, [-mean for mean in blocks.IMAGENET_MEAN_RGB])(x)
    x = _convolve(x, width, 7, "conv_1", stride=2)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="pool_1")(x)
    x = LocalResponseNormalization(name="norm_1")(x)
    x = _convolve(x, width, 1, "conv_2_reduce")
    x = _convolve(x, 3 * width, 3, "conv_2")
    x = LocalResponseNormalization(name="norm_2")(x)
    return layers.MaxPooling2D(3, strides=2, padding="same", name="pool_2")(x)


def _auxiliary_scores(
    x: Tensor, num_classes: int, multi_label: bool, width: int, name: str
) -> Tensor:  # (B, h, w, C) → (B, num_classes)
    x = layers.AveragePooling2D(5, strides=3, name=f"{name}_pool")(x)
    x = _convolve(x, 2 * width, 1, f"{name}_conv")
    x = layers.Flatten(name=f"{name}_flat")(x)
    x = layers.Dense(16 * width, activation="relu", name=f"{name}_hidden")(x)
    x = layers.Dropout(0.7, name=f"{name}_dropout")(x)
    return blocks.class_scores(x, num_classes, multi_label, name=name)


def _convolve(x: Tensor, filters: int, kernel: int, name: str, stride: int = 1) -> Tensor:
    return layers.Conv2D(
        filters, kernel, stride, padding="same", activation="relu", name=name
    )(x)  # fmt: skip
