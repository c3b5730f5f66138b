"""Residual networks, built from a table: the number of residual units per stage."""

from __future__ import annotations

from collections.abc import Sequence

from cvbatch.models import blocks
from cvbatch.models.applications import preprocess
from cvbatch.models.frameworks import keras, layers

# Units per stage; each stage has twice the filters of the previous (He et al. 2016, table 1).
RESNET34_UNITS = (3, 4, 6, 3)
RESNET152_UNITS = (3, 8, 36, 3)


def resnet34(
    num_classes: int,
    image_size: tuple[int, int] = (224, 224),
    *,
    multi_label: bool = False,
    width: int = 64,
) -> keras.Model:  # (B, H, W, 3) → (B, num_classes)
    """Return ResNet-34; 21,814,696 parameters with 1000 classes.

    Args:
        width: filters of the first convolution and stage.

    Source: He et al., Deep Residual Learning for Image Recognition, 2016.
    """
    return _resnet34(num_classes, image_size, multi_label, width, has_squeeze=False)


def se_resnet34(
    num_classes: int,
    image_size: tuple[int, int] = (224, 224),
    *,
    multi_label: bool = False,
    width: int = 64,
) -> keras.Model:  # (B, H, W, 3) → (B, num_classes)
    """Return ResNet-34 with squeeze-and-excitation in each unit.

    The arguments are those of `resnet34`; 21,975,892 parameters with 1000 classes.

    Source: Hu et al., Squeeze-and-Excitation Networks, 2018, figure 3.
    """
    return _resnet34(num_classes, image_size, multi_label, width, has_squeeze=True)


def resnet152(
    num_classes: int,
    image_size: tuple[int, int] = (224, 224),
    *,
    multi_label: bool = False,
    width: int = 64,
    units: Sequence[int] = RESNET152_UNITS,
) -> keras.Model:  # (B, H, W, 3) → (B, num_classes)
    """Return ResNet-152; 60,419,944 parameters with 1000 classes.

    Its layers and preprocessing are those of keras.applications, so that their weights can be
    loaded.

    Args:
        width: filters of the first convolution.
        units: number of units per stage; (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) ResNet-101.

    Source: He et al., Deep Residual Learning for Image Recognition, 2016.
    """
    inputs = keras.Input((*image_size, 3), name="image")
    x = layers.ZeroPadding2D(3, name="conv1_pad")(preprocess(inputs, "caffe"))
    x = layers.Conv2D(width, 7, strides=2, name="conv1_conv")(x)
    x = blocks.resnet_batch_norm(x, "conv1_bn")
    x = layers.Activation("relu", name="conv1_relu")(x)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    for stage, num_units in enumerate(units):
        for unit in range(num_units):
            x = blocks.bottleneck(
                x,
                width * 2**stage,
                stride=2 if stage > 0 and unit == 0 else 1,
                has_projection=unit == 0,
                name=f"conv{stage + 2}_block{unit + 1}",
            )
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    scores = blocks.class_scores(x, num_classes, multi_label)
    return keras.Model(inputs, scores, name="resnet152")


def _resnet34(
    num_classes: int,
    image_size: tuple[int, int],
    multi_label: bool,
    width: int,
    has_squeeze: bool,
) -> keras.Model:
    inputs = keras.Input((*image_size, 3), name="image")
    x = blocks.conv_norm_relu(layers.Rescaling(1.0 / 255)(inputs), width, 7, 2)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    for stage, num_units in enumerate(RESNET34_UNITS):
        for unit in range(num_units):
            x = blocks.residual(
                x,
                width * 2**stage,
                stride=2 if stage > 0 and unit == 0 else 1,
                has_squeeze=has_squeeze,
                name=f"stage{stage + 1}_unit{unit + 1}",
            )
    x = layers.GlobalAveragePooling2D()(x)
    scores = blocks.class_scores(x, num_classes, multi_label)
    return keras.Model(inputs, scores, name="se_resnet34" if has_squeeze else "resnet34")
