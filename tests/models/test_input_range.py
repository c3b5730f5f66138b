"""Scaling at a network's input: each network is built here, so the answer is known."""

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.models.input_range import scales_its_input

pytestmark = pytest.mark.keras


def network(*before):
    """Functions of the input, then a convolution and a classifier."""
    x = inputs = keras.Input((16, 16, 3))
    for function in before:
        x = function(x)
    x = layers.Conv2D(4, 3)(x)
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


def batch_norm(mean):
    def call(x):
        layer = layers.BatchNormalization()
        result = layer(x)
        layer.moving_mean.assign(np.full(3, mean))
        return result

    return call


def mean_and_variance(x):
    return layers.Normalization(mean=[0.5] * 3, variance=[0.1] * 3)(x)


@pytest.mark.parametrize(
    ("expected", "before"),
    [
        (False, []),
        (False, [layers.ZeroPadding2D(), layers.RandomFlip()]),
        (False, [layers.Resizing(8, 8), layers.MaxPool2D()]),
        (False, [batch_norm(0.5)]),
        (False, [layers.Conv2D(3, 3), layers.Rescaling(1 / 255)]),
        (True, [layers.Rescaling(1 / 255)]),
        (True, [layers.Resizing(8, 8), layers.Rescaling(1 / 255)]),
        (True, [mean_and_variance]),
        (True, [lambda x: x / 127.5 - 1.0]),
        (True, [lambda x: keras.ops.flip(x, -1) - np.float32([103, 116, 123])]),
        (True, [batch_norm(110.0)]),
        (True, [keras.Sequential([keras.Input((16, 16, 3)), layers.Rescaling(1 / 255)])]),
        (False, [keras.Sequential([keras.Input((16, 16, 3)), layers.RandomFlip()])]),
    ],
)
def test_scaling_is_found_before_the_first_layer_with_weights(expected, before):
    model = network(*before)
    assert scales_its_input(model) is expected
    nested = keras.Sequential([keras.Input((16, 16, 3)), model])
    assert scales_its_input(nested) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("MobileNetV3Small", True), ("EfficientNetB0", True), ("MobileNet", False), ("VGG16", False)],
)
def test_keras_applications_scale_their_input_as_their_documentation_says(name, expected):
    from cvbatch.models.cost import skip_weight_allocation

    with skip_weight_allocation():
        model = getattr(keras.applications, name)(weights=None, input_shape=(224, 224, 3))
    assert scales_its_input(model) is expected


def test_a_network_without_a_graph_is_unknown():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    assert scales_its_input(Subclassed()) is None
