"""A run is what its plan says, wherever it was stopped in between."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest

from cvbatch.core.errors import TrainingError
from cvbatch.core.types import TrainingExample
from cvbatch.models import detectors, segmenters
from cvbatch.train.batches import Batch
from cvbatch.train.learners.base import LEARNERS
from cvbatch.train.optimizers import Optimization
from cvbatch.train.phases import Phase, phases_of
from cvbatch.train.trainer import Plan, Trainer
from tests.support import toy_trainings

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SIZE = 8
IMAGES = toy_trainings.images(44, seed=1)  # the sixth micro-batch of an epoch has 4 images
JUDGED = toy_trainings.images(20, seed=2)
PLAN = Plan(
    (Phase("head", "head", 1, 0.02), Phase("all", "all", 2, 0.01, freezes_normalization=False)),
    steps_per_epoch=3,
    batch_size=SIZE,
    optimization=Optimization("adam", warmup=0.2, clip_norm=1.0, accumulate=2),
    checkpoint_steps=2,
)


class StoppedError(Exception):
    """The run is killed here."""


def validation():
    pixels, colour = JUDGED
    for rows in (slice(0, 16), slice(16, None)):
        yield pixels[rows], toy_trainings.examples_of(pixels[rows], colour[rows])


def trainer(folder, plan=PLAN, model=None, learner=None, **options):
    model = model or toy_trainings.normalized(dropout=0.3)
    options = {"validation": validation, **options}
    learner = learner or toy_trainings.ColourLearner(model)
    feed = options.pop("feed", toy_trainings.feed_of(*IMAGES, plan.batch_size))
    return Trainer(learner, plan, feed, folder, **options)


def weights(run):
    return [variable.numpy() for variable in run._variables]


def without_times(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed: its trainer, rows and events."""
    events = []
    run = trainer(tmp_path_factory.mktemp("whole"), listener=events.append)
    return run, run.run(), events


