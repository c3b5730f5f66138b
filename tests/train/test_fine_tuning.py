"""Fine-tuning: the head converges on cached features, then the base is trained from there."""

import keras
import numpy as np
import pytest
from scipy.optimize import minimize

from cvbatch.config.train import TrainingConfig
from cvbatch.train import network
from cvbatch.train.feature_cache import cache_features, split_network
from cvbatch.train.phases import Phase, phases_of
from cvbatch.train.trainer import Features, Plan, Trainer, WorkerData
from tests.support import toy_trainings

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
IMAGES = toy_trainings.images(64, seed=3)
PLAN = Plan(
    (Phase("head", "head", 2, 0.05), Phase("last_block", "last_block", 2, 0.01)),
    steps_per_epoch=4,
    batch_size=16,
)


class CrossEntropyLearner(toy_trainings.ColourLearner):
    """Classification of the colour with the cross-entropy alone."""

    def __init__(self, model):
        super().__init__(model)
        self.loss_weights = {"cross_entropy": 1.0}


def finetuned(folder, plan=PLAN, *, is_cached=True, listener=lambda event: None, model=None):
    """Return the trainer and its history; batches of features are those of the images."""
    model = model or toy_trainings.normalized()
    images = toy_trainings.batches_of(*IMAGES, plan.batch_size)
    base, head = split_network(model)

    def features(epoch, first):
        for batch in images(epoch, first):
            yield batch._replace(pixels=np.asarray(base(batch.pixels.astype(np.float32))))

    trainer = Trainer(
        CrossEntropyLearner(model),
        plan,
        WorkerData(images, Features(head, features) if is_cached else None),
        folder,
        listener=listener,
    )
    return trainer, trainer.run()


def weights(trainer):
    return [variable.numpy() for variable in trainer._variables]


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return finetuned(tmp_path_factory.mktemp("uninterrupted"))


def test_features_change_nothing_but_the_time(uninterrupted, tmp_path):
    trainer, rows = uninterrupted
    without_cache, same = finetuned(tmp_path, is_cached=False)

    assert_equal(weights(without_cache), weights(trainer))
    assert [row["phase"] for row in rows] == ["head", "head", "last_block", "last_block"]
    assert [row["loss"] for row in same] == pytest.approx([row["loss"] for row in rows], abs=1e-5)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_ends_as_an_uninterrupted_one(stop, uninterrupted, tmp_path):
    """1: inside the phase on features; 2: at its end; 3: inside the phase on images."""
    with pytest.raises(toy_trainings.StoppedError):
        finetuned(tmp_path, listener=toy_trainings.stop_at(stop))
    resumed, _ = finetuned(tmp_path, model=toy_trainings.normalized(seed=9))

    assert_equal(weights(resumed), weights(uninterrupted[0]))


def test_normalisation_of_the_base_stays_as_it_was(uninterrupted):
    trained, initial = uninterrupted[0]._learner.model, toy_trainings.normalized()
    for name in ("norm1", "norm2"):
        assert_equal(trained.get_layer(name).get_weights(), initial.get_layer(name).get_weights())
    changes = [
        np.abs(trained.get_layer(name).get_weights()[0] - initial.get_layer(name).get_weights()[0])
        for name in ("first", "second", "scores")
    ]
    assert [change.max() > 0 for change in changes] == [False, True, True]


def minimum_of_cross_entropy(features, colour):
    """Return the minimum of the mean cross-entropy over all linear heads, by L-BFGS."""
    ones = np.ones((len(features), 1))
    inputs = np.hstack([features, ones]).astype(np.float64)
    truth = np.eye(toy_trainings.COLOURS)[colour]

    def loss_and_gradient(flat):
        logits = inputs @ flat.reshape(-1, toy_trainings.COLOURS)
        logits -= logits.max(axis=1, keepdims=True)
        scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        loss = -np.log((scores * truth).sum(axis=1)).mean()
        return loss, (inputs.T @ (scores - truth) / len(inputs)).ravel()

    start = np.zeros(inputs.shape[1] * toy_trainings.COLOURS)
    return minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B").fun


def with_unit_features(pixels):
    """Return the network, with a standard deviation of 1 of the features that the head receives."""
    model = toy_trainings.normalized()
    pooled = keras.Model(model.input, model.get_layer("pool").output)
    gamma, beta, *statistics = model.get_layer("norm2").get_weights()
    scale = 1 / np.maximum(np.std(pooled(pixels.astype(np.float32)), axis=0), 1e-3)
    model.get_layer("norm2").set_weights([gamma * scale, beta * scale, *statistics])
    return model, np.asarray(pooled(pixels.astype(np.float32)))


def test_the_default_head_phase_ends_at_the_linear_probe(tmp_path):
    """With some wrong labels, so that the cross-entropy has its minimum at finite weights."""
    pixels, colour = toy_trainings.images(320, seed=4)
    colour[::5] = np.roll(colour[::5], 1)
    model, pooled = with_unit_features(pixels)
    base, head = split_network(model)
    cache = cache_features(base, [toy_trainings.batch_of(pixels, colour)], tmp_path / "features")
    defaults = TrainingConfig()
    trainer = Trainer(
        CrossEntropyLearner(model),
        Plan(phases_of(defaults, model)[:1], 20, 16, network.optimization(defaults)),
        WorkerData(
            lambda epoch, first: pytest.fail("the images are not read"),
            Features(head, lambda epoch, first: cache.batches(16, 0, epoch, first)),
        ),
        tmp_path / "checkpoints",
    )

    def loss():
        scores = np.asarray(model(pixels.astype(np.float32)))
        return -np.log(scores[np.arange(len(colour)), colour]).mean()

    minimum, untrained = minimum_of_cross_entropy(pooled, colour), loss()
    trainer.run()
    assert 0 <= loss() - minimum < 0.02 * (untrained - minimum)
