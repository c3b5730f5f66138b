"""Gradients through narrow strided 1×1 convolutions are right, and the process lives to say so."""

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
# In a process of its own, since the fault kills it: gradients of the image and of the weights.
GRADIENTS = """
import numpy as np, tensorflow as tf
from cvbatch.models import registry
from cvbatch.models.onednn_workaround import avoid_onednn_bug
network = registry.build("residual_convnet", 3, (64, 64), {"width": 4})
if not SPARED:
    for layer in network.layers:
        vars(layer).pop("convolution_op", None)
rng = np.random.default_rng(0)
for _ in range(60):
    images = tf.constant(rng.normal(size=(2, 64, 64, 3)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        score = tf.reduce_sum(network(images)[:, 0])
    tape.gradient(score, [images, *network.trainable_variables])
print("alive")
"""


def convolution(channels, size, stride):
    inputs = keras.Input((*size, channels))
    return keras.Model(inputs, layers.Conv2D(5, 1, strides=stride, padding="same")(inputs))


def test_a_network_without_layers_is_itself():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, inputs)
    assert avoid_onednn_bug(model) is model


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2)])
@pytest.mark.parametrize("stride", [2, (1, 2), 3])
@pytest.mark.parametrize("channels", [1, 4, 15])
def test_what_it_computes_is_the_convolution(channels, size, stride):
    model = convolution(channels, size, stride)
    images = np.random.default_rng(0).normal(size=(2, *size, channels)).astype(np.float32)
    plain = model(images).numpy()
    assert "convolution_op" in vars(avoid_onednn_bug(model).layers[1])
    np.testing.assert_allclose(model(images), plain, atol=1e-5)


def test_its_gradient_is_the_textbooks():
    model = avoid_onednn_bug(convolution(4, (6, 5), 2))
    kernel = model.layers[1].kernel
    images = tf.constant(np.random.default_rng(0).normal(size=(2, 6, 5, 4)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        score = tf.reduce_sum(model(images) ** 2)
    of_images, of_kernel = tape.gradient(score, [images, kernel.value])
    seen = images.numpy()[:, ::2, ::2]
    slope = 2 * (seen @ kernel.numpy()[0, 0])
    wanted = np.zeros(images.shape)
    wanted[:, ::2, ::2] = slope @ kernel.numpy()[0, 0].T
    np.testing.assert_allclose(of_images, wanted, atol=1e-4)
    np.testing.assert_allclose(of_kernel[0, 0], np.einsum("bhwc,bhwf->cf", seen, slope), rtol=1e-4)


def test_wide_ones_and_those_without_a_stride_are_left_alone():
    for model in (convolution(16, (8, 8), 2), convolution(3, (8, 8), 1)):
        assert "convolution_op" not in vars(avoid_onednn_bug(model).layers[1])


def test_built_loaded_and_cloned_networks_are_spared(tmp_path):
    built = registry.build("residual_convnet", 3, (16, 16), {"width": 4})
    built.save(tmp_path / "net.keras")
    loaded = registry.load_file("net", tmp_path / "net.keras")
    for model in (built, loaded, with_precision(built, "mixed_bfloat16")):
        spared = [layer.name for layer in model.layers if "convolution_op" in vars(layer)]
        assert len(spared) == 2, model.name


def test_the_process_lives():
    said = subprocess.run(
        [sys.executable, "-c", GRADIENTS.replace("SPARED", "True")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (said.returncode, said.stdout.strip()) == (0, "alive"), said.stderr[-500:]
