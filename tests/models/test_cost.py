"""What a network costs, held to the textbook's example, to Keras' summary, to TensorFlow's
profiler, and to loops that multiply and count."""

import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import psutil
import pytest

from cvbatch.core.errors import ModelError

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
NETWORKS = [  # name, image size
    ("MobileNetV2", (96, 64)),
    ("VGG16", (64, 32)),
    ("Xception", (96, 96)),
    ("mini_xception", (64, 48)),
    ("encoder_decoder", (40, 64)),
    ("yolo", (64, 96)),
]


def describe(*layers, shape=(5, 6, 3), **options):
    """The cost of a stack of layers."""
    import keras

    from cvbatch.models import cost

    image = keras.Input(shape, name="image")
    x = image
    for layer in layers:
        x = layer(x)
    return cost.compute_cost(keras.Model(image, x), **options)


def built(name, size):
    from cvbatch.models import cost, registry

    with cost.skip_weight_allocation():
        return registry.build(name, image_size=size)


# ---------------------------------------------------------------- definitions


def test_a_network_that_does_nothing_costs_its_image():
    cost = describe(shape=(4, 5, 3))
    assert [row.path for row in cost.layers] == ["image"]
    assert (cost.parameters, cost.multiply_adds, cost.working_bytes) == (0, 0, 0)
    assert cost.inference_bytes == cost.training_bytes == 4 * 5 * 3 * 4
    assert not cost.is_at_least


def test_the_worked_example():
    """A 5×5 convolution of 200 maps over 150×100×3, same padding (Géron, chapter 14)."""
    from keras import layers

    cost = describe(layers.Conv2D(200, 5, padding="same"), shape=(150, 100, 3))
    assert cost.parameters == 15_200
    assert cost.multiply_adds == 225_000_000
    assert cost.layers[-1].output_bytes == 12_000_000
    assert cost.layers[-1].output_shapes == ((None, 150, 100, 200),)


def test_the_totals_of_maps_are_what_the_layers_read_and_write():
    import keras
    from keras import layers

    from cvbatch.models.cost import compute_cost

    image = keras.Input((8, 8, 1))
    wide = layers.Conv2D(10, 1)(image)  # 640 numbers
    small = layers.Conv2D(10, 3, strides=2, padding="same")(wide)  # 160
    back = layers.UpSampling2D(2)(small)  # 640
    joined = layers.Add()([wide, back])  # 640, from two that are as large
    cost = compute_cost(keras.Model(image, joined))
    numbers = [row.output_bytes // 4 for row in cost.layers]
    assert numbers == [64, 640, 160, 640, 640]
    assert cost.training_bytes == 4 * sum(numbers)
    assert cost.inference_bytes == 4 * 3 * 640
    assert cost.working_bytes == 4 * (640 + 160)
    assert (cost.weight_bytes, cost.trainable_bytes) == (4 * cost.parameters,) * 2


def test_json_is_the_whole_of_it():
    from keras import layers

    cost = describe(layers.Conv2D(2, 3), layers.BatchNormalization())
    said = json.loads(json.dumps(cost.as_json()))
    assert [row["path"] for row in said["layers"]] == [row.path for row in cost.layers]
    assert said["parameters"] == sum(row["parameters"] for row in said["layers"]) == 56 + 8
    assert said["trainable_parameters"] == 56 + 4
    assert said["weight_bytes"] == 4 * 64


# ---------------------------------------------------------------- loops that count


def convolve(x, kernel, groups, stride):
    """Valid convolution by loops; returns it and how often it multiplied."""
    side, _, inputs, filters = kernel.shape
    rows, columns = ((n - side) // stride + 1 for n in x.shape[:2])
    result, count = np.zeros((rows, columns, filters)), 0
    for i, j, f in itertools.product(range(rows), range(columns), range(filters)):
        first = f // (filters // groups) * inputs
        for di, dj, c in itertools.product(range(side), range(side), range(inputs)):
            result[i, j, f] += x[i * stride + di, j * stride + dj, first + c] * kernel[di, dj, c, f]
            count += 1
    return result, count


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (2, 1), (4, 3)])
def test_a_convolution_multiplies_as_often_as_a_loop_does(groups, stride):
    import keras
    from keras import layers

    from cvbatch.models import cost

    layer = layers.Conv2D(8, 3, strides=stride, groups=groups, use_bias=False)
    model = keras.Sequential([keras.Input((7, 6, 4)), layer])
    x = np.random.default_rng(0).normal(size=(7, 6, 4)).astype("float32")
    result, count = convolve(x, layer.get_weights()[0], groups, stride)
    np.testing.assert_allclose(model(x[None]).numpy()[0], result, atol=1e-5)
    assert cost.compute_cost(model).multiply_adds == count


