"""Validation loss and values of classes equal NumPy formulae over all images at once."""

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.train.collectives import Replicas
from cvbatch.train.learners.classification import Classification, ClassOptions
from cvbatch.train.learners.losses import ClassLoss
from cvbatch.train.validation import Validator
from tests.support import toy_trainings

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
CLASSES = ("red", "green", "blue")
PIXELS, COLOUR = toy_trainings.images(23, seed=5)
WEIGHTS = (2.0, 1.0, 0.5)


def network(has_nested_model):
    """A network with an l2 penalty; its softmax is part of the last layer."""
    keras.utils.set_random_seed(3)
    body = toy_trainings.plain(regularizer=keras.regularizers.L2(0.1))
    if not has_nested_model:
        return body
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, body(layers.ReLU()(inputs)))


def batches_of(*sizes):
    rows = np.split(np.arange(len(COLOUR)), np.cumsum(sizes))
    return lambda: [
        (PIXELS[r], toy_trainings.examples_of(PIXELS[r], COLOUR[r])) for r in rows if len(r)
    ]


def validate(model, *sizes):
    options = ClassOptions(loss=ClassLoss(class_weights=WEIGHTS))
    learner = Classification(model, 3, options=options)
    return Validator(learner, batches_of(*sizes), Replicas(), CLASSES)()


@pytest.mark.parametrize("has_nested_model", [False, True])
def test_loss_and_recall_are_those_of_all_images(has_nested_model):
    model = network(has_nested_model)
    scores = np.asarray(model(PIXELS.astype(np.float32)), np.float64)
    of_true_class = scores[np.arange(len(COLOUR)), COLOUR]
    terms = np.array(WEIGHTS)[COLOUR] * -np.log(of_true_class)
    kernel = next(w for w in model.weights if "first/kernel" in w.path).numpy()
    penalty = 0.1 * np.sum(kernel.astype(np.float64) ** 2)
    predicted = scores.argmax(axis=-1)
    values = validate(model, 8, 8)

    assert values["loss_scores"] == pytest.approx(terms.mean(), rel=1e-5)
    assert values["loss"] == pytest.approx(terms.mean() + penalty, rel=1e-5)
    assert values["accuracy"] == pytest.approx(np.mean(predicted == COLOUR))
    for k, name in enumerate(CLASSES):
        expected = np.mean(predicted[k == COLOUR] == k)
        assert values[f"recall/{name}"] == pytest.approx(expected)


def test_the_batches_do_not_change_the_values():
    model = network(has_nested_model=False)
    whole, split = validate(model), validate(model, 1, 9, 2)
    assert whole.keys() == split.keys()
    assert [split[key] for key in whole] == pytest.approx(list(whole.values()), rel=1e-5)


def test_a_class_without_examples_has_no_recall():
    learner = Classification(network(has_nested_model=False), 3)
    rows = COLOUR != 1
    examples = toy_trainings.examples_of(PIXELS[rows], COLOUR[rows])
    values = Validator(learner, lambda: [(PIXELS[rows], examples)], Replicas(), CLASSES)()
    assert np.isnan(values["recall/green"])
    assert np.isfinite(values["recall/red"])


def test_values_of_very_many_classes_are_left_out():
    learner = Classification(network(has_nested_model=False), 3)
    values = Validator(learner, batches_of(), Replicas(), [str(k) for k in range(101)])()
    assert set(values) == {"loss", "loss_scores", "accuracy", "macro_f1"}
