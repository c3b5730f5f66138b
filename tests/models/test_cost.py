"""Costs, compared with a textbook example, Keras' summary, TensorFlow's profiler and loops."""

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
    """Return the cost of a stack of layers."""
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


def test_a_network_without_layers_costs_its_image():
    cost = describe(shape=(4, 5, 3))
    assert [row.path for row in cost.layers] == ["image"]
    assert (cost.parameters, cost.multiply_adds, cost.working_bytes) == (0, 0, 0)
    assert cost.inference_bytes == cost.training_bytes == 4 * 5 * 3 * 4
    assert not cost.is_at_least


def test_the_textbook_example():
    """A 5×5 convolution with 200 filters over 150×100×3, same padding (Géron, chapter 14)."""
    from keras import layers

    cost = describe(layers.Conv2D(200, 5, padding="same"), shape=(150, 100, 3))
    assert cost.parameters == 15_200
    assert cost.multiply_adds == 225_000_000
    assert cost.layers[-1].output_bytes == 12_000_000
    assert cost.layers[-1].output_shapes == ((None, 150, 100, 200),)


def test_activation_totals_are_inputs_and_outputs_of_layers():
    import keras
    from keras import layers

    from cvbatch.models.cost import compute_cost

    image = keras.Input((8, 8, 1))
    wide = layers.Conv2D(10, 1)(image)  # 640 values
    small = layers.Conv2D(10, 3, strides=2, padding="same")(wide)  # 160
    back = layers.UpSampling2D(2)(small)  # 640
    joined = layers.Add()([wide, back])  # 640, from two inputs of the same size
    cost = compute_cost(keras.Model(image, joined))
    sizes = [row.output_bytes // 4 for row in cost.layers]
    assert sizes == [64, 640, 160, 640, 640]
    assert cost.training_bytes == 4 * sum(sizes)
    assert cost.inference_bytes == 4 * 3 * 640
    assert cost.working_bytes == 4 * (640 + 160)
    assert cost.working_layer == cost.layers[2].path  # the first of two that need as much
    assert (cost.weight_bytes, cost.trainable_bytes) == (4 * cost.parameters,) * 2


def test_json_has_all_values():
    from keras import layers

    cost = describe(layers.Conv2D(2, 3), layers.BatchNormalization())
    document = json.loads(json.dumps(cost.as_json()))
    assert [row["path"] for row in document["layers"]] == [row.path for row in cost.layers]
    assert document["parameters"] == sum(row["parameters"] for row in document["layers"]) == 56 + 8
    assert document["trainable_parameters"] == 56 + 4
    assert document["weight_bytes"] == 4 * 64


# ---------------------------------------------------------------- compared with loops


def convolve(x, kernel, groups, stride):
    """Compute a valid convolution by loops; return it and the number of multiplications."""
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
def test_a_convolutions_multiply_adds_equal_those_of_loops(groups, stride):
    import keras
    from keras import layers

    from cvbatch.models import cost

    layer = layers.Conv2D(8, 3, strides=stride, groups=groups, use_bias=False)
    model = keras.Sequential([keras.Input((7, 6, 4)), layer])
    x = np.random.default_rng(0).normal(size=(7, 6, 4)).astype("float32")
    result, count = convolve(x, layer.get_weights()[0], groups, stride)
    np.testing.assert_allclose(model(x[None]).numpy()[0], result, atol=1e-5)
    assert cost.compute_cost(model).multiply_adds == count


def convolve_transposed(x, kernel, stride):
    """Compute a valid transposed convolution by loops; return it and its multiplications."""
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
def test_a_transposed_convolutions_multiply_adds_equal_those_of_loops(stride):
    import keras
    from keras import layers

    from cvbatch.models import cost

    layer = layers.Conv2DTranspose(5, 3, strides=stride, use_bias=False)
    model = keras.Sequential([keras.Input((4, 3, 2)), layer])
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype("float32")
    result, count = convolve_transposed(x, layer.get_weights()[0], stride)
    np.testing.assert_allclose(model(x[None]).numpy()[0], result, atol=1e-5)
    assert cost.compute_cost(model).multiply_adds == count


def table_of_layers():
    """Return layers with input shape and multiply-adds, as positions × taps × channels."""
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
def test_multiply_adds_of_every_kind_of_layer(index):
    layer, shape, multiply_adds = table_of_layers()[index]
    cost = describe(layer, shape=shape)
    assert cost.layers[-1].multiply_adds == multiply_adds
    assert cost.is_at_least == (multiply_adds is None)
    assert cost.parameters == layer.count_params()


def test_attention_counts_projections_and_two_products():
    import keras
    from keras import layers

    from cvbatch.models.cost import compute_cost

    query, value = keras.Input((5, 6)), keras.Input((7, 3))
    attention = layers.MultiHeadAttention(num_heads=2, key_dim=4, value_dim=8)
    cost = compute_cost(keras.Model([query, value], attention(query, value)))
    projections = 5 * 6 * 8 + 7 * 3 * 8 + 7 * 3 * 16 + 5 * 16 * 6
    assert cost.layers[-1].multiply_adds == projections + 2 * (5 * 7 * 4 + 5 * 7 * 8)
    self_attention = keras.Model(query, layers.MultiHeadAttention(2, 4)(query, query))
    assert compute_cost(self_attention).multiply_adds == 4 * 5 * 6 * 8 + 2 * 2 * 5 * 5 * 4


# ---------------------------------------------------------------- whole networks


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_parameters_and_shapes_equal_keras_summary(name, size):
    import keras

    from cvbatch.models import cost

    model = built(name, size)
    lines = []
    model.summary(print_fn=lines.append, line_length=200)
    text = "\n".join(lines)
    counts = [
        int(re.search(rf"{kind} params: ([\d,]+)", text)[1].replace(",", ""))
        for kind in ("Total", "Trainable")
    ]
    network_cost = cost.compute_cost(model)
    assert [network_cost.parameters, network_cost.trainable_parameters] == counts
    rows = {row.path: row for row in network_cost.layers}
    for layer in model.layers:
        outputs = keras.tree.flatten(layer.output)
        assert list(rows[layer.name].output_shapes) == [tensor.shape for tensor in outputs]
        assert rows[layer.name].parameters == layer.count_params()
    assert sum(row.parameters for row in network_cost.layers) == network_cost.parameters


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_multiply_adds_are_half_the_operations_of_tensorflow_profiler(name, size):
    """The profiler counts a multiplication and an addition as two operations."""
    import tensorflow as tf

    from cvbatch.models import cost

    model = built(name, size)
    traced = tf.function(lambda images: model(images, training=False))
    graph = traced.get_concrete_function(tf.TensorSpec((1, *size, 3))).graph
    profiler = tf.compat.v1.profiler
    profile = profiler.profile(graph, options=profiler.ProfileOptionBuilder.float_operation())
    multiplying = {"Conv2D", "DepthwiseConv2dNative", "MatMul", "Conv2DBackpropInput"}
    kinds = {op.name: op.type for op in graph.get_operations()}
    operations, pending = 0, list(profile.children)
    while pending:
        node = pending.pop()
        pending += node.children
        operations += node.float_ops if kinds.get(node.name) in multiplying else 0
    network_cost = cost.compute_cost(model)
    assert not network_cost.is_at_least
    assert network_cost.multiply_adds == operations / 2
    assert (
        0 < network_cost.working_bytes <= network_cost.inference_bytes < network_cost.training_bytes
    )


def test_nested_models_are_flattened_and_shared_weights_counted_once():
    import keras
    from keras import layers

    from cvbatch.models import cost

    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv")], name="in")
    outer_image = keras.Input((8, 8, 3))
    outer = keras.Model(outer_image, layers.Flatten(name="flat")(inner(outer_image)), name="out")
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    twice = keras.Model([left, right], layers.Subtract(name="minus")([outer(left), outer(right)]))
    network_cost = cost.compute_cost(twice)
    paths = ["out/in/conv", "out/flat"]
    assert [row.path for row in network_cost.layers] == ["left", "right", *paths, *paths, "minus"]
    assert network_cost.parameters == twice.count_params() == 3 * 3 * 3 * 4 + 4
    assert [row.parameters for row in network_cost.layers] == [0, 0, 112, 0, 0, 0, 0]
    assert network_cost.multiply_adds == 2 * 6 * 6 * 4 * 27


def test_operations_between_layers_are_counted():
    import keras
    from keras import ops

    from cvbatch.models import cost

    image = keras.Input((5, 6))
    product = ops.matmul(image, ops.transpose(image, (0, 2, 1)))
    network_cost = cost.compute_cost(keras.Model(image, ops.relu(product) + 1))
    assert [row.kind for row in network_cost.layers] == [
        "InputLayer", "Transpose", "Matmul", "Relu", "Add",
    ]  # fmt: skip
    assert network_cost.multiply_adds == 5 * 5 * 6


# ---------------------------------------------------------------- custom layers


def custom_layer(**methods):
    import keras

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1],))

    def call(self, x):
        return x * self.kernel

    return type("Custom", (keras.Layer,), {"build": build, "call": call, **methods})()