def spread(x, kernel, stride):
    """Valid transposed convolution by loops; returns it and how often it multiplied."""
    side, _, filters, _ = kernel.shape
    rows, columns, inputs = x.shape
    result = np.zeros((*((n - 1) * stride + side for n in (rows, columns)), filters))
    count = 0
    for i, j, c, f in itertools.product(*map(range, (rows, columns, inputs, filters))):
        for di, dj in itertools.product(range(side), repeat=2):
            result[i * stride + di, j * stride + dj, f] += x[i, j, c] * kernel[di, dj, f, c]
            count += 1
    return result, count


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_transposed_convolution_multiplies_as_often_as_a_loop_does(stride):
    import keras
    from keras import layers

    from cvbatch.models import cost

    layer = layers.Conv2DTranspose(5, 3, strides=stride, use_bias=False)
    model = keras.Sequential([keras.Input((4, 3, 2)), layer])
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype("float32")
    result, count = spread(x, layer.get_weights()[0], stride)
    np.testing.assert_allclose(model(x[None]).numpy()[0], result, atol=1e-5)
    assert cost.compute_cost(model).multiply_adds == count


def table_of_layers():
    """Each with its input and its multiply-adds written out as position × taps × channels."""
    from keras import layers

    return [
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (5, 6, 3), 3 * 4 * 6 * 9),
        (layers.SeparableConv2D(7, 3), (5, 6, 3), 3 * 4 * 3 * 9 + 3 * 4 * 3 * 7),
        (
            layers.SeparableConv2D(7, 3, depth_multiplier=2, strides=2, padding="same"),
            (5, 6, 3),
            3 * 3 * 6 * 9 + 3 * 3 * 6 * 7,
        ),
        (layers.Conv2D(4, 3, dilation_rate=2), (7, 8, 2), 3 * 4 * 4 * 9 * 2),
        (layers.Conv1D(4, 3), (9, 2), 7 * 4 * 3 * 2),
        (layers.Conv3D(2, 2), (3, 4, 5, 3), 2 * 3 * 4 * 2 * 8 * 3),
        (layers.Dense(7), (11,), 7 * 11),
        (layers.Dense(7), (5, 6, 3), 5 * 6 * 7 * 3),
        (layers.EinsumDense("abc,cd->abd", (6, 8)), (6, 3), 6 * 3 * 8),
        (layers.EinsumDense("...x,xyz->...yz", (8, 2)), (6, 3), 6 * 3 * 8 * 2),
        (layers.EinsumDense("abc,bcd->ad", 8), (6, 3), 6 * 3 * 8),
        (layers.BatchNormalization(), (5, 6, 3), 0),
        (layers.PReLU(), (5, 6, 3), 0),
        (layers.MaxPooling2D(), (5, 6, 3), 0),
        (layers.Rescaling(2.0), (5, 6, 3), 0),
        (layers.LSTM(4), (6, 3), None),
    ]


@pytest.mark.parametrize("index", range(16))
def test_every_kind_of_layer(index):
    layer, shape, multiply_adds = table_of_layers()[index]
    cost = describe(layer, shape=shape)
    assert cost.layers[-1].multiply_adds == multiply_adds
    assert cost.is_at_least == (multiply_adds is None)
    assert cost.parameters == layer.count_params()


