"""Batch-normalisation statistics equal those of the images, computed with NumPy."""

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.train.batch_statistics import BatchStatistics
from cvbatch.train.batches import pad_batch
from cvbatch.train.collectives import Replicas
from cvbatch.train.phases import Phase
from cvbatch.train.trainer import Plan, Trainer, WorkerData
from tests.support import toy_trainings

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
PIXELS, COLOUR = toy_trainings.images(20, seed=6)
ROWS = (slice(0, 8), slice(8, 16), slice(16, 20))  # the last batch has fewer images


def batches():
    parts = [toy_trainings.batch_of(PIXELS[rows], COLOUR[rows]) for rows in ROWS]
    return [pad_batch(part, 8) for part in parts]


def moments(values):  # (N, h, w, C) → (C,), (C,)
    return values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))


def expected_statistics(model):
    """Mean and variance of both layers: the first over all images, as its inputs depend on no
    batch; the inputs of the second are normalised by batch."""
    first, norm1, second = (model.get_layer(n) for n in ("first", "norm1", "second"))
    gamma, beta = (v.numpy() for v in (norm1.gamma, norm1.beta))
    inputs, hidden = [], []
    for rows in ROWS:
        x = np.asarray(first(PIXELS[rows].astype(np.float32) / 255), np.float64)
        mean, variance = moments(x)
        normal = gamma * (x - mean) / np.sqrt(variance + norm1.epsilon) + beta
        inputs.append(x)
        hidden.append(np.asarray(second(np.maximum(normal, 0).astype(np.float32)), np.float64))
    return moments(np.concatenate(inputs)), moments(np.concatenate(hidden))


def statistics_of(model, name):
    layer = model.get_layer(name)
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


def test_statistics_are_those_of_the_images_and_nothing_else_changes():
    model = toy_trainings.normalized(dropout=0.5)
    before = {v.path: v.numpy() for v in model.variables}
    BatchStatistics(model, Replicas(), 3).update(batches())

    for name, expected in zip(("norm1", "norm2"), expected_statistics(model), strict=True):
        np.testing.assert_allclose(statistics_of(model, name), expected, rtol=1e-4, atol=1e-6)
        assert model.get_layer(name).momentum == 0.9
    for variable in model.variables:
        if "moving" not in variable.path:
            np.testing.assert_array_equal(variable.numpy(), before[variable.path])


def test_statistics_do_not_depend_on_the_earlier_ones():
    results = []
    for seed in (0, 1):
        model, other = toy_trainings.normalized(), toy_trainings.normalized(seed)
        for name in ("norm1", "norm2"):
            gamma, beta, *_ = model.get_layer(name).get_weights()
            statistics = other.get_layer(name).get_weights()[2:]
            model.get_layer(name).set_weights([gamma, beta, *statistics])
        BatchStatistics(model, Replicas(), 3).update(batches())
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_frozen_layers_and_a_run_without_images_change_nothing():
    frozen, unused = toy_trainings.normalized(is_frozen=True), toy_trainings.normalized()
    assert BatchStatistics(frozen, Replicas(), 3).num_images == 0
    for model, given in (
        (frozen, batches()),
        (unused, [b._replace(num_real=0) for b in batches()]),
    ):
        before = model.get_weights()
        BatchStatistics(model, Replicas(), 3).update(given)
        for old, new in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(("updates", "lags"), [(0, True), (43, True), (44, False)])
def test_statistics_are_replaced_where_earlier_epochs_have_a_share_of_a_hundredth(updates, lags):
    """The momentum is 0.9, and 0.9⁴⁴ is 0.0097."""
    model = toy_trainings.normalized()
    before = statistics_of(model, "norm1")
    statistics = BatchStatistics(model, Replicas(), updates)
    statistics.update(batches())
    assert bool(statistics.num_images) == lags
    assert (np.abs(np.subtract(statistics_of(model, "norm1"), before)).max() > 1e-3) == lags


def test_images_of_another_size_are_normalised_at_that_size():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm")(inputs)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    wide = np.tile(PIXELS[:8], (1, 2, 3, 1))
    wide[:, 8:] //= 2
    BatchStatistics(model, Replicas(), 3).update([toy_trainings.batch_of(wide, COLOUR[:8])])
    expected = moments(wide.astype(np.float64))
    np.testing.assert_allclose(statistics_of(model, "norm"), expected, rtol=1e-4)


@pytest.mark.parametrize("resumes", [False, True])
def test_a_saved_epoch_has_the_statistics_of_its_first_images(resumes, tmp_path, monkeypatch):
    """With the weights after the epoch, not those of its steps; also if it was interrupted."""
    monkeypatch.setattr("cvbatch.train.batch_statistics._IMAGES", 16)
    source = toy_trainings.batches_of(PIXELS, COLOUR, 4)
    plan = Plan(
        (Phase("all", "all", 1, 0.02, freezes_normalization=False),), 5, 4, checkpoint_steps=3
    )

    def train(**options):
        model = toy_trainings.normalized()
        learner = toy_trainings.ColourLearner(model)
        Trainer(learner, plan, WorkerData(source), tmp_path, **options).run()
        return model

    if resumes:
        with pytest.raises(toy_trainings.StoppedError):
            train(listener=toy_trainings.stop_at(1))
    model = train()
    trained = model.get_weights()
    first = [batch for batch, _ in zip(source(0, 0), range(4), strict=False)]
    BatchStatistics(model, Replicas(), 3).update(first)
    for a, b in zip(trained, model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
