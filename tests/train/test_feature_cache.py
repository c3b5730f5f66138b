"""A head taught on spooled features is the head taught behind its frozen base."""

import errno

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.core.errors import ModelError, TrainingError
from cvbatch.models.detectors import localizer, training_view
from cvbatch.train.feature_cache import split_network, cache_features
from cvbatch.train.optimizers import Optimization
from cvbatch.train.phases import Phase, freeze
from cvbatch.train.step import Step
from cvbatch.train.trainer import Plan, Trainer
from tests.support import networks, toy_trainings

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def batches_of(pixels, colour, size):
    for start in range(0, len(colour), size):
        rows = slice(start, start + size)
        yield toy_trainings.batch_of(pixels[rows], colour[rows])


def test_no_image_is_no_data_set(tmp_path):
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
def test_head_of_base_is_the_network(build):
    model = build()
    size = model.input_shape[1:3]
    pixels = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype(np.float32)
    base, head = split_network(model)
    whole, joined = model(pixels), head(base(pixels))

    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, joined
    )
    assert {id(w) for w in (*base.weights, *head.weights)} == {id(w) for w in model.weights}


def test_a_head_that_reads_more_than_one_map_is_refused():
    inputs = keras.Input((8, 8, 3))
    early = layers.Conv2D(4, 3)(inputs)
    late = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(early))
    side = layers.Dense(2)(layers.GlobalAveragePooling2D()(early))
    model = keras.Model(inputs, {"scores": layers.Dense(2)(late), "side": side})
    with pytest.raises(ModelError, match="take the recipe frozen"):
        split_network(model)


def test_a_spool_holds_every_image_once_in_any_order(tmp_path):
    made = toy_trainings.images(11)
    base, _ = split_network(toy_trainings.plain())
    padding = toy_trainings.batch_of(*toy_trainings.images(4, seed=9), num_real=0)
    spooled = cache_features(base, [*batches_of(*made, 4), padding], tmp_path / "features")
    expected = np.asarray(base(made[0].astype(np.float32)))
    in_order = list(spooled.in_order(5))

    assert len(spooled) == 11
    assert [batch.num_real for batch in in_order] == [5, 5, 1]
    np.testing.assert_allclose(np.concatenate([b.pixels for b in in_order]), expected, atol=1e-6)
    orders = []
    for epoch in (0, 0, 1):
        colours = np.concatenate([b.targets["colour"] for b in spooled.batches(4, 3, epoch)])
        sums = np.concatenate([b.pixels.sum(axis=(1, 2, 3)) for b in spooled.batches(4, 3, epoch)])
        assert sorted(colours.tolist()) == sorted(made[1].tolist())
        np.testing.assert_allclose(np.sort(sums), np.sort(expected.sum(axis=(1, 2, 3))), rtol=1e-5)
        orders.append(sums.tolist())
    assert orders[0] == orders[1] != orders[2]
    later = [batch.pixels for batch in spooled.batches(4, 3, 0, first=1)]
    np.testing.assert_array_equal(later[0], list(spooled.batches(4, 3, 0))[1].pixels)


def test_a_head_learns_on_features_what_it_learns_behind_its_base(tmp_path):
    ours, theirs = toy_trainings.normalized(), toy_trainings.normalized()
    made = toy_trainings.images(32)
    base, head = split_network(ours)
    freeze(theirs, Phase("head", "head", 1, 0.1))
    spooled = cache_features(base, batches_of(*made, 8), tmp_path)
    steps = [
        Step(toy_trainings.ColourLearner(model), network, keras.optimizers.Adam(0.01))
        for model, network in ((ours, head), (theirs, theirs))
    ]
    for features, batch in zip(spooled.in_order(8), batches_of(*made, 8), strict=True):
        steps[0]([features])
        steps[1]([batch])

    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_whole_training_on_features(tmp_path):
    model = toy_trainings.normalized()
    base, head = split_network(model)
    before = base.get_weights()
    spooled = cache_features(base, batches_of(*toy_trainings.images(48), 16), tmp_path / "train")
    made = toy_trainings.images(24, seed=5)
    judged = cache_features(base, batches_of(*made, 16), tmp_path / "validation")
    examples = toy_trainings.examples_of(*made)

    def validation():
        start = 0
        for batch in judged.in_order(16):
            yield batch.pixels, examples[start : start + batch.num_real]
            start += batch.num_real

    rows = Trainer(
        toy_trainings.ColourLearner(model),
        Plan((Phase("head", "head", 6, 0.05),), 3, 16, Optimization("adam")),
        lambda epoch, first: spooled.batches(16, 0, epoch, first),
        tmp_path / "checkpoints",
        validation=validation,
        network=head,
        judged=head,
    ).run()
    said = np.asarray(model(made[0].astype(np.float32))).argmax(-1)

    assert rows[-1]["loss"] < rows[0]["loss"]
    assert max(row["accuracy"] for row in rows) == pytest.approx(np.mean(said == made[1]))
    for one, other in zip(base.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cvbatch.train.feature_cache._Writer.add", full)
    with pytest.raises(TrainingError, match=r"features cannot be written .*No space left"):
        cache_features(split_network(toy_trainings.plain()).base, batches_of(*toy_trainings.images(4), 4), tmp_path)