def test_attention_is_its_projections_and_two_products():
    import keras
    from keras import layers

    from cvbatch.models.cost import compute_cost

    query, value = keras.Input((5, 6)), keras.Input((7, 3))
    attention = layers.MultiHeadAttention(num_heads=2, key_dim=4, value_dim=8)
    cost = compute_cost(keras.Model([query, value], attention(query, value)))
    projections = 5 * 6 * 8 + 7 * 3 * 8 + 7 * 3 * 16 + 5 * 16 * 6
    assert cost.layers[-1].multiply_adds == projections + 2 * (5 * 7 * 4 + 5 * 7 * 8)
    itself = keras.Model(query, layers.MultiHeadAttention(2, 4)(query, query))
    assert compute_cost(itself).multiply_adds == 4 * 5 * 6 * 8 + 2 * 2 * 5 * 5 * 4


# ---------------------------------------------------------------- whole networks


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_parameters_and_shapes_are_those_of_keras_summary(name, size):
    import keras

    from cvbatch.models import cost

    model = built(name, size)
    lines = []
    model.summary(print_fn=lines.append, line_length=200)
    text = "\n".join(lines)
    told = [
        int(re.search(rf"{kind} params: ([\d,]+)", text)[1].replace(",", ""))
        for kind in ("Total", "Trainable")
    ]
    found = cost.compute_cost(model)
    assert [found.parameters, found.trainable_parameters] == told
    rows = {row.path: row for row in found.layers}
    for layer in model.layers:
        outputs = keras.tree.flatten(layer.output)
        assert list(rows[layer.name].output_shapes) == [tensor.shape for tensor in outputs]
        assert rows[layer.name].parameters == layer.count_params()
    assert sum(row.parameters for row in found.layers) == found.parameters


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_multiply_adds_are_half_the_operations_of_tensorflows_profiler(name, size):
    """Its operations count a multiplication and an addition as two."""
    import tensorflow as tf

    from cvbatch.models import cost

    model = built(name, size)
    traced = tf.function(lambda images: model(images, training=False))
    graph = traced.get_concrete_function(tf.TensorSpec((1, *size, 3))).graph
    profiler = tf.compat.v1.profiler
    said = profiler.profile(graph, options=profiler.ProfileOptionBuilder.float_operation())
    multiplying = {"Conv2D", "DepthwiseConv2dNative", "MatMul", "Conv2DBackpropInput"}
    kinds = {op.name: op.type for op in graph.get_operations()}
    operations, waiting = 0, list(said.children)
    while waiting:
        node = waiting.pop()
        waiting += node.children
        operations += node.float_ops if kinds.get(node.name) in multiplying else 0
    found = cost.compute_cost(model)
    assert not found.is_at_least
    assert found.multiply_adds == operations / 2
    assert 0 < found.working_bytes <= found.inference_bytes < found.training_bytes


def test_a_model_inside_a_model_is_flattened_and_a_shared_one_counted_once():
    import keras
    from keras import layers

    from cvbatch.models import cost

    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv")], name="in")
    outer_image = keras.Input((8, 8, 3))
    outer = keras.Model(outer_image, layers.Flatten(name="flat")(inner(outer_image)), name="out")
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    twice = keras.Model([left, right], layers.Subtract(name="minus")([outer(left), outer(right)]))
    found = cost.compute_cost(twice)
    paths = ["out/in/conv", "out/flat"]
    assert [row.path for row in found.layers] == ["left", "right", *paths, *paths, "minus"]
    assert found.parameters == twice.count_params() == 3 * 3 * 3 * 4 + 4
    assert [row.parameters for row in found.layers] == [0, 0, 112, 0, 0, 0, 0]
    assert found.multiply_adds == 2 * 6 * 6 * 4 * 27


