"""A head trained on cached features equals the head trained with its frozen base."""

import errno

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.core.errors import ModelError, TrainingError
from cvbatch.models.detectors import localizer, training_view
from cvbatch.train.feature_cache import cache_features, split_network
from cvbatch.train.optimizers import Optimization
from cvbatch.train.phases import Phase, freeze
from cvbatch.train.step import Step
from cvbatch.train.trainer import Features, Plan, Trainer, WorkerData
from tests.support import networks, toy_trainings

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def batches_of(pixels, colour, size):
    for start in range(0, len(colour), size):
        rows = slice(start, start + size)
        yield toy_trainings.batch_of(pixels[rows], colour[rows])


def test_no_images_are_an_error(tmp_path):
    with pytest.raises(TrainingError, match="no image"):
        cache_features(split_network(toy_trainings.plain()).base, [], tmp_path)


@pytest.mark.parametrize(
    "build",
    [
        toy_trainings.normalized,
        networks.plain_classifier,
        networks.nested_classifier,
        lambda: training_view(localizer(2, (32, 32))),
    ],
)
def test_head_after_base_equals_the_network(build):
    model = build()
    size = model.input_shape[1:3]
    pixels = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype(np.float32)
    base, head = split_network(model)
    expected, outputs = model(pixels), head(base(pixels))

    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), outputs, expected
    )
    assert {id(w) for w in (*base.weights, *head.weights)} == {id(w) for w in model.weights}


def test_a_head_that_reads_more_than_one_map_is_refused():
    inputs = keras.Input((8, 8, 3))
    early = layers.Conv2D(4, 3)(inputs)
    late = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(early))
    side = layers.Dense(2)(layers.GlobalAveragePooling2D()(early))
    model = keras.Model(inputs, {"scores": layers.Dense(2)(late), "side": side})
    with pytest.raises(ModelError, match="use recipe: frozen"):
        split_network(model)


def test_a_cache_contains_every_image_once_in_any_order(tmp_path):
    data = toy_trainings.images(11)
    base, _ = split_network(toy_trainings.plain())
    padding = toy_trainings.batch_of(*toy_trainings.images(4, seed=9), num_real=0)
    cache = cache_features(base, [*batches_of(*data, 4), padding], tmp_path / "features")
    expected = np.asarray(base(data[0].astype(np.float32)))
    (whole,) = cache.batches(11, 3, 0)  # the rows of a batch are in the order of the files

    assert len(cache) == 11
    assert [batch.num_real for batch in cache.batches(5, 3, 0)] == [5, 5, 1]
    np.testing.assert_allclose(whole.pixels, expected, atol=1e-6)
    orders = []
    for epoch in (0, 0, 1):
        colours = np.concatenate([b.targets["colour"] for b in cache.batches(4, 3, epoch)])
        sums = np.concatenate([b.pixels.sum(axis=(1, 2, 3)) for b in cache.batches(4, 3, epoch)])
        assert sorted(colours.tolist()) == sorted(data[1].tolist())
        np.testing.assert_allclose(np.sort(sums), np.sort(expected.sum(axis=(1, 2, 3))), rtol=1e-5)
        orders.append(sums.tolist())
    assert orders[0] == orders[1] != orders[2]
    later = [batch.pixels for batch in cache.batches(4, 3, 0, first_batch=1)]
    np.testing.assert_array_equal(later[0], list(cache.batches(4, 3, 0))[1].pixels)


def test_training_on_features_equals_training_with_the_base(tmp_path):
    ours, theirs = toy_trainings.normalized(), toy_trainings.normalized()
    data = toy_trainings.images(32)
    base, head = split_network(ours)
    freeze(theirs, Phase("head", "head", 1, 0.1))
    cache = cache_features(base, batches_of(*data, 8), tmp_path)
    steps = [
        Step(toy_trainings.ColourLearner(model), network, keras.optimizers.Adam(0.01))
        for model, network in ((ours, head), (theirs, theirs))
    ]
    (features,), (batch,) = cache.batches(32, 0, 0), batches_of(*data, 32)
    for _ in range(4):
        steps[0]([features])
        steps[1]([batch])

    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_run_on_features_trains_the_head_only(tmp_path):
    model = toy_trainings.normalized()
    base, head = split_network(model)
    before = base.get_weights()
    cache = cache_features(base, batches_of(*toy_trainings.images(48), 16), tmp_path / "train")
    data = toy_trainings.images(24, seed=5)
    rows = Trainer(
        toy_trainings.ColourLearner(model),
        Plan((Phase("head", "head", 6, 0.05),), 3, 16, Optimization("adam")),
        WorkerData(
            lambda epoch, first: pytest.fail("the images are not read"),
            Features(head, lambda epoch, first: cache.batches(16, 0, epoch, first)),
            lambda: [(data[0], toy_trainings.examples_of(*data))],
        ),
        tmp_path / "checkpoints",
    ).run()
    predicted = np.asarray(model(data[0].astype(np.float32))).argmax(-1)

    assert rows[-1]["loss"] < rows[0]["loss"]
    assert max(row["accuracy"] for row in rows) == pytest.approx(np.mean(predicted == data[1]))
    for after, weight in zip(base.get_weights(), before, strict=True):
        np.testing.assert_array_equal(after, weight)


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cvbatch.train.feature_cache._Writer.add", full)
    with pytest.raises(TrainingError, match=r"features cannot be written .*No space left"):
        cache_features(
            split_network(toy_trainings.plain()).base,
            batches_of(*toy_trainings.images(4), 4),
            tmp_path,
        )
