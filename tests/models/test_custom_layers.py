"""Custom layers compute their formulas, survive saving and convert to LiteRT."""

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.core.errors import ModelError
from cvbatch.models.custom_layers import (
    Bilinear,
    ChannelSlice,
    DepthwiseMaxPooling,
    LocalResponseNormalization,
    PartialConv2D,
    RadialBasis,
    TrainableSubsampling,
    scaled_tanh,
)

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
FIRST_SIGNS = "-++-+---+++-"
CONNECTIONS = ((0,), (1, 2), (0, 2), (0, 1, 2))
LAYERS = {  # input shape, layer
    "normalization": ((4, 5, 6), lambda: LocalResponseNormalization(1, 0.3, 0.6, 1.5)),
    "subsampling": ((5, 6, 3), lambda: TrainableSubsampling(2)),
    "partial": ((6, 5, 3), lambda: PartialConv2D(CONNECTIONS, 3)),
    "maximum": ((4, 5, 6), lambda: DepthwiseMaxPooling(3)),
    "slice": ((4, 5, 6), lambda: ChannelSlice(1, 5, 2)),
    "reversed": ((4, 5, 3), lambda: ChannelSlice(step=-1)),
    "radial": ((7,), lambda: RadialBasis(5)),
    "tanh": ((3, 3, 2), lambda: layers.Activation(scaled_tanh)),
    "bilinear": (
        (3, 4, 2),
        lambda: layers.Conv2DTranspose(
            2, 4, 2, padding="same", use_bias=False, kernel_initializer=Bilinear()
        ),
    ),
}


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def model_and_inputs(case):
    """Return a model of one layer with distinct random weights, and a batch of two inputs."""
    shape, make = LAYERS[case]
    model = keras.Sequential([keras.Input(shape), make()])
    for i, weight in enumerate(model.trainable_weights):
        weight.assign(values(*weight.shape, seed=i + 1))
    return model, values(2, *shape)


@pytest.mark.parametrize("case", sorted(LAYERS.keys() - {"partial"}))  # TensorFlow refuses it
def test_an_empty_batch_gives_an_empty_batch(case):
    model, images = model_and_inputs(case)
    assert model(images[:0]).shape == (0, *model.output_shape[1:])


@pytest.mark.parametrize("case", LAYERS)
def test_saving_and_loading_keeps_a_layer(case, tmp_path):
    model, images = model_and_inputs(case)
    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras", safe_mode=True)

    np.testing.assert_array_equal(loaded(images), model(images))
    assert loaded.layers[0].get_config() == model.layers[0].get_config()


@pytest.mark.parametrize("case", LAYERS)
def test_litert_computes_the_same_values(case):
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    model, images = model_and_inputs(case)
    signature = [tf.TensorSpec(images.shape)]
    function = tf.function(lambda x: model(x), input_signature=signature, autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    program = Interpreter(model_content=converter.convert())
    program.allocate_tensors()
    program.set_tensor(program.get_input_details()[0]["index"], images)
    program.invoke()
    output = program.get_tensor(program.get_output_details()[0]["index"])

    np.testing.assert_allclose(output, model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 2, 4), (1, 2, 2, 9)])
@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_response_normalization_equals_tensorflows(shape, radius):
    import tensorflow as tf

    x = values(*shape) * 100
    normalized = LocalResponseNormalization(radius, alpha=2e-3, beta=0.75, bias=2.0)(x)
    reference = tf.nn.local_response_normalization(x, radius, bias=2.0, alpha=2e-3, beta=0.75)

    np.testing.assert_allclose(normalized, reference, rtol=1e-5)


def test_response_normalization_does_not_overflow_in_half_precision():
    x = np.full((1, 1, 1, 3), 400, np.float16)  # its square overflows float16
    normalized = LocalResponseNormalization(radius=1, dtype="float16")(x)

    energy = np.array([2, 3, 2]) * 400.0**2
    expected = 400 * (1 + 2e-5 * energy) ** -0.75
    np.testing.assert_allclose(np.asarray(normalized)[0, 0, 0], expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 1, 1, 1), 1), ((2, 4, 6, 3), 2), ((1, 7, 5, 2), 3)]
)
def test_untrained_subsampling_is_average_pooling(shape, size):
    x = values(*shape)
    pool = layers.AveragePooling2D(size)

    np.testing.assert_allclose(TrainableSubsampling(size)(x), pool(x), rtol=1e-5, atol=1e-6)


def test_subsampling_has_one_coefficient_and_one_bias_per_channel():
    model, x = model_and_inputs("subsampling")
    coefficient, offset = (np.asarray(w) for w in model.weights)
    output = np.asarray(model(x))

    assert model.count_params() == 3 + 3
    assert output.shape == (2, 2, 3, 3)
    for b, i, j, c in np.ndindex(output.shape):
        total = x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c].sum()
        assert output[b, i, j, c] == pytest.approx(total * coefficient[c] + offset[c], abs=1e-5)


