"""Weighted, smoothed and focal losses of class scores, compared with keras.losses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cvbatch.core.types import VOID_CLASS
from cvbatch.train.learners.losses import ClassLoss, as_two_classes, class_cross_entropy

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
ROWS, CLASSES = 6, 4
WEIGHTS = (0.5, 2.0, 0.0, 1.5)
SETTINGS = {
    "cross-entropy": ClassLoss(),
    "smoothed": ClassLoss(label_smoothing=0.2),
    "focal": ClassLoss(gamma=2.0),
    "focal of a small gamma": ClassLoss(gamma=0.5),
    "smoothed focal": ClassLoss(gamma=1.5, label_smoothing=0.1),
}


def logits_and_classes(scale=2.0):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, scale, (ROWS, CLASSES)).astype(np.float32)
    return logits, rng.integers(0, CLASSES, ROWS).astype(np.int32)


def keras_loss(settings, **options):
    options |= {"from_logits": True, "reduction": None, "label_smoothing": settings.label_smoothing}
    if settings.gamma:
        return keras.losses.CategoricalFocalCrossentropy(
            **{"alpha": 1.0, "gamma": settings.gamma} | options
        )
    return keras.losses.CategoricalCrossentropy(**options)


@pytest.mark.parametrize("name", SETTINGS)
def test_exclusive_classes_have_the_loss_of_keras(name):
    logits, class_id = logits_and_classes()
    target = np.eye(CLASSES, dtype=np.float32)[class_id]
    expected = keras_loss(SETTINGS[name])(target, logits)
    np.testing.assert_allclose(SETTINGS[name].of_class(logits, class_id), expected, rtol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_weights_are_the_sample_weights_of_the_true_classes(name):
    """As in `Model.fit(class_weight=...)`."""
    logits, class_id = logits_and_classes()
    target = np.eye(CLASSES, dtype=np.float32)[class_id]
    expected = keras_loss(SETTINGS[name])(target, logits, np.float32(WEIGHTS)[class_id])
    settings = ClassLoss(SETTINGS[name].gamma, SETTINGS[name].label_smoothing, WEIGHTS)
    np.testing.assert_allclose(settings.of_class(logits, class_id), expected, rtol=1e-5)


def test_weights_of_a_focal_loss_are_its_alpha():
    logits, class_id = logits_and_classes()
    target = np.eye(CLASSES, dtype=np.float32)[class_id]
    expected = keras_loss(ClassLoss(gamma=2.0), alpha=list(WEIGHTS))(target, logits)
    settings = ClassLoss(gamma=2.0, class_weights=WEIGHTS)
    np.testing.assert_allclose(settings.of_class(logits, class_id), expected, rtol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_independent_labels_have_the_loss_of_keras(name):
    settings = SETTINGS[name]
    logits, _ = logits_and_classes()
    labels = np.random.default_rng(1).integers(0, 2, logits.shape).astype(np.float32)
    options = {"from_logits": True, "reduction": None, "label_smoothing": settings.label_smoothing}
    if settings.gamma:
        reference = keras.losses.BinaryFocalCrossentropy(gamma=settings.gamma, **options)
    else:
        reference = keras.losses.BinaryCrossentropy(**options)
    np.testing.assert_allclose(
        settings.of_labels(logits, labels), reference(labels, logits), rtol=1e-5
    )
    weighted = ClassLoss(settings.gamma, settings.label_smoothing, WEIGHTS)
    by_class = np.stack(
        [reference(labels[:, c : c + 1], logits[:, c : c + 1]) for c in range(CLASSES)], axis=1
    )
    expected = (by_class * WEIGHTS).mean(axis=1)
    np.testing.assert_allclose(weighted.of_labels(logits, labels), expected, rtol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_one_unit_for_two_classes_has_the_binary_loss(name):
    settings = SETTINGS[name]
    logits, class_id = logits_and_classes()
    unit, positive = logits[:, :1], (class_id % 2).astype(np.float32)
    two = settings.of_class(as_two_classes(unit), class_id % 2)
    if not settings.label_smoothing:
        np.testing.assert_allclose(two, settings.of_labels(unit, positive[:, None]), rtol=1e-5)
    expected = keras_loss(settings)(np.eye(2)[class_id % 2], np.hstack([0 * unit, unit]))
    np.testing.assert_allclose(two, expected, rtol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_pixels_are_averaged_over_those_with_a_class(name):
    settings = ClassLoss(SETTINGS[name].gamma, SETTINGS[name].label_smoothing, WEIGHTS)
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (3, 4, 5, CLASSES)).astype(np.float32)
    mask = rng.choice(np.array([*range(CLASSES), VOID_CLASS], np.uint8), (3, 4, 5))
    mask[2] = VOID_CLASS
    loss = settings.of_pixels(logits, mask)
    for image in range(2):
        counted = mask[image] != VOID_CLASS
        terms = settings.of_class(logits[image][counted], mask[image][counted].astype(np.int32))
        assert float(loss[image]) == pytest.approx(float(np.mean(terms)), rel=1e-5)
    assert float(loss[2]) == 0


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradients_are_finite_for_certain_and_wrong_scores(name, scale):
    logits, class_id = logits_and_classes(scale)
    settings = ClassLoss(SETTINGS[name].gamma, SETTINGS[name].label_smoothing, WEIGHTS)
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(settings.of_class(variable, class_id))
        loss += tf.reduce_sum(settings.of_labels(variable, np.eye(CLASSES)[class_id]))
    assert np.isfinite(float(loss))
    assert np.isfinite(tape.gradient(loss, variable)).all()


def test_without_settings_it_is_the_cross_entropy():
    logits, class_id = logits_and_classes()
    np.testing.assert_array_equal(
        ClassLoss().of_class(logits, class_id), class_cross_entropy(logits, class_id)
    )
