"""Filters taken together have the patterns that a plain loop finds one by one."""

import numpy as np
import pytest

from tests.support import networks

pytestmark = pytest.mark.keras
SIZE = (32, 32)
STEP = 2.0  # moves a pixel of so small a picture as far as 10 moves one of 160 a side


def fed(pixels):
    return pixels


def plain_loop(model, layer_output, number, steps, step, seed):
    """The textbook's: one filter, one picture, one tape after another."""
    import keras
    import tensorflow as tf

    from cvbatch.explain.filters import initial_noise

    extractor = keras.Model(model.inputs, layer_output)
    image = tf.constant(initial_noise(seed, number, model.input_shape[1:3])[None])
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(image)
            activation = extractor(image * 255, training=False)
            loss = tf.reduce_mean(activation[:, 2:-2, 2:-2, number])
        image += step * tf.math.l2_normalize(tape.gradient(loss, image))
    return image.numpy()[0]


def smooth_network():
    """No ReLU and no maximum: rounding, which differs from batch to batch, flips nothing."""
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


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_layers_patterns_are_those_of_the_loop(batch_size):
    from cvbatch.explain.filters import AscentSettings, filter_patterns

    model = smooth_network()
    found = filter_patterns(model, fed, "last", 7, SIZE, AscentSettings(30, STEP, batch_size, 5))
    assert found.images.shape == (7, *SIZE, 3)
    output = model.get_layer("last").output
    for number in range(7):
        alone = plain_loop(model, output, number, 30, STEP, 5)
        np.testing.assert_allclose(found.images[number], alone, atol=1e-3)
    assert (found.activation > 0).any()


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 30), (16, 8)])
def test_relus_and_maxima_are_gone_through_as_the_loop_does(batch_size, steps):
    from cvbatch.explain.filters import AscentSettings, filter_patterns

    model = networks.plain_classifier(size=SIZE)
    found = filter_patterns(model, fed, "last", 3, SIZE, AscentSettings(steps, STEP, batch_size, 5))
    output = model.get_layer("last").output
    for number in range(3):
        alone = plain_loop(model, output, number, steps, STEP, 5)
        np.testing.assert_allclose(found.images[number], alone, atol=1e-3)


def test_layers_of_a_model_inside_a_model():
    from cvbatch.explain.filters import AscentSettings, filter_patterns

    model = networks.nested_classifier(size=SIZE)
    inner = model.get_layer("inner")
    found = filter_patterns(model, fed, "inner/act", 3, SIZE, AscentSettings(5, 10.0, 2, 0))
    alone = plain_loop(inner, inner.get_layer("act").output, 2, 5, 10.0, 0)
    np.testing.assert_allclose(found.images[2], alone, atol=1e-3)


def test_ascent_ascends():
    from cvbatch.explain.filters import AscentSettings, filter_patterns

    model = networks.plain_classifier(size=SIZE)
    few = filter_patterns(model, fed, "last", 8, SIZE, AscentSettings(1, 10.0, 8, 0)).activation
    many = filter_patterns(model, fed, "last", 8, SIZE, AscentSettings(20, 10.0, 8, 0)).activation
    assert (many >= few).all()
    assert many.sum() > 1.5 * few.sum()


def test_noise_is_a_filters_own_and_the_seeds():
    from cvbatch.explain.filters import initial_noise

    first = initial_noise(0, 1, (20, 20))
    assert np.array_equal(first, initial_noise(0, 1, (20, 20)))
    assert not np.array_equal(first, initial_noise(0, 2, (20, 20)))
    assert not np.array_equal(first, initial_noise(1, 1, (20, 20)))
    assert first.min() >= 0.4
    assert first.max() <= 0.6


def test_a_map_smaller_than_its_border_keeps_a_middle():
    import tensorflow as tf

    from cvbatch.explain.filters import within_border

    for side, left in ((1, 1), (2, 2), (3, 1), (4, 2), (5, 1), (9, 5)):
        assert within_border(tf.zeros((1, side, 9, 2))).shape == (1, left, 5, 2)


def kernel_by_impulse(layer, channels, side=9):
    """What a convolution does to one bright pixel of one channel, read backwards: its kernel."""
    import keras

    kernels = []
    for channel in range(channels):
        image = np.zeros((1, side, side, channels), np.float32)
        image[0, side // 2, side // 2, channel] = 1
        answer = keras.ops.convert_to_numpy(layer(image))[0]
        kernels.append(
            answer[side // 2 - 1 : side // 2 + 2, side // 2 - 1 : side // 2 + 2][::-1, ::-1]
        )
    return np.stack(kernels, axis=2)  # (3, 3, inputs, filters)


@pytest.mark.parametrize("kind", ["Conv2D", "SeparableConv2D", "DepthwiseConv2D"])
def test_weights_are_what_a_filter_does_to_a_channel(kind):
    import keras

    from cvbatch.explain.filters import kernels_of

    options = {"depth_multiplier": 2} if kind != "Conv2D" else {}
    filters = [] if kind == "DepthwiseConv2D" else [5]
    make = getattr(keras.layers, kind)
    layer = make(*filters, 3, padding="same", use_bias=False, name="it", **options)
    model = keras.Sequential([keras.Input((9, 9, 4)), layer])
    seen = kernel_by_impulse(layer, 4)
    found = kernels_of(model, "it")
    if kind == "DepthwiseConv2D":  # filter 2c + m reads channel c alone
        seen = np.stack([seen[:, :, f // 2, f] for f in range(8)], axis=-1)[:, :, None]
    np.testing.assert_allclose(found, seen, atol=1e-6)


def test_weights_of_a_transposed_convolution_have_inputs_before_filters():
    import keras

    from cvbatch.explain.filters import kernels_of

    layer = keras.layers.Conv2DTranspose(5, 3, name="it")
    model = keras.Sequential([keras.Input((9, 9, 4)), layer])
    assert kernels_of(model, "it").shape == (3, 3, 4, 5)


def test_a_pooling_has_no_weights():
    from cvbatch.core.errors import ModelError
    from cvbatch.explain.filters import kernels_of

    with pytest.raises(ModelError, match=r"'max_pooling2d.*' is a MaxPooling2D, which has no kern"):
        model = networks.plain_classifier()
        kernels_of(model, next(x.name for x in model.layers if "pool" in x.name))


def test_a_network_that_is_no_graph_is_looked_into_all_the_same():
    import keras

    from cvbatch.explain.filters import AscentSettings, filter_patterns

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
    found = filter_patterns(wrapped, fed, path, 3, SIZE, AscentSettings(5, STEP, 3, 1))
    wanted = filter_patterns(graph, fed, "last", 3, SIZE, AscentSettings(5, STEP, 3, 1))
    np.testing.assert_allclose(found.images, wanted.images, atol=1e-4)
