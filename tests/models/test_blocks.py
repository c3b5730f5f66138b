"""Every block computes what its paper's drawing shows, against plain operations."""

import keras
import numpy as np
import pytest

from cvbatch.models import blocks

pytestmark = [
    pytest.mark.keras,
    # TensorFlow's variables do not know NumPy 2's `copy`, and Keras passes it.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def laid(block, shape, *args, **options):
    """Return the model of one block."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, block(inputs, *args, **options))


def weights_of(model, layer):
    return [np.asarray(weight) for weight in model.get_layer(layer).weights]


def convolve(x, model, layer, stride=1):
    import tensorflow as tf

    kernel, *bias = weights_of(model, layer)
    return np.asarray(tf.nn.conv2d(x, kernel, stride, "SAME")) + (bias[0] if bias else 0)


def relu(x):
    return np.maximum(x, 0)


# ---------------------------------------------------------------- upsampling, scores


def test_one_pixel_is_spread_as_a_tent():
    answer = laid(blocks.bilinear_upsampling, (1, 1, 1), 2)(np.ones((1, 1, 1, 1), "float32"))
    np.testing.assert_allclose(np.asarray(answer)[0, :, :, 0], np.full((2, 2), 0.75**2))


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_upsampling_begins_as_bilinear_interpolation(factor):
    height, width, maps = 5, 4, 3
    model = laid(blocks.bilinear_upsampling, (height, width, maps), factor, name="up")
    x = values(2, height, width, maps)
    size = (factor * height, factor * width)
    wanted = keras.ops.image.resize(x, size, interpolation="bilinear")
    answer = model(x)

    assert answer.shape == (2, *size, maps)
    within = slice(factor - 1 or None, 1 - factor or None)
    np.testing.assert_allclose(
        np.asarray(answer)[:, within, within], np.asarray(wanted)[:, within, within], atol=1e-5
    )
    kernel_size = 2 * factor - factor % 2
    assert model.count_params() == maps * maps * kernel_size**2
    assert len(model.get_layer("up").trainable_weights) == 1


@pytest.mark.parametrize(
    ("num_classes", "multi_label", "activation"),
    [(1, False, "sigmoid"), (1, True, "sigmoid"), (3, False, "softmax"), (3, True, "sigmoid")],
)
def test_scores_are_a_softmax_only_where_classes_exclude_each_other(
    num_classes, multi_label, activation
):
    model = laid(blocks.class_scores, (4,), num_classes, multi_label)
    x = values(2, 4)
    kernel, _ = weights_of(model, "scores")
    logits = x @ kernel
    wanted = 1 / (1 + np.exp(-logits))
    if activation == "softmax":
        wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    assert model.layers[-1].name == "scores"
    np.testing.assert_allclose(model(x), wanted, rtol=1e-4)


# ---------------------------------------------------------------- residual units

UNITS = {  # block, its options, parts whose weights are all that stand beside the shortcut
    "pooled": (blocks.pooled_residual, {"has_pool": False}, "u_conv2"),
    "residual": (blocks.residual, {}, "u_2_norm"),
    "squeezed": (blocks.residual, {"has_squeeze": True}, "u_2_norm"),
    "bottleneck": (blocks.bottleneck, {}, "u_3_bn"),
}


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_that_adds_nothing_passes_its_input_on(unit):
    block, options, last = UNITS[unit]
    filters = 2 if unit == "bottleneck" else 8
    model = laid(block, (3, 5, 8), filters, name="u", **options)
    silenced = model.get_layer(last)
    silenced.set_weights([weight * 0 for weight in silenced.get_weights()])
    x = values(2, 3, 5, 8)

    np.testing.assert_allclose(model(x), x if unit == "pooled" else relu(x), atol=1e-6)


@pytest.mark.parametrize(
    ("block", "options", "wanted"),
    [
        (blocks.pooled_residual, {"has_pool": False}, (5, 7, 4)),
        (blocks.pooled_residual, {"has_pool": True}, (3, 4, 4)),
        (blocks.residual, {"stride": 1}, (5, 7, 4)),
        (blocks.residual, {"stride": 2}, (3, 4, 4)),
        (blocks.bottleneck, {"stride": 2, "has_projection": True}, (3, 4, 16)),
    ],
)
def test_a_unit_may_change_size_and_maps(block, options, wanted):
    assert laid(block, (5, 7, 3), 4, name="u", **options).output_shape == (None, *wanted)


def test_a_residual_unit_is_its_drawing():
    model = laid(blocks.residual, (6, 5, 3), 4, stride=2, name="u")
    for i, layer in enumerate(model.layers):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([np.abs(values(4, seed=4 * i + j)) + 0.5 for j in range(4)])

    def normalize(x, layer):
        gamma, beta, mean, variance = weights_of(model, layer)
        return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    x = values(2, 6, 5, 3)
    within = relu(normalize(convolve(x, model, "u_1_conv", stride=2), "u_1_norm"))
    within = normalize(convolve(within, model, "u_2_conv"), "u_2_norm")
    shortcut = normalize(convolve(x, model, "u_shortcut_conv", stride=2), "u_shortcut_norm")

    np.testing.assert_allclose(model(x), relu(within + shortcut), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- squeeze, inception


@pytest.mark.parametrize(("channels", "reduced"), [(1, 1), (16, 1), (32, 2), (40, 2)])
def test_squeezed_maps_are_scaled_by_what_their_averages_say(channels, reduced):
    model = laid(blocks.squeeze_excitation, (3, 4, channels), name="s")
    for i, layer in enumerate(("s_reduce", "s_excite")):
        shapes = [weight.shape for weight in weights_of(model, layer)]
        model.get_layer(layer).set_weights([values(*shape, seed=i) for shape in shapes])
    (narrow, narrow_bias), (wide, wide_bias) = (
        weights_of(model, layer) for layer in ("s_reduce", "s_excite")
    )
    x = values(2, 3, 4, channels)
    hidden = relu(x.mean(axis=(1, 2)) @ narrow + narrow_bias)
    scale = 1 / (1 + np.exp(-(hidden @ wide + wide_bias)))

    assert model.count_params() == channels * reduced * 2 + reduced + channels
    np.testing.assert_allclose(model(x), x * scale[:, None, None], rtol=1e-4, atol=1e-5)


def test_an_inception_module_is_its_four_branches_side_by_side():
    import tensorflow as tf

    model = laid(blocks.inception, (5, 4, 3), (1, 2, 3, 4, 5, 6), name="i")
    x = values(2, 5, 4, 3)
    pool = tf.nn.max_pool2d(x, 3, 1, "SAME")
    branches = [
        convolve(x, model, "i_1x1"),
        convolve(relu(convolve(x, model, "i_3x3_reduce")), model, "i_3x3"),
        convolve(relu(convolve(x, model, "i_5x5_reduce")), model, "i_5x5"),
        convolve(pool, model, "i_pool_1x1"),
    ]

    assert [branch.shape[-1] for branch in branches] == [1, 3, 5, 6]
    kernels = {"i_1x1": 1, "i_3x3": 3, "i_5x5": 5, "i_pool_1x1": 1}
    assert {name: weights_of(model, name)[0].shape[0] for name in kernels} == kernels
    np.testing.assert_allclose(
        model(x), relu(np.concatenate(branches, axis=-1)), rtol=1e-4, atol=1e-5
    )