def test_a_custom_layer_states_its_multiply_adds():
    import keras

    shapes = []

    def multiply_adds(self, input_shape, output_shape):
        shapes.append((input_shape, output_shape))
        return math.prod(output_shape[1:])

    cost = describe(custom_layer(multiply_adds=multiply_adds))
    assert cost.multiply_adds == 5 * 6 * 3
    assert shapes == [((None, 5, 6, 3), (None, 5, 6, 3))]
    unknown = describe(custom_layer(), keras.layers.Dense(2))
    assert unknown.is_at_least
    assert unknown.layers[1].multiply_adds is None
    assert unknown.multiply_adds == 5 * 6 * 3 * 2
    derived = type("Derived", (keras.layers.Dense,), {})(2)
    assert describe(derived).multiply_adds == 5 * 6 * 3 * 2


# ---------------------------------------------------------------- sizes


def test_a_variable_image_size_needs_an_explicit_size():
    import keras
    from keras import layers

    from cvbatch.models import cost

    def convolutions(shape):
        inner = keras.Sequential([keras.Input(shape), layers.Conv2D(4, 3)], name="inner")
        image = keras.Input(shape)
        return keras.Model(image, layers.Conv2D(2, 3)(inner(image)))

    model = convolutions((None, None, 3))
    variable = cost.compute_cost(model, (20, 30))
    fixed = cost.compute_cost(convolutions((20, 30, 3)))
    assert variable.multiply_adds == fixed.multiply_adds
    assert variable.inference_bytes == fixed.inference_bytes
    with pytest.raises(ModelError, match="has a variable image size"):
        cost.compute_cost(model)
    with pytest.raises(ModelError, match=r"takes \[20, 30\] only"):
        cost.compute_cost(convolutions((20, 30, 3)), (20, 31))
    with pytest.raises(ModelError, match="not one batch of images"):
        describe(layers.Dense(2), shape=(4,), image_size=(4, 4))


