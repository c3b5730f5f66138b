"""A rebuilt head gives the old scores of the classes it keeps; all other layers are shared."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from cvbatch.core.errors import ModelError
from cvbatch.models import blocks, detectors
from cvbatch.models.box_decoding import BoxDecode
from cvbatch.models.class_head import with_classes
from cvbatch.models.graph_surgery import flatten
from cvbatch.train.learners.base import LEARNERS

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SIZE = (32, 32)
OLD = 4


def features():
    image = keras.Input((*SIZE, 3), name="image")
    x = layers.Rescaling(1 / 255)(image)
    return image, layers.Conv2D(6, 3, strides=4, activation="relu", name="base")(x)


def pooled():
    image, x = features()
    return image, layers.GlobalAveragePooling2D(name="pool")(x)


def dense(**options):
    image, x = pooled()
    return keras.Model(image, layers.Dense(OLD, name="top", **options)(x))


def with_layers_after():
    image, x = pooled()
    x = layers.Dense(OLD, name="top")(x)
    x = layers.Rescaling(0.5)(layers.Activation("softmax")(layers.Dropout(0.5)(x)))
    return keras.Model(image, ops.softmax(x * 3.0))


def reshaped_convolution():
    image, x = pooled()
    x = layers.Conv2D(OLD, 1, name="top")(layers.Reshape((1, 1, 6))(x))
    return keras.Model(image, layers.Softmax()(layers.Reshape((OLD,))(x)))


def pooled_convolution():
    image, x = features()
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(OLD, 1, name="top")(x))
    return keras.Model(image, layers.Activation("softmax")(x))


def nested():
    image, x = pooled()
    base = keras.Model(image, x, name="backbone")
    top = keras.Sequential([keras.Input((6,)), layers.Dense(OLD, name="top")], name="head")
    stack = [keras.Input((*SIZE, 3)), base, top, layers.Activation("softmax")]
    return keras.Sequential(stack, name="outer")


def ensemble():
    image, x = pooled()
    parts = [layers.Dense(OLD, activation="softmax", name=f"top{i}")(x) for i in range(2)]
    return keras.Model(image, layers.Average()(parts))


def segmenter():
    image, x = features()
    x = layers.UpSampling2D(4)(layers.Conv2D(OLD, 1, name="top")(x))
    return keras.Model(image, layers.Softmax()(x))


def transposed_segmenter():
    image, x = features()
    x = layers.Conv2DTranspose(OLD, 4, 4, name="top")(x)
    return keras.Model(image, layers.Softmax()(x))


def fcn():
    """Scores of two maps, added and enlarged by transposed convolutions, as in the zoo's FCNs."""
    image = keras.Input((*SIZE, 3))
    shallow = layers.Conv2D(5, 3, strides=2, padding="same", name="base1")(
        layers.Rescaling(1 / 255)(image)
    )
    deep = layers.Conv2D(6, 3, strides=2, padding="same", name="base2")(shallow)
    x = blocks.bilinear_upsampling(layers.Conv2D(OLD, 1, name="score_4")(deep), 2, name="up_4")
    x = layers.Add()([x, layers.Conv2D(OLD, 1, name="score_2")(shallow)])
    x = blocks.bilinear_upsampling(x, 2, name="up_2")
    return keras.Model(image, layers.Activation("softmax", name="scores")(x))


def localizer():
    image, x = pooled()
    classes = layers.Dense(OLD, activation="softmax", name="classes")(x)
    box = layers.Dense(4, name="box")(x)
    return keras.Model(image, BoxDecode(name="decode")([box, classes, image]))


# form → task, network, layers of its head
FORMS = {
    "dense": ("classification", lambda: dense(activation="softmax"), {"top"}),
    "logits without bias": ("classification", lambda: dense(use_bias=False), {"top"}),
    "layers after it": ("classification", with_layers_after, {"top"}),
    "reshaped convolution": ("classification", reshaped_convolution, {"top"}),
    "pooled convolution": ("classification", pooled_convolution, {"top"}),
    "nested": ("classification", nested, {"top"}),
    "ensemble": ("classification", ensemble, {"top0", "top1"}),
    "segmenter": ("segmentation", segmenter, {"top"}),
    "transposed convolution": ("segmentation", transposed_segmenter, {"top"}),
    "fcn": ("segmentation", fcn, {"score_4", "up_4", "score_2", "up_2"}),
    "localizer": ("localization", localizer, {"classes"}),
    "yolo": ("detection", lambda: detectors.yolo(OLD, SIZE, width=2), {"raw"}),
}


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(3)


def rebuild(task, model, sources, activation="softmax", output=None):
    graph = flatten(model)
    scores = LEARNERS[task].class_scores(graph, output)
    return with_classes(model, graph, scores, sources, activation)