def test_a_plan_of_no_epoch_changes_nothing(tmp_path):
    run = trainer(tmp_path, replace(PLAN, phases=(replace(PLAN.phases[0], epochs=0),)))
    before = weights(run)

    assert run.run() == []
    for one, other in zip(before, weights(run), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not list(tmp_path.iterdir())


def test_the_history_has_a_row_an_epoch(whole):
    _, rows, _ = whole

    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [3, 6, 9]
    assert [row["phase"] for row in rows] == ["head", "all", "all"]
    for row in rows:
        parts = 0.8 * row["loss_cross_entropy"] + 0.2 * row["loss_square"]
        assert row["loss"] == pytest.approx(parts, abs=1e-5)
        assert 0 <= row["waited_seconds"] < row["seconds"]
        assert 0 < row["learning_rate"] <= 0.02
        assert {"accuracy", "mean_iou"} <= set(row)
    json.dumps(rows)


def test_a_listener_hears_every_checkpoint_and_every_row(whole):
    run, rows, events = whole

    assert [event.row for event in events if event.row] == rows
    assert [int(event.checkpoint.name[-2:]) for event in events] == [2, 3, 4, 6, 8, 9]
    assert run._checkpoints.latest() == events[-1].checkpoint


def test_the_best_weights_are_what_is_left(whole):
    run, rows, _ = whole
    pixels, colour = JUDGED
    said = np.asarray(run._learner.model(pixels.astype(np.float32))).argmax(-1)

    assert run.progress.best_value == max(row["accuracy"] for row in rows)
    assert np.mean(said == colour) == pytest.approx(run.progress.best_value)


def killer(at):
    """A listener that ends the run as it hears of checkpoint number `at`."""
    heard = []

    def listener(event):
        heard.append(event)
        if len(heard) == at:
            raise StoppedError

    return listener


@pytest.mark.parametrize("stop", [1, 2, 4, 6])
def test_stopped_anywhere_and_gone_on_it_ends_the_same(stop, whole, tmp_path):
    """1: inside an epoch; 2: between two phases; 4: between epochs; 6: behind the last."""
    uninterrupted, rows, _ = whole
    with pytest.raises(StoppedError):
        trainer(tmp_path, listener=killer(stop)).run()
    again = trainer(tmp_path, model=toy_trainings.normalized(seed=99, dropout=0.3))
    got = again.run()

    for one, other in zip(weights(uninterrupted), weights(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert without_times(got) == [pytest.approx(row, abs=1e-6) for row in without_times(rows)]
    assert again.progress.step == uninterrupted.progress.step


def test_a_run_goes_on_from_a_checkpoint_that_lies_elsewhere(whole, tmp_path):
    uninterrupted, _, _ = whole
    with pytest.raises(StoppedError):
        trainer(tmp_path / "lost", listener=killer(3)).run()
    (tmp_path / "lost" / "step-00000004").rename(tmp_path / "brought")
    again = trainer(tmp_path / "new", resume=tmp_path / "brought")
    again.run()

    for one, other in zip(weights(uninterrupted), weights(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_the_same_images_a_step_in_other_shares_are_the_same_plan(tmp_path):
    with pytest.raises(StoppedError):
        trainer(tmp_path, listener=killer(2)).run()
    how = replace(PLAN.optimization, accumulate=1)
    rows = trainer(tmp_path, replace(PLAN, batch_size=2 * SIZE, optimization=how)).run()
    assert len(rows) == 3

    with pytest.raises(TrainingError, match="images_per_step 16, now it is 8"):
        trainer(tmp_path, replace(PLAN, optimization=how)).run()


# ------------------------------------------------------------ when it ends


class Scripted(toy_trainings.ColourLearner):
    """Says of each epoch what a script says."""

    def __init__(self, model, values):
        super().__init__(model)
        self.values = iter(values)

    def summarize(self, partial):
        return {"accuracy": float(next(self.values))}


def test_a_phase_ends_when_patience_does_and_the_next_begins_with_the_best(tmp_path):
    model = toy_trainings.plain()
    plan = replace(
        PLAN,
        phases=(Phase("head", "head", 9, 0.02), Phase("all", "all", 9, 0.0)),
        optimization=Optimization("sgd", weight_decay=0.0),
        checkpoint_steps=None,
        patience=2,
    )
    values = [0.5, 0.7, 0.7, np.nan, 0.1, 0.2]  # best at 2; then at a rate of 0
    heard = []

    def listener(event):
        heard.append([weight.copy() for weight in model.get_weights()])

    learner = Scripted(model, values)
    rows = trainer(tmp_path, plan, model, learner, listener=listener).run()

    assert [row["phase"] for row in rows] == ["head"] * 4 + ["all"] * 2
    assert np.isnan(rows[3]["accuracy"])
    for after in (heard[4], heard[5], model.get_weights()):
        for one, other in zip(heard[1], after, strict=True):
            np.testing.assert_array_equal(one, other)
    assert any(not np.array_equal(a, b) for a, b in zip(heard[1], heard[3], strict=True))


def test_without_validation_the_lowest_loss_is_the_best(tmp_path):
    run = trainer(tmp_path, validation=None)
    rows = run.run()
    losses = [row["loss"] for row in rows]

    assert run.progress.best_epoch == 1 + int(np.argmin(losses))
    assert "accuracy" not in rows[0]


def test_an_undefined_metric_is_surpassed_by_any(tmp_path):
    model = toy_trainings.plain()
    run = trainer(tmp_path, model=model, learner=Scripted(model, [np.nan, 0.0, np.nan]))
    run.run()

    assert (run.progress.best_epoch, run.progress.best_value) == (2, 0.0)


# ------------------------------------------------------------ recipes


@pytest.mark.parametrize("recipe", ["scratch", "frozen", "finetune"])
def test_a_recipe_moves_what_it_says_and_nothing_else(recipe, tmp_path):
    model = toy_trainings.normalized()
    before = {layer.name: layer.get_weights() for layer in model.layers}
    phases = phases_of(recipe, 1, 0.05, head_epochs=1, base_rate=0.01, unfreeze="all")
    plan = replace(PLAN, phases=phases, checkpoint_steps=None)
    learner = Scripted(model, [0.1, 0.2])  # so that the last weights are the best
    trainer(tmp_path, plan, model, learner).run()
    moving = {
        "scratch": {"first", "norm1", "second", "norm2", "scores"},
        "frozen": {"scores"},
        "finetune": {"first", "second", "scores"},
    }[recipe]

    for layer in model.layers:
        for old, new in zip(before[layer.name], layer.get_weights(), strict=True):
            assert np.array_equal(old, new) == (layer.name not in moving), layer.name


def examples_with_boxes(count, side):
    """Dark images with one bright square each; its class is 1, as is that of its pixels."""
    rng = np.random.default_rng(4)
    made = []
    for number in range(count):
        top, left = rng.integers(0, side // 2, 2)
        pixels = np.full((side, side, 3), 20, np.uint8)
        mask = np.zeros((side, side), np.uint8)
        rows, columns = slice(top, top + side // 2), slice(left, left + side // 2)
        pixels[rows, columns], mask[rows, columns] = 220, 1
        box = np.array([[left, top, left + side // 2, top + side // 2]], np.float32)
        one = np.array([1], np.int32)
        made.append(TrainingExample(pixels, one, box, one, mask, str(number)))
    return made


@pytest.mark.parametrize(
    ("task", "build"),
    [
        ("classification", toy_trainings.plain),
        ("segmentation", lambda: segmenters.encoder_decoder(3, (16, 16), width=4)),
        ("localization", lambda: detectors.localizer(3, (32, 32))),
        ("detection", lambda: detectors.yolo(3, (32, 32), width=2)),
    ],
)
def test_every_task_is_taught(task, build, tmp_path):
    model = build()
    learner = LEARNERS[task].build(model, 3)
    examples = examples_with_boxes(8, model.input_shape[1])
    pixels = np.stack([example.pixels for example in examples])
    batch = Batch(pixels, learner.targets(examples), len(examples))
    plan = Plan(phases_of("finetune", 1, 0.005, head_epochs=1, unfreeze="all"), 6, 8)
    run = Trainer(
        learner,
        plan,
        lambda epoch, first: iter([batch] * (6 - first)),
        tmp_path,
        validation=lambda: [(pixels, examples)],
    )
    rows = run.run()

    assert rows[-1]["loss"] < rows[0]["loss"]
    assert run.progress.best_value == max(row[learner.metric] for row in rows)


def test_scratch_learns_the_colours(tmp_path):
    plan = Plan(phases_of("scratch", 10, 0.01), 12, 16, Optimization("adam"))
    made = toy_trainings.images(192, seed=3)
    feed = toy_trainings.feed_of(*made, 16)
    rows = trainer(tmp_path, plan, toy_trainings.plain(), feed=feed).run()

    assert max(row["accuracy"] for row in rows) > 0.9


# ------------------------------------------------------------ what goes wrong


def test_a_loss_that_is_no_number_names_the_step_and_keeps_the_last_checkpoint(tmp_path):
    good = toy_trainings.feed_of(*IMAGES, SIZE)

    def feed(epoch, first):
        for number, batch in enumerate(good(epoch, first), start=first):
            if (epoch, number) == (1, 3):
                batch.targets["importance"][:] = np.nan
            yield batch

    run = trainer(tmp_path, feed=feed)
    with pytest.raises(TrainingError, match=r"step 5, epoch 2: the loss is nan .*no weight was"):
        run.run()
    assert run._checkpoints.latest().name == "step-00000004"
    assert all(np.isfinite(values).all() for values in weights(run))


def test_images_that_end_before_the_epoch_say_so(tmp_path):
    with pytest.raises(TrainingError, match="step 4, epoch 1: the images of the epoch are used up"):
        trainer(tmp_path, replace(PLAN, steps_per_epoch=5)).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feed": lambda epoch, first: iter(())}, "no image to train on"),
        ({"validation": list}, "no image to validate on"),
    ],
)
def test_no_images_at_all_are_one_sentence(options, message, tmp_path):
    with pytest.raises(TrainingError, match=message):
        trainer(tmp_path, **options).run()


def test_a_metric_that_nobody_measures_is_named(tmp_path):
    learner = toy_trainings.ColourLearner(toy_trainings.plain())
    learner.metric = "ap50"
    with pytest.raises(TrainingError, match=r"'ap50'.*they are accuracy, mean_iou"):
        trainer(tmp_path, learner=learner).run()


def test_the_trained_file_says_what_the_network_says(whole, tmp_path):
    model = whole[0]._learner.model
    model.save(tmp_path / "model.keras")
    pixels = JUDGED[0].astype(np.float32)
    loaded = keras.models.load_model(tmp_path / "model.keras")

    np.testing.assert_allclose(np.asarray(loaded(pixels)), np.asarray(model(pixels)), atol=1e-6)