def test_a_partial_convolution_reads_only_its_connections():
    model, x = model_and_inputs("partial")
    kernel, bias = (np.asarray(w) for w in model.weights)
    output = np.asarray(model(x))

    assert model.count_params() == 3 * 3 * (1 + 2 + 2 + 3) + 4
    assert output.shape == (2, 4, 3, 4)
    for b, i, j in np.ndindex(output.shape[:3]):
        connection = 0
        for channel_out, channels_in in enumerate(CONNECTIONS):
            total = bias[channel_out]
            for channel_in in channels_in:
                window = x[b, i : i + 3, j : j + 3, channel_in]
                total += (window * kernel[:, :, connection]).sum()
                connection += 1
            assert output[b, i, j, channel_out] == pytest.approx(total, abs=1e-4)


def test_a_partial_convolution_with_all_connections_is_a_convolution():
    x = values(2, 5, 6, 3)
    partial = PartialConv2D([range(3)] * 4, 3)
    partial.build(x.shape)
    convolution = layers.Conv2D(4, 3)
    convolution.build(x.shape)
    # Connections are ordered by output channel, then input channel.
    kernel = np.asarray(partial.kernel).reshape(3, 3, 4, 3).transpose(0, 1, 3, 2)
    convolution.set_weights([kernel, values(4)])
    partial.bias.assign(values(4))

    np.testing.assert_allclose(partial(x), convolution(x), rtol=1e-5, atol=1e-5)


def test_a_connection_to_an_unknown_channel_is_refused():
    with pytest.raises(
        ModelError, match=r"reads channel 3, but the input has 3 channels; .* 0 to 2"
    ):
        PartialConv2D([(0, 3)], 3)(values(1, 4, 4, 3))


def test_a_radial_basis_returns_minus_the_squared_distance_to_each_code():
    model, x = model_and_inputs("radial")
    codes = np.asarray(model.weights[0])
    output = np.asarray(model(x))

    for b, unit in np.ndindex(output.shape):
        distance = sum((x[b, i] - codes[unit, i]) ** 2 for i in range(7))
        assert output[b, unit] == pytest.approx(-distance, abs=1e-4)
    np.testing.assert_array_equal(np.asarray(model(codes)).argmax(axis=1), range(5))


def codes_of(num_classes):
    layer = RadialBasis(num_classes)
    layer.build((None, 84))
    assert not layer.trainable_weights
    return np.asarray(layer.codes)


def test_codes_are_constant_and_far_apart():
    few, many = codes_of(10), codes_of(1000)

    assert codes_of(1).shape == (1, 84)
    assert set(np.unique(many)) == {-1, 1}
    np.testing.assert_array_equal(few, many[:10])
    differences = (84 - many @ many.T) / 2  # number of values in which two codes differ
    assert differences[~np.eye(1000, dtype=bool)].min() >= 16
    assert differences[:10, :10][~np.eye(10, dtype=bool)].min() >= 30
    # The codes must not change with NumPy, because saved networks were trained for them.
    assert "".join("+" if x > 0 else "-" for x in few[0, :12]) == FIRST_SIGNS


def test_scaled_tanh_is_odd_and_1_at_1():
    x = np.array([-1e3, -1, 0, 1, 1e3], np.float32)
    expected = [-1.7159, -1, 0, 1, 1.7159]

    np.testing.assert_allclose(scaled_tanh(x), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "input_shape", "expected"),
    [
        (TrainableSubsampling(2), (28, 28, 6), 14 * 14 * 6),
        (PartialConv2D(CONNECTIONS, 3), (3, 3, 3), 9 * 8),
        (PartialConv2D(CONNECTIONS, 5), (14, 14, 3), 10 * 10 * 25 * 8),
        (RadialBasis(10), (84,), 84 * 10),
    ],
)
def test_multiply_adds_follow_the_formula(layer, input_shape, expected):
    output = layer(keras.Input(input_shape))
    assert layer.multiply_adds((None, *input_shape), output.shape) == expected


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (DepthwiseMaxPooling(3), lambda x: np.stack([x[..., :3].max(-1), x[..., 3:].max(-1)], -1)),
        (ChannelSlice(1, 5, 2), lambda x: x[..., [1, 3]]),
        (ChannelSlice(step=-1), lambda x: x[..., [5, 4, 3, 2, 1, 0]]),
    ],
)
def test_layers_that_replace_lambdas_compute_what_numpy_does(layer, expected):
    inputs = values(2, 3, 4, 6)
    np.testing.assert_array_equal(np.asarray(layer(inputs)), expected(inputs))


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="7 channels are not groups of 3"):
        DepthwiseMaxPooling(3)(values(1, 2, 2, 7))