def predict(model):
    """Return the outputs by name for random images."""
    pixels = np.random.default_rng(5).uniform(0, 255, (3, *SIZE, 3)).astype("float32")
    outputs = keras.tree.map_structure(ops.convert_to_numpy, model(pixels, training=False))
    return outputs if isinstance(outputs, dict) else {"scores": outputs}


def head_weights(model, names):
    return {
        id(weight)
        for layer in flatten(model).layers
        if layer.name in names
        for weight in layer.weights
    }


@pytest.mark.parametrize("form", FORMS)
def test_reordered_classes_have_reordered_scores(form):
    task, build, names = FORMS[form]
    model = build()
    for weight in model.trainable_weights:  # also those that start at zero
        weight.assign(weight + keras.random.normal(weight.shape, stddev=0.05))
    before = predict(model)
    rebuilt = rebuild(task, model, [2, 0, 3, 1])
    after = predict(rebuilt.model)
    assert set(rebuilt.layers) == names
    np.testing.assert_allclose(
        after.pop("scores"), before.pop("scores")[..., [2, 0, 3, 1]], atol=1e-6
    )
    for name, boxes in after.items():
        np.testing.assert_allclose(boxes, before[name], atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_another_number_of_classes_replaces_the_head_and_shares_the_rest(form):
    task, build, names = FORMS[form]
    model = build()
    rebuilt = rebuild(task, model, [None] * 7)
    assert predict(rebuilt.model)["scores"].shape[-1] == 7
    assert LEARNERS[task].build(rebuilt.model, 7).num_classes == 7  # it can be trained
    old, new = head_weights(model, names), head_weights(rebuilt.model, names)
    assert {id(w) for w in model.weights} - old == {id(w) for w in rebuilt.model.weights} - new
    assert old and not old & new


def test_a_rebuilt_model_can_be_saved_and_loaded(tmp_path):
    rebuilt = rebuild("classification", nested(), [3, None, 0]).model
    rebuilt.save(tmp_path / "rebuilt.keras")
    loaded = keras.saving.load_model(tmp_path / "rebuilt.keras")
    np.testing.assert_allclose(predict(loaded)["scores"], predict(rebuilt)["scores"], atol=1e-6)


def test_known_classes_keep_their_scores_beside_new_ones():
    model = dense()
    before = predict(model)["scores"]
    after = predict(rebuild("classification", model, [None, 3, None, 0, 1]).model)["scores"]
    np.testing.assert_allclose(after[:, [1, 3, 4]], before[:, [3, 0, 1]], atol=1e-6)
    assert np.abs(after[:, [0, 2]]).max() > 1e-3


@pytest.mark.parametrize(
    ("build", "new"),
    [
        (lambda: dense(activation="sigmoid"), "softmax"),
        (with_layers_after, "sigmoid"),
        (reshaped_convolution, "sigmoid"),
        (pooled_convolution, "sigmoid"),
    ],
)
def test_the_activation_becomes_that_of_the_new_classes(build, new):
    scores = predict(rebuild("classification", build(), [None] * 3, new).model)["scores"]
    assert (np.abs(scores.sum(axis=-1) - 1) < 1e-5).all() == (new == "softmax")


def test_only_the_chosen_output_is_rebuilt():
    image, x = pooled()
    model = keras.Model(
        image, {name: layers.Dense(OLD, name=f"{name}_top")(x) for name in ("kind", "colour")}
    )
    before = predict(model)
    rebuilt = rebuild("classification", model, [None] * 2, output="kind")
    after = predict(rebuilt.model)
    assert rebuilt.layers == ("kind_top",)
    assert after["kind"].shape == (3, 2)
    np.testing.assert_array_equal(after["colour"], before["colour"])


def mixed_after():
    image, x = pooled()
    return keras.Model(image, layers.BatchNormalization(name="odd")(layers.Dense(OLD)(x)))


def without_a_head():
    image, x = features()
    return keras.Model(image, layers.Activation("softmax")(layers.Flatten(name="flat")(x)))


def of_fixed_classes():
    image, x = pooled()
    return keras.Model(image, layers.Dense(OLD)(x) * np.arange(OLD, dtype="float32"))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (mixed_after, r"layer 'odd' \(BatchNormalization\) is between its class scores"),
        (without_a_head, r"layer 'flat' \(Flatten\) is between"),
        (of_fixed_classes, "cannot be built again"),
    ],
)
def test_a_head_that_cannot_be_replaced_is_refused(build, words):
    with pytest.raises(ModelError, match=words) as caught:
        rebuild("classification", build(), [None] * 7)
    assert "replace its last layer in Keras, or import the data" in str(caught.value)
