"""Networks of .keras files: their classes, their activation, and what cannot be trained."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from cvbatch.config.train import parse_training
from cvbatch.core.errors import ModelError
from cvbatch.datasets.reader import LabelledDataset, LabelSpec, scan_dataset
from cvbatch.models import registry
from cvbatch.models.metadata import write_card
from cvbatch.storage.store import Storage
from cvbatch.train import network
from cvbatch.train.initial_network import (
    check_trainable,
    decide_activation,
    fit_classes,
    scaling_note,
)
from tests.support import datasets
from tests.support.encoded_images import encode_opencv
from tests.support.training_examples import example

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SIZE = (16, 16)
OLD = ("cat", "dog", "fox")


def pooled():
    image = keras.Input((*SIZE, 3), name="image")
    x = layers.Conv2D(6, 3, strides=4, activation="relu")(layers.Rescaling(1 / 255)(image))
    return image, layers.GlobalAveragePooling2D(name="pool")(x)


def classifier(units=3, activation="softmax"):
    image, x = pooled()
    return keras.Model(image, layers.Dense(units, activation=activation, name="top")(x))


def job(task="classification", model="m.keras", **keys):
    training = keys.pop("training", {})
    section = {"task": task, "model": str(model), **keys}
    raw = {"source": {"uri": "in"}, "sink": {"uri": "out"}, "model": section, "training": training}
    return parse_training(raw)


def pixels(count=4):
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3)).astype("float32")


def saved(model, path, classes=None, task="classification"):
    model.save(path)
    if classes is not None:
        write_card(path, classes, task)
    return path


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


# --- classes


@pytest.mark.runs(
    "a .keras classifier, to be trained on other classes",
    "`cvbatch train`: `model: FILE.keras`; its head is rebuilt",
)
def test_fine_tuning_a_keras_file_on_other_classes_rebuilds_its_head(tmp_path):
    original = classifier()
    path = saved(original, tmp_path / "animals.keras", OLD)
    data = LabelledDataset(("bee", "cat", "cow", "elk"), {}, "")
    file = tmp_path / "initial.keras"
    built = network.build_network(Storage(), job(model=path), data, None, file)
    initial = registry.load_file("initial", file)

    def before_the_head(model):
        return keras.Model(model.input, model.get_layer("pool").output).predict(pixels(), verbose=0)

    np.testing.assert_allclose(before_the_head(initial), before_the_head(original), atol=1e-5)
    assert initial.predict(pixels(), verbose=0).shape == (4, 4)
    np.testing.assert_array_equal(
        initial.get_layer("top").kernel[:, 1], original.get_layer("top").kernel[:, 0]
    )
    (note, _) = built.notes
    assert "layer top is rebuilt for the 4 classes of the data" in note
    assert "(untrained: bee, cow, elk; with their weights: cat)" in note


@pytest.mark.runs(
    "a .keras classifier, to be trained on its classes in another order",
    "`cvbatch train`: `model: FILE.keras`; its outputs are reordered",
)
def test_the_same_classes_in_another_order_are_reordered():
    model = classifier()
    fitted = fit_classes(model, job(), OLD, ("fox", "cat", "dog"))
    expected = model.predict(pixels(), verbose=0)[:, [2, 0, 1]]
    np.testing.assert_allclose(fitted.model.predict(pixels(), verbose=0), expected, atol=1e-6)
    assert "layer top is put into the order of the data's classes" in fitted.note


@pytest.mark.runs(
    "a .keras segmenter, to be trained on other classes",
    "`cvbatch train`: `task: segmentation`, `model: FILE.keras`; its head is rebuilt",
)
def test_the_head_of_a_segmenter_is_rebuilt_and_known_classes_keep_their_scores():
    image = keras.Input((*SIZE, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, layers.Conv2D(3, 1, name="top")(x))
    fitted = fit_classes(model, job("segmentation"), OLD, ("bee", "fox", "cat", "elk"))
    scores = fitted.model.predict(pixels(), verbose=0)
    assert scores.shape == (4, *SIZE, 4)
    expected = model.predict(pixels(), verbose=0)[..., [2, 0]]
    np.testing.assert_allclose(scores[..., [1, 2]], expected, atol=1e-5)
    assert "(untrained: bee, elk; with their weights: fox, cat)" in fitted.note


def test_a_network_that_does_not_scale_its_pixels_is_reported():
    image = keras.Input((*SIZE, 3))
    unscaled = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3)(image)))
    assert "trained on pixels 0..255" in scaling_note(unscaled, "m.keras")
    assert scaling_note(classifier(), "m.keras") == ""


def test_the_same_classes_change_nothing():
    model = classifier()
    assert fit_classes(model, job(), OLD, OLD) == (model, "")


def test_a_file_without_names_keeps_a_head_of_that_size_with_a_warning():
    model = classifier()
    fitted = fit_classes(model, job(), None, ("a", "b", "c"))
    assert fitted.model is model
    assert "does not name its classes" in fitted.note and "in this order: a, b, c" in fitted.note
    rebuilt = fit_classes(model, job(), None, ("a", "b"))
    assert rebuilt.model.output_shape == (None, 2)
    assert "(untrained: a, b)" in rebuilt.note


@pytest.mark.parametrize("classes", [("b", "a"), ("a", "b", "c")])
def test_one_sigmoid_unit_for_two_classes_becomes_a_softmax(classes):
    fitted = fit_classes(classifier(1, "sigmoid"), job(), ("a", "b"), classes)
    scores = fitted.model.predict(pixels(), verbose=0)
    assert scores.shape == (4, len(classes))
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    assert "untrained: " in fitted.note
    unit = classifier(1, "sigmoid")
    assert fit_classes(unit, job(), ("a", "b"), ("a", "b")).model is unit


def test_a_card_with_another_number_of_names_is_refused():
    with pytest.raises(ModelError, match="has 3 classes, but its card names 2: a, b"):
        fit_classes(classifier(), job(), ("a", "b"), ("c", "d"))


def test_a_network_whose_head_is_not_found_is_refused():
    image, x = pooled()
    model = keras.Model(image, layers.BatchNormalization()(layers.Dense(3)(x)))
    with pytest.raises(ModelError, match="cannot be trained on other classes"):
        fit_classes(model, job(), OLD, ("a", "b"))


# --- quantised networks


@pytest.mark.runs(
    "a Keras model quantised to int8, to be trained",
    "no: `cvbatch train` refuses it: train the float model, and quantise the result",
)
def test_a_quantised_network_is_refused():
    model = classifier(8)
    model.quantize("int8")
    with pytest.raises(ModelError, match=r"'m.keras' is quantised \(layer '.*': int8_from_float32"):
        check_trainable(model, "m.keras")
    check_trainable(classifier(8), "m.keras")


# --- outputs


def two_heads():
    image, x = pooled()
    heads = {n: layers.Dense(3, activation="softmax", name=n)(x) for n in ("kind", "colour")}
    return keras.Model(image, heads)


@pytest.mark.runs(
    "a .keras network with several outputs, of which one is trained",
    "`cvbatch train`: `model: FILE.keras`, `output: NAME`",
)
def test_the_output_to_train_is_chosen_by_name():
    model = two_heads()
    learner = network.make_learner(job(output="colour"), model, 3)
    logits = learner.training_model(pixels())["scores"]
    expected = model(pixels())["colour"]
    np.testing.assert_allclose(ops.softmax(logits), expected, atol=1e-5)
    examples = [example(labels=[i % 3], image_id=str(i)) for i in range(4)]
    outputs = {k: np.asarray(v) for k, v in model(pixels()).items()}
    accuracy = learner.summarize(learner.evaluate(outputs, examples))["accuracy"]
    assert accuracy == np.mean(outputs["colour"].argmax(-1) == [0, 1, 2, 0])


@pytest.mark.parametrize(
    ("output", "words"),
    [(None, r"outputs kind, colour all match; choose one with `output: NAME`"),
     ("odour", r"called 'odour', but the model's outputs are kind \(B, 3\)")],
)  # fmt: skip
def test_an_output_that_is_not_chosen_or_unknown_is_refused(output, words):
    with pytest.raises(ModelError, match=words):
        network.make_learner(job(output=output), two_heads(), 3)


# --- activation


def dense(units=3, **options):
    image, x = pooled()
    return image, layers.Dense(units, **options)(x)


def separate():
    image, x = dense()
    return image, layers.Softmax()(x)


def reshaped():
    image, x = dense()
    return image, layers.Reshape((3,))(layers.Reshape((1, 3))(ops.softmax(x)))


def averaged():
    image, x = pooled()
    parts = [layers.Dense(3, activation="softmax")(x) for _ in range(2)]
    return image, layers.Average()(parts)


def clipped():
    image, x = dense()
    return image, ops.clip(layers.Softmax()(x), 1e-4, 1.0)


def of_unknown_operations():
    """A softmax with base 2, which no rule of the graph knows."""
    image, x = dense()
    powers = ops.power(2.0, x)
    return image, powers / ops.sum(powers, axis=-1, keepdims=True)


# form → network, options of the job's model, whether its scores are probabilities
FORMS = {
    "softmax in the layer": (lambda: dense(activation="softmax"), {}, True),
    "softmax layer": (separate, {}, True),
    "reshape after a softmax": (reshaped, {}, True),
    "average of softmaxes": (averaged, {}, True),
    "clipped softmax": (clipped, {}, True),
    "logits": (dense, {}, False),
    "logits, explicitly": (dense, {"activation": "softmax"}, False),
    "unknown, explicitly": (of_unknown_operations, {"activation": "none"}, True),
    "sigmoids": (lambda: dense(activation="sigmoid"), {"multi_label": True}, True),
    "logits of labels": (dense, {"multi_label": True}, False),
    "softmax of a softmax": (
        lambda: dense(activation="softmax"), {"activation": "softmax"}, False,
    ),
}  # fmt: skip


def losses_by_hand(model, options, are_probabilities, examples):
    """Return the cross-entropy of what prediction makes of `model.predict`."""
    scores = model.predict(pixels(), verbose=0).astype(np.float64)
    rows = np.arange(len(scores))
    if options.get("multi_label"):
        p = scores if are_probabilities else 1 / (1 + np.exp(-scores))
        truth = np.zeros_like(p)
        truth[rows, [e.class_ids[0] for e in examples]] = 1
        return -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean(axis=-1)
    p = scores if are_probabilities else np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return -np.log(p[rows, [e.class_ids[0] for e in examples]])


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_that_of_the_probabilities_that_prediction_makes(form):
    build, options, are_probabilities = FORMS[form]
    model = keras.Model(*build())
    training = job(**options)
    decision = decide_activation(model, training, Storage(), None, SIZE)
    decided = network.with_activation(training, decision.activation)
    learner = network.make_learner(decided, model, 3)
    examples = [example(labels=[i % 3], image_id=str(i)) for i in range(4)]
    losses = learner.losses(learner.training_model(pixels()), learner.targets(examples))
    expected = losses_by_hand(model, options, are_probabilities, examples)
    np.testing.assert_allclose(losses["scores"], expected, rtol=1e-4)


def test_heads_for_training_only_do_not_hide_the_scores():
    image, x = pooled()
    heads = {n: layers.Dense(3, activation="softmax", name=n)(x) for n in ("scores", "auxiliary_1")}
    model = keras.Model(image, heads)
    assert decide_activation(model, job(), Storage(), None, SIZE).activation == "none"
    fitted = fit_classes(model, job(), OLD, ("a", "b"))
    assert {k: v.shape[-1] for k, v in fitted.model.output.items()} == dict.fromkeys(heads, 2)
    network.make_learner(job(), fitted.model, 2)


def test_unclear_scores_are_refused_as_in_prediction():
    model = keras.Model(*of_unknown_operations())
    with pytest.raises(ModelError, match="may return probabilities or logits"):
        decide_activation(model, job(), Storage(), None, SIZE)


def test_unclear_scores_of_pixels_are_refused_although_their_arg_max_is_clear():
    image = keras.Input((*SIZE, 3))
    powers = ops.power(2.0, layers.Conv2D(3, 1)(layers.Rescaling(1 / 255)(image)))
    model = keras.Model(image, powers / ops.sum(powers, axis=-1, keepdims=True))
    with pytest.raises(ModelError, match="may return probabilities or logits"):
        decide_activation(model, job("segmentation"), Storage(), None, SIZE)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"activation": "sigmoid"}, "exclude each other require a softmax"),
     ({"activation": "softmax", "multi_label": True}, "may occur together require a sigmoid")],
)  # fmt: skip
def test_an_activation_that_does_not_fit_the_labels_is_refused(options, words):
    with pytest.raises(ModelError, match=words):
        network.make_learner(job(**options), keras.Model(*dense()), 3)


def test_the_decision_is_made_on_images_of_the_data(tmp_path):
    """Scores that leave 0..1 only on the data's white images are found there."""
    image = keras.Input((*SIZE, 3))
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(image))
    brightness = ops.maximum(ops.min(x, axis=-1, keepdims=True) - 0.9, 0.0)
    model = keras.Model(image, ops.abs(ops.sin(x)) + 50.0 * brightness)
    white = encode_opencv(np.full((20, 20, 3), 255, np.uint8), ".png")
    source = datasets.put(tmp_path / "in", {f"{c}/1.png": white for c in OLD})
    datasets.imported("folders", source, tmp_path / "out", split=(1, 0, 0))
    data = scan_dataset(Storage(), [str(tmp_path / "out")], LabelSpec("labels", True))
    training = job(activation="none")
    with pytest.raises(ModelError, match="activation none says that its scores are probabilities"):
        decide_activation(model, training, Storage(), data.splits["train"], SIZE)
    assert decide_activation(model, training, Storage(), None, SIZE).activation == "none"
