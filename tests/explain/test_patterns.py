"""Filter patterns compared with gradient ascent on one filter at a time; filter weights."""

import numpy as np
import pytest

from tests.support import networks

pytestmark = pytest.mark.keras
SIZE = (32, 32)
STEP = 2.0  # changes a pixel of an image of this size as much as 10 at 160 × 160 pixels


def identity(pixels):
    return pixels


def pattern_by_tape(model, layer_output, filter_id, steps, step, seed):
    """Return the pattern of one filter by gradient ascent with a GradientTape."""
    import keras
    import tensorflow as tf

    from cvbatch.explain.filters import initial_noise

    extractor = keras.Model(model.inputs, layer_output)
    image = tf.constant(initial_noise(seed, filter_id, model.input_shape[1:3])[None])
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(image)
            activation = extractor(image * 255, training=False)
            loss = tf.reduce_mean(activation[:, 2:-2, 2:-2, filter_id])
        image += step * tf.math.l2_normalize(tape.gradient(loss, image))
    return image.numpy()[0]


def smooth_network():
    """Return a network without ReLU and max pooling, so that rounding errors stay small."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(7)
    return keras.Sequential(
        [
            keras.Input((*SIZE, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Conv2D(12, 3, activation="softplus", padding="same", name="last"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )


def patterns_of(model, layer, num_filters, **settings):
    from cvbatch.explain.filters import AscentSettings, filter_patterns

    settings = AscentSettings(**{"step": STEP, "seed": 5} | settings)
    return filter_patterns(model, identity, layer, num_filters, SIZE, settings)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_patterns_equal_ascent_by_tape(batch_size):
    model = smooth_network()
    patterns = patterns_of(model, "last", 7, steps=30, batch_size=batch_size)
    assert patterns.images.shape == (7, *SIZE, 3)
    output = model.get_layer("last").output
    for filter_id in range(7):
        expected = pattern_by_tape(model, output, filter_id, 30, STEP, 5)
        np.testing.assert_allclose(patterns.images[filter_id], expected, atol=1e-3)
    assert (patterns.activation > 0).any()


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 30), (16, 8)])
def test_patterns_behind_relu_and_max_pooling_equal_ascent_by_tape(batch_size, steps):
    model = networks.plain_classifier(size=SIZE)
    patterns = patterns_of(model, "last", 3, steps=steps, batch_size=batch_size)
    output = model.get_layer("last").output
    for filter_id in range(3):
        expected = pattern_by_tape(model, output, filter_id, steps, STEP, 5)
        np.testing.assert_allclose(patterns.images[filter_id], expected, atol=1e-3)


def test_patterns_of_a_nested_layer_equal_ascent_by_tape():
    model = networks.nested_classifier(size=SIZE)
    inner = model.get_layer("inner")
    patterns = patterns_of(model, "inner/act", 3, steps=5, step=10.0, batch_size=2, seed=0)
    expected = pattern_by_tape(inner, inner.get_layer("act").output, 2, 5, 10.0, 0)
    np.testing.assert_allclose(patterns.images[2], expected, atol=1e-3)


def test_more_steps_increase_the_activation():
    model = networks.plain_classifier(size=SIZE)
    after_1, after_20 = (
        patterns_of(model, "last", 8, steps=steps, step=10.0, batch_size=8, seed=0).activation
        for steps in (1, 20)
    )
    assert (after_20 >= after_1).all()
    assert after_20.sum() > 1.5 * after_1.sum()


def test_initial_noise_depends_on_seed_and_filter():
    from cvbatch.explain.filters import initial_noise

    first = initial_noise(0, 1, (20, 20))
    assert np.array_equal(first, initial_noise(0, 1, (20, 20)))
    assert not np.array_equal(first, initial_noise(0, 2, (20, 20)))
    assert not np.array_equal(first, initial_noise(1, 1, (20, 20)))
    assert first.min() >= 0.4
    assert first.max() <= 0.6


def test_cropping_the_border_keeps_at_least_one_pixel():
    import tensorflow as tf

    from cvbatch.explain.filters import crop_border

    for side, expected in ((1, 1), (2, 2), (3, 1), (4, 2), (5, 1), (9, 5)):
        assert crop_border(tf.zeros((1, side, 9, 2))).shape == (1, expected, 5, 2)


def kernel_by_impulse(layer, channels, side=9):
    """Return the kernel (3, 3, inputs, filters): the flipped response to one bright pixel."""
    import keras

    kernels = []
    for channel in range(channels):
        image = np.zeros((1, side, side, channels), np.float32)
        image[0, side // 2, side // 2, channel] = 1
        response = keras.ops.convert_to_numpy(layer(image))[0]
        kernels.append(
            response[side // 2 - 1 : side // 2 + 2, side // 2 - 1 : side // 2 + 2][::-1, ::-1]
        )
    return np.stack(kernels, axis=2)


@pytest.mark.parametrize("kind", ["Conv2D", "SeparableConv2D", "DepthwiseConv2D"])
def test_kernel_equals_impulse_response(kind):
    import keras

    from cvbatch.explain.filters import kernel_weights

    options = {"depth_multiplier": 2} if kind != "Conv2D" else {}
    filters = [] if kind == "DepthwiseConv2D" else [5]
    make = getattr(keras.layers, kind)
    layer = make(*filters, 3, padding="same", use_bias=False, name="it", **options)
    model = keras.Sequential([keras.Input((9, 9, 4)), layer])
    expected = kernel_by_impulse(layer, 4)
    if kind == "DepthwiseConv2D":  # filter 2c + m has the input channel c
        expected = np.stack([expected[:, :, f // 2, f] for f in range(8)], axis=-1)[:, :, None]
    np.testing.assert_allclose(kernel_weights(model, "it"), expected, atol=1e-6)


def test_kernel_of_a_transposed_convolution_has_inputs_before_filters():
    import keras

    from cvbatch.explain.filters import kernel_weights

    layer = keras.layers.Conv2DTranspose(5, 3, name="it")
    model = keras.Sequential([keras.Input((9, 9, 4)), layer])
    assert kernel_weights(model, "it").shape == (3, 3, 4, 5)


def test_pooling_has_no_kernel():
    from cvbatch.core.errors import ModelError
    from cvbatch.explain.filters import kernel_weights

    with pytest.raises(ModelError, match=r"'max_pooling2d.*' is a MaxPooling2D, which has no kern"):
        model = networks.plain_classifier()
        kernel_weights(model, next(layer.name for layer in model.layers if "pool" in layer.name))


def test_patterns_of_a_subclassed_model_equal_those_of_its_graph():
    import keras

    graph = smooth_network()

    class Wrapped(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = graph

        def call(self, images):
            return self.inner(images)

    wrapped = Wrapped()
    wrapped(np.zeros((1, *SIZE, 3), np.float32))
    path = f"{graph.name}/last"
    patterns = patterns_of(wrapped, path, 3, steps=5, batch_size=3, seed=1)
    expected = patterns_of(graph, "last", 3, steps=5, batch_size=3, seed=1)
    np.testing.assert_allclose(patterns.images, expected.images, atol=1e-4)
