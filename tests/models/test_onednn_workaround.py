"""Gradients of narrow strided 1×1 convolutions are correct and do not crash the process."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from cvbatch.models import registry
from cvbatch.models.onednn_workaround import avoid_onednn_bug
from cvbatch.models.precision import with_precision

pytestmark = pytest.mark.keras
# Runs in a child process, because the bug would crash it.
GRADIENTS = """
import numpy as np, tensorflow as tf
from cvbatch.models import registry
network = registry.build("residual_convnet", 3, (64, 64), {"width": 4})
rng = np.random.default_rng(0)
for _ in range(60):
    images = tf.constant(rng.normal(size=(2, 64, 64, 3)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        score = tf.reduce_sum(network(images)[:, 0])
    tape.gradient(score, [images, *network.trainable_variables])
print("done")
"""


def convolution(channels, size, stride):
    inputs = keras.Input((*size, channels))
    return keras.Model(inputs, layers.Conv2D(5, 1, strides=stride, padding="same")(inputs))


def test_a_network_without_layers_is_unchanged():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, inputs)
    assert avoid_onednn_bug(model) is model


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2)])
@pytest.mark.parametrize("stride", [2, (1, 2), 3])
@pytest.mark.parametrize("channels", [1, 4, 15])
def test_the_replacement_computes_the_same_convolution(channels, size, stride):
    model = convolution(channels, size, stride)
    images = np.random.default_rng(0).normal(size=(2, *size, channels)).astype(np.float32)
    expected = model(images).numpy()
    assert "convolution_op" in vars(avoid_onednn_bug(model).layers[1])
    np.testing.assert_allclose(model(images), expected, atol=1e-5)


def test_the_gradient_matches_the_formula():
    model = avoid_onednn_bug(convolution(4, (6, 5), 2))
    kernel = model.layers[1].kernel
    images = tf.constant(np.random.default_rng(0).normal(size=(2, 6, 5, 4)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        score = tf.reduce_sum(model(images) ** 2)
    images_gradient, kernel_gradient = tape.gradient(score, [images, kernel.value])
    sampled = images.numpy()[:, ::2, ::2]
    output_gradient = 2 * (sampled @ kernel.numpy()[0, 0])
    expected = np.zeros(images.shape)
    expected[:, ::2, ::2] = output_gradient @ kernel.numpy()[0, 0].T
    np.testing.assert_allclose(images_gradient, expected, atol=1e-4)
    expected = np.einsum("bhwc,bhwf->cf", sampled, output_gradient)
    np.testing.assert_allclose(kernel_gradient[0, 0], expected, rtol=1e-4)


def test_convolutions_that_are_wide_or_without_stride_are_unchanged():
    for model in (convolution(16, (8, 8), 2), convolution(3, (8, 8), 1)):
        assert "convolution_op" not in vars(avoid_onednn_bug(model).layers[1])


def test_built_loaded_and_cloned_networks_have_the_workaround(tmp_path):
    built = registry.build("residual_convnet", 3, (16, 16), {"width": 4})
    built.save(tmp_path / "net.keras")
    loaded = registry.load_file("net", tmp_path / "net.keras")
    for model in (built, loaded, with_precision(built, "mixed_bfloat16")):
        replaced = [layer.name for layer in model.layers if "convolution_op" in vars(layer)]
        assert len(replaced) == 2, model.name


def test_gradients_do_not_crash_the_process():
    process = subprocess.run(
        [sys.executable, "-c", GRADIENTS], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout.strip()) == (0, "done"), process.stderr[-500:]
