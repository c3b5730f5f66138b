"""Building blocks, compared with plain NumPy and TensorFlow operations."""

import keras
import numpy as np
import pytest

from cvbatch.models import blocks

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def model_of(block, shape, *args, **options):
    """Return a model that consists of one block."""
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


def test_upsampling_interpolates_one_pixel_linearly():
    output = model_of(blocks.bilinear_upsampling, (1, 1, 1), 2)(np.ones((1, 1, 1, 1), "float32"))
    np.testing.assert_allclose(np.asarray(output)[0, :, :, 0], np.full((2, 2), 0.75**2))


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_untrained_upsampling_is_bilinear_interpolation(factor):
    height, width, channels = 5, 4, 3
    model = model_of(blocks.bilinear_upsampling, (height, width, channels), factor, name="up")
    x = values(2, height, width, channels)
    size = (factor * height, factor * width)
    expected = keras.ops.image.resize(x, size, interpolation="bilinear")
    output = model(x)

    assert output.shape == (2, *size, channels)
    inner = slice(factor - 1 or None, 1 - factor or None)
    np.testing.assert_allclose(
        np.asarray(output)[:, inner, inner], np.asarray(expected)[:, inner, inner], atol=1e-5
    )
    kernel_size = 2 * factor - factor % 2
    assert model.count_params() == channels * channels * kernel_size**2
    assert len(model.get_layer("up").trainable_weights) == 1


@pytest.mark.parametrize(
    ("num_classes", "multi_label", "activation"),
    [(1, False, "sigmoid"), (1, True, "sigmoid"), (3, False, "softmax"), (3, True, "sigmoid")],
)
def test_scores_are_a_softmax_only_for_exclusive_classes(num_classes, multi_label, activation):
    model = model_of(blocks.class_scores, (4,), num_classes, multi_label)
    x = values(2, 4)
    kernel, _ = weights_of(model, "scores")
    logits = x @ kernel
    expected = 1 / (1 + np.exp(-logits))
    if activation == "softmax":
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    assert model.layers[-1].name == "scores"
    np.testing.assert_allclose(model(x), expected, rtol=1e-4)


# ---------------------------------------------------------------- residual units

UNITS = {  # block, options, last layer of the branch beside the shortcut
    "pooled": (blocks.pooled_residual, {"has_pool": False}, "u_conv2"),
    "residual": (blocks.residual, {}, "u_2_norm"),
    "squeezed": (blocks.residual, {"has_squeeze": True}, "u_2_norm"),
    "bottleneck": (blocks.bottleneck, {}, "u_3_bn"),
}


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_with_a_zero_branch_returns_its_input(unit):
    block, options, last = UNITS[unit]
    filters = 2 if unit == "bottleneck" else 8
    model = model_of(block, (3, 5, 8), filters, name="u", **options)
    layer = model.get_layer(last)
    layer.set_weights([weight * 0 for weight in layer.get_weights()])
    x = values(2, 3, 5, 8)

    np.testing.assert_allclose(model(x), x if unit == "pooled" else relu(x), atol=1e-6)


@pytest.mark.parametrize(
    ("block", "options", "expected"),
    [
        (blocks.pooled_residual, {"has_pool": False}, (5, 7, 4)),
        (blocks.pooled_residual, {"has_pool": True}, (3, 4, 4)),
        (blocks.residual, {"stride": 1}, (5, 7, 4)),
        (blocks.residual, {"stride": 2}, (3, 4, 4)),
        (blocks.bottleneck, {"stride": 2, "has_projection": True}, (3, 4, 16)),
    ],
)
def test_a_unit_changes_size_and_channels(block, options, expected):
    assert model_of(block, (5, 7, 3), 4, name="u", **options).output_shape == (None, *expected)


def test_a_residual_unit_matches_the_paper():
    model = model_of(blocks.residual, (6, 5, 3), 4, stride=2, name="u")
    for i, layer in enumerate(model.layers):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([np.abs(values(4, seed=4 * i + j)) + 0.5 for j in range(4)])

    def normalize(x, layer):
        gamma, beta, mean, variance = weights_of(model, layer)
        return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    x = values(2, 6, 5, 3)
    inner = relu(normalize(convolve(x, model, "u_1_conv", stride=2), "u_1_norm"))
    inner = normalize(convolve(inner, model, "u_2_conv"), "u_2_norm")
    shortcut = normalize(convolve(x, model, "u_shortcut_conv", stride=2), "u_shortcut_norm")

    np.testing.assert_allclose(model(x), relu(inner + shortcut), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- squeeze, inception


@pytest.mark.parametrize(("channels", "reduced"), [(1, 1), (16, 1), (32, 2), (40, 2)])
def test_squeeze_excitation_scales_channels_by_their_averages(channels, reduced):
    model = model_of(blocks.squeeze_excitation, (3, 4, channels), name="s")
    for i, layer in enumerate(("s_reduce", "s_excite")):
        shapes = [weight.shape for weight in weights_of(model, layer)]
        model.get_layer(layer).set_weights([values(*shape, seed=i) for shape in shapes])
    (reduce, reduce_bias), (excite, excite_bias) = (
        weights_of(model, layer) for layer in ("s_reduce", "s_excite")
    )
    x = values(2, 3, 4, channels)
    hidden = relu(x.mean(axis=(1, 2)) @ reduce + reduce_bias)
    scale = 1 / (1 + np.exp(-(hidden @ excite + excite_bias)))

    assert model.count_params() == channels * reduced * 2 + reduced + channels
    np.testing.assert_allclose(model(x), x * scale[:, None, None], rtol=1e-4, atol=1e-5)


def test_an_inception_module_concatenates_four_branches():
    import tensorflow as tf

    model = model_of(blocks.inception, (5, 4, 3), (1, 2, 3, 4, 5, 6), name="i")
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