def test_models_without_a_graph_are_refused():
    import keras

    from cvbatch.models import cost

    for model in (
        type("Subclassed", (keras.Model,), {})(),
        keras.Sequential([keras.layers.Dense(2)]),
    ):
        with pytest.raises(ModelError, match="is not a graph of layers"):
            cost.compute_cost(model)


# ---------------------------------------------------------------- without weights


def test_a_network_without_weights_costs_the_same_and_allocates_nothing():
    import keras

    from cvbatch.models import cost, registry

    unallocated, allocated = (
        cost.compute_cost(model)
        for model in (built("yolo", (32, 32)), registry.build("yolo", image_size=(32, 32)))
    )
    paths = [row.path for row in allocated.layers]  # Keras numbers the layers of a process
    renamed = [replace(row, path=path) for row, path in zip(unallocated.layers, paths, strict=True)]
    layer = allocated.working_layer
    assert replace(unallocated, layers=tuple(renamed), working_layer=layer) == allocated
    before = psutil.Process().memory_info().rss
    model = built("VGG16", (224, 224))
    assert cost.compute_cost(model).parameters == 138_357_544
    # Inferring a shape later, as Keras does for a Lambda, must not allocate the weights.
    keras.Model(model.input, keras.layers.Lambda(lambda x: x + 1)(model.output))
    assert psutil.Process().memory_info().rss - before < 100 << 20
    # A layer built later has weights.
    dense = keras.layers.Dense(2)
    assert dense(np.ones((1, 3), "float32")).shape == (1, 2)