def test_operations_between_layers_count_their_maps_and_products():
    import keras
    from keras import ops

    from cvbatch.models import cost

    image = keras.Input((5, 6))
    product = ops.matmul(image, ops.transpose(image, (0, 2, 1)))
    found = cost.compute_cost(keras.Model(image, ops.relu(product) + 1))
    assert [row.kind for row in found.layers] == [
        "InputLayer", "Transpose", "Matmul", "Relu", "Add",
    ]  # fmt: skip
    assert found.multiply_adds == 5 * 5 * 6


# ---------------------------------------------------------------- layers of one's own


def own_layer(**methods):
    import keras

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1],))

    def call(self, x):
        return x * self.kernel

    return type("Own", (keras.Layer,), {"build": build, "call": call, **methods})()


def test_a_layer_of_ones_own_says_how_often_it_multiplies():
    import keras

    shapes = []

    def multiply_adds(self, input_shape, output_shape):
        shapes.append((input_shape, output_shape))
        return math.prod(output_shape[1:])

    cost = describe(own_layer(multiply_adds=multiply_adds))
    assert cost.multiply_adds == 5 * 6 * 3
    assert shapes == [((None, 5, 6, 3), (None, 5, 6, 3))]
    silent = describe(own_layer(), keras.layers.Dense(2))
    assert silent.is_at_least
    assert silent.layers[1].multiply_adds is None
    assert silent.multiply_adds == 5 * 6 * 3 * 2
    derived = type("Mine", (keras.layers.Dense,), {})(2)
    assert describe(derived).multiply_adds == 5 * 6 * 3 * 2


# ---------------------------------------------------------------- sizes


def test_an_open_size_is_described_at_the_one_that_is_said():
    import keras
    from keras import layers

    from cvbatch.models import cost

    def convolutions(shape):
        inner = keras.Sequential([keras.Input(shape), layers.Conv2D(4, 3)], name="inner")
        image = keras.Input(shape)
        return keras.Model(image, layers.Conv2D(2, 3)(inner(image)))

    model = convolutions((None, None, 3))
    said, meant = cost.compute_cost(model, (20, 30)), cost.compute_cost(convolutions((20, 30, 3)))
    assert said.multiply_adds == meant.multiply_adds
    assert said.inference_bytes == meant.inference_bytes
    with pytest.raises(ModelError, match="leaves its image size open"):
        cost.compute_cost(model)
    with pytest.raises(ModelError, match=r"takes \[20, 30\] only"):
        cost.compute_cost(convolutions((20, 30, 3)), (20, 31))
    with pytest.raises(ModelError, match="not one batch of images"):
        describe(layers.Dense(2), shape=(4,), image_size=(4, 4))


def test_what_is_no_graph_of_layers_is_refused():
    import keras

    from cvbatch.models import cost

    for model in (type("Own", (keras.Model,), {})(), keras.Sequential([keras.layers.Dense(2)])):
        with pytest.raises(ModelError, match="is not a graph of layers"):
            cost.compute_cost(model)


# ---------------------------------------------------------------- without weights


def test_a_network_without_weights_costs_the_same_and_takes_no_memory():
    import keras

    from cvbatch.models import cost, registry

    without, plain = (
        cost.compute_cost(model)
        for model in (built("yolo", (32, 32)), registry.build("yolo", image_size=(32, 32)))
    )
    paths = [row.path for row in plain.layers]  # Keras numbers the layers of a process on and on
    renamed = [replace(row, path=path) for row, path in zip(without.layers, paths, strict=True)]
    assert replace(without, layers=tuple(renamed)) == plain
    before = psutil.Process().memory_info().rss
    model = built("VGG16", (224, 224))
    assert cost.compute_cost(model).parameters == 138_357_544
    # What works out a shape afterwards, as Keras does for layers that do not tell theirs, would
    # have given the weights their values.
    keras.Model(model.input, keras.layers.Lambda(lambda x: x + 1)(model.output))
    assert psutil.Process().memory_info().rss - before < 100 << 20
    # ... and a network built afterwards has its own.
    dense = keras.layers.Dense(2)
    assert dense(np.ones((1, 3), "float32")).shape == (1, 2)
