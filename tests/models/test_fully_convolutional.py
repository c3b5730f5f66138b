"""Conversion of dense heads: every cell equals the dense head on its window of the map."""

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.core.errors import ModelError
from cvbatch.models.fully_convolutional import to_fully_convolutional, without_head
from cvbatch.models.graph_surgery import apply_graph, calls_of, flatten, output_of, with_image_size
from tests.support import networks

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
ORIGINAL, LARGER = (12, 16), (20, 28)


def trunk(x, name="map"):
    x = layers.Rescaling(1 / 255)(x)
    return layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name=name)(x)


def dense_head(x):
    x = layers.Dense(7, activation="relu")(layers.Flatten()(x))
    x = layers.BatchNormalization()(layers.Dropout(0.5)(x))
    return layers.Dense(4, activation="softmax")(layers.Dense(5, use_bias=False)(x))


def pooled_head(pooling):
    def head(x):
        x = layers.ReLU()(layers.BatchNormalization()(pooling()(x)))
        return layers.Softmax()(layers.Dense(4)(x))

    return head


def convolutional_head(x):
    """Head of MobileNet: pooling to 1 × 1, a convolution, then a vector."""
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Reshape((4,))(layers.Conv2D(4, 1)(x))
    return layers.Activation("softmax")(x)


def after_squeeze(head):
    """A squeeze-and-excitation block, whose pooling is not a head, then a head."""

    def block_and_head(x):
        scale = layers.Dense(6, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
        x = layers.Multiply()([x, layers.Reshape((1, 1, 6))(scale)])
        return head(layers.Identity(name="excited")(x))

    return block_and_head


HEADS = {
    "flatten": dense_head,
    "average": pooled_head(layers.GlobalAveragePooling2D),
    "maximum": pooled_head(layers.GlobalMaxPooling2D),
    "convolutional": convolutional_head,
    "squeeze": after_squeeze(dense_head),
}


def randomised(model, seed=0):
    """Set random weights, because biases of 0 and statistics of 1 could hide a mistake."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.1, 0.9, w.shape) - 0.4 * (w.ndim > 1) for w in model.weights])
    return model


def classifier(head, size=ORIGINAL):
    keras.utils.set_random_seed(0)
    image = keras.Input((*size, 3), name="image")
    return randomised(keras.Model(image, head(trunk(image)), name="classifier"))


def images(size, count=2, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype("float32")


def slide(head, features, window):  # (B, H, W, c) → (B, H − h + 1, W − w + 1, units)
    """Return the dense head's output for every window of the map, one at a time."""
    rows, columns = (features.shape[i + 1] - window[i] + 1 for i in range(2))
    outputs = [
        [head(features[:, y : y + window[0], x : x + window[1]]) for x in range(columns)]
        for y in range(rows)
    ]
    return np.array(outputs).transpose(2, 0, 1, 3)


@pytest.mark.parametrize("name", HEADS)
def test_at_the_original_size_the_output_has_one_cell(name):
    model = classifier(HEADS[name])
    output = to_fully_convolutional(model)(images(ORIGINAL))

    assert output.shape == (2, 1, 1, 4)
    np.testing.assert_allclose(output[:, 0, 0], model(images(ORIGINAL)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_every_cell_equals_the_dense_head_on_its_window(name):
    model = classifier(HEADS[name])
    converted = to_fully_convolutional(model, LARGER)
    cut = "excited" if name == "squeeze" else "map"
    features = keras.Model(converted.input, output_of(converted, cut))(images(LARGER))
    head_input = keras.Input(output_of(model, cut).shape[1:])
    head = keras.Model(output_of(model, cut), model.output)
    head = keras.Model(head_input, apply_graph(head, [head_input]))

    output = converted(images(LARGER))
    assert output.shape == (2, 5, 7, 4)
    np.testing.assert_allclose(output, slide(head, features, (6, 8)), rtol=1e-4, atol=1e-5)


def test_same_padding_keeps_the_size_of_the_map():
    model = classifier(dense_head)
    same = np.asarray(to_fully_convolutional(model, LARGER, "same")(images(LARGER)))
    valid = np.asarray(to_fully_convolutional(model, LARGER)(images(LARGER)))

    assert same.shape == (2, 10, 14, 4)
    np.testing.assert_allclose(same[:, 2:7, 3:10], valid, rtol=1e-5, atol=1e-6)


def test_sequential_and_nested_models_are_flattened_and_converted():
    for model, size in (
        (networks.plain_classifier(), (33, 32)),
        (networks.nested_classifier(), (32, 32)),
    ):
        converted = to_fully_convolutional(model)
        assert not any(isinstance(layer, keras.Model) for layer in converted.layers)
        output = np.asarray(converted(images(size)))[:, 0, 0]
        np.testing.assert_allclose(output, model(images(size)), rtol=1e-5, atol=1e-6)


def test_all_heads_are_converted_and_other_outputs_stay():
    model = randomised(networks.two_headed())
    larger = to_fully_convolutional(model, (48, 40))(images((48, 40)))
    original = to_fully_convolutional(model)(images((32, 32)))
    dense = model(images((32, 32)))

    assert {name: value.shape for name, value in larger.items()} == {
        "classes": (2, 5, 3, 4),
        "maps": (2, 48, 40, 2),
    }
    np.testing.assert_allclose(original["classes"][:, 0, 0], dense["classes"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(original["maps"], dense["maps"], rtol=1e-5, atol=1e-6)


def test_the_weights_are_copies():
    model = classifier(dense_head)
    converted = to_fully_convolutional(model, LARGER)
    before = model(images(ORIGINAL))
    converted.set_weights([weight * 0 for weight in converted.get_weights()])

    assert converted.count_params() == model.count_params()
    np.testing.assert_array_equal(model(images(ORIGINAL)), before)


def test_a_converted_network_can_be_saved(tmp_path):
    converted = to_fully_convolutional(classifier(after_squeeze(dense_head)), LARGER)
    converted.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras", safe_mode=True)

    np.testing.assert_array_equal(loaded(images(LARGER)), converted(images(LARGER)))


def test_the_head_of_vgg16_has_a_7_by_7_window():
    with keras.StatelessScope(initialize_variables=False):
        model = keras.applications.VGG16(weights=None)
        converted = to_fully_convolutional(model, (224, 320))

    assert converted.output_shape == (None, 1, 4, 1000)
    assert converted.get_layer("fc1").kernel.shape == (7, 7, 512, 4096)
    assert converted.count_params() == 138_357_544


@pytest.mark.parametrize("name", HEADS)
def test_without_head_ends_at_the_input_of_the_head(name):
    model = classifier(HEADS[name])
    cut = "excited" if name == "squeeze" else "map"
    expected = keras.Model(model.input, output_of(model, cut))(images(ORIGINAL))

    np.testing.assert_array_equal(without_head(model)(images(ORIGINAL)), expected)


def two_images():
    inputs = [keras.Input((8, 8, 3)) for _ in range(2)]
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Add()(inputs))))


def model_with(*head):
    return keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(2, 3), *head])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: model_with(), "has no head"),
        (lambda: model_with(layers.Flatten()), "ends in a Flatten"),
        (lambda: model_with(layers.Flatten(), layers.LayerNormalization()), "LayerNormalization"),
        (
            lambda: model_with(layers.Flatten(), layers.BatchNormalization(), layers.Dense(2)),
            "after a Dense",
        ),
        (lambda: model_with(layers.Flatten(), layers.Softmax()), r"\(Softmax\) in the head"),
        (lambda: keras.Sequential([layers.Flatten()]), "without a graph"),
        (lambda: keras.Sequential([keras.Input((5,)), layers.Dense(2)]), "has no head"),
        (two_images, r"it must take one, \(batch"),
        (
            lambda: keras.Sequential(
                [keras.Input((None, None, 3)), layers.GlobalAveragePooling2D(), layers.Dense(2)]
            ),
            "unknown height and width",
        ),
    ],
)
def test_models_without_a_convertible_head_are_refused(model, message):
    with pytest.raises(ModelError, match=message):
        to_fully_convolutional(model(), (16, 16))


def test_an_image_smaller_than_the_window_is_refused():
    with pytest.raises(
        ModelError, match=r"8×16: 'classifier' .* at least its original size, 12×16"
    ):
        to_fully_convolutional(classifier(dense_head), (8, 16))
    with pytest.raises(ModelError, match="has no head"):
        without_head(networks.segmenter())


def test_flatten_returns_a_flat_model_itself_and_shares_nested_layers():
    model, nested = classifier(dense_head), networks.nested_classifier()
    flat = flatten(nested)

    assert flatten(model) is model
    assert not any(isinstance(call.operation, keras.Model) for call in calls_of(flat))
    assert {id(v) for v in flat.variables} <= {id(v) for v in nested.variables}
    np.testing.assert_allclose(flat(images((32, 32))), nested(images((32, 32))), rtol=1e-6)


def test_a_resized_network_shares_weights_and_can_be_saved(tmp_path):
    model = classifier(pooled_head(layers.GlobalAveragePooling2D))
    larger = with_image_size(model, LARGER)
    larger.save(tmp_path / "larger.keras")
    loaded = keras.saving.load_model(tmp_path / "larger.keras", safe_mode=True)
    output = np.asarray(larger(images(LARGER)))

    assert all(a is b for a, b in zip(model.variables, larger.variables, strict=True))
    np.testing.assert_array_equal(loaded(images(LARGER)), output)
    assert output_of(larger, "map").shape == (None, 10, 14, 6)
    model.set_weights([weight * 0.5 for weight in model.get_weights()])
    assert not np.array_equal(larger(images(LARGER)), output)


def test_a_model_with_a_fixed_size_head_cannot_be_resized():
    with pytest.raises(ModelError, match=r"of 12×16 cannot take images of 20×28.*build it at"):
        with_image_size(classifier(dense_head), LARGER)
