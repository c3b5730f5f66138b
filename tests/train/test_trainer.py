"""The training loop follows its plan, also if a run is stopped and resumed anywhere."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest

from cvbatch.config.train import PlateauConfig, TrainingConfig
from cvbatch.core.errors import TrainingError
from cvbatch.core.types import TrainingExample
from cvbatch.models import detectors, segmenters
from cvbatch.train.batches import Batch
from cvbatch.train.collectives import Replicas
from cvbatch.train.history import validation_values
from cvbatch.train.learners.base import LEARNERS
from cvbatch.train.optimizers import Optimization
from cvbatch.train.phases import Phase, phases_of
from cvbatch.train.trainer import Plan, Trainer, WorkerData
from cvbatch.train.validation import Validator
from tests.support import toy_trainings
from tests.support.toy_trainings import StoppedError, stop_at

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SIZE = 8
IMAGES = toy_trainings.images(44, seed=1)  # the sixth micro-batch of an epoch has 4 images
VALIDATION = toy_trainings.images(20, seed=2)
PLAN = Plan(
    (Phase("head", "head", 1, 0.02), Phase("all", "all", 2, 0.01, freezes_normalization=False)),
    steps_per_epoch=3,
    batch_size=SIZE,
    optimization=Optimization("adam", warmup=0.2, clip_norm=1.0, accumulate=2),
    checkpoint_steps=2,
)


def validation():
    pixels, colour = VALIDATION
    for rows in (slice(0, 16), slice(16, None)):
        yield pixels[rows], toy_trainings.examples_of(pixels[rows], colour[rows])


def trainer(folder, plan=PLAN, model=None, learner=None, **options):
    model = model or toy_trainings.normalized(dropout=0.3)
    learner = learner or toy_trainings.ColourLearner(model)
    batches = options.pop("batches", toy_trainings.batches_of(*IMAGES, plan.batch_size))
    data = WorkerData(batches, validation=options.pop("validation", validation))
    return Trainer(learner, plan, data, folder, **options)


def weights(run):
    return [variable.numpy() for variable in run._variables]


def assert_equal(actual, expected, atol=1e-6):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def without_times(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return an uninterrupted run: its trainer, rows and events."""
    events = []
    run = trainer(tmp_path_factory.mktemp("uninterrupted"), listener=events.append)
    return run, run.run(), events


def test_a_plan_without_epochs_changes_nothing(tmp_path):
    run = trainer(tmp_path, replace(PLAN, phases=(replace(PLAN.phases[0], epochs=0),)))
    before = weights(run)

    assert run.run() == []
    assert_equal(weights(run), before, atol=0)
    assert not list(tmp_path.iterdir())


def test_the_history_has_a_row_per_epoch(uninterrupted):
    _, rows, _ = uninterrupted

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


def test_a_listener_receives_every_checkpoint_and_every_row(uninterrupted):
    run, rows, events = uninterrupted

    assert [event.row for event in events if event.row] == rows
    assert [int(event.checkpoint.name[-2:]) for event in events] == [2, 3, 4, 6, 8, 9]
    assert run._checkpoints.latest() == events[-1].checkpoint


def test_a_run_ends_with_the_best_weights(uninterrupted):
    run, rows, _ = uninterrupted
    pixels, colour = VALIDATION
    predicted = np.asarray(run._learner.model(pixels.astype(np.float32))).argmax(-1)

    assert run.progress.best_value == max(row["accuracy"] for row in rows)
    assert np.mean(predicted == colour) == pytest.approx(run.progress.best_value)
    again = Validator(run._learner, validation, Replicas())()
    values = validation_values(rows[run.progress.best_epoch - 1])
    assert list(values) == list(again)
    assert values == pytest.approx(again, abs=1e-6)


@pytest.mark.parametrize("stop", [1, 2, 4, 6])
def test_a_resumed_run_ends_as_an_uninterrupted_one(stop, uninterrupted, tmp_path):
    """1: inside an epoch; 2: between two phases; 4: between epochs; 6: after the last."""
    expected, rows, _ = uninterrupted
    with pytest.raises(StoppedError):
        trainer(tmp_path, listener=stop_at(stop)).run()
    resumed = trainer(tmp_path, model=toy_trainings.normalized(seed=99, dropout=0.3))
    resumed_rows = resumed.run()

    assert_equal(weights(resumed), weights(expected))
    expected_rows = [pytest.approx(row, abs=1e-6) for row in without_times(rows)]
    assert without_times(resumed_rows) == expected_rows
    assert resumed.progress.step == expected.progress.step


def test_a_run_resumes_from_a_checkpoint_in_another_folder(uninterrupted, tmp_path):
    expected, _, _ = uninterrupted
    with pytest.raises(StoppedError):
        trainer(tmp_path / "lost", listener=stop_at(3)).run()
    (tmp_path / "lost" / "step-00000004").rename(tmp_path / "copied")
    resumed = trainer(tmp_path / "new")
    resumed.run(resume=tmp_path / "copied")

    assert_equal(weights(resumed), weights(expected))


def test_a_run_resumes_with_another_split_of_the_same_batch(tmp_path):
    with pytest.raises(StoppedError):
        trainer(tmp_path, listener=stop_at(2)).run()
    optimization = replace(PLAN.optimization, accumulate=1)
    rows = trainer(tmp_path, replace(PLAN, batch_size=2 * SIZE, optimization=optimization)).run()
    assert len(rows) == 3

    with pytest.raises(TrainingError, match="images_per_step 16, but it is now 8"):
        trainer(tmp_path, replace(PLAN, optimization=optimization)).run()


# --- early stopping and the best epoch


class Scripted(toy_trainings.ColourLearner):
    """Reports the given accuracy of each epoch."""

    def __init__(self, model, values):
        super().__init__(model)
        self.values = iter(values)

    def summarize(self, partial):
        return {"accuracy": float(next(self.values))}


def test_a_phase_ends_without_improvement_and_the_next_starts_with_the_best(tmp_path):
    model = toy_trainings.plain()
    plan = replace(
        PLAN,
        phases=(Phase("head", "head", 9, 0.02), Phase("all", "all", 9, 0.0)),
        optimization=Optimization("sgd", weight_decay=0.0),
        checkpoint_steps=None,
        patience=2,
    )
    values = [0.5, 0.7, 0.7, np.nan, 0.1, 0.2]  # best at 3, no improvement; then at a rate of 0
    received = []

    def listener(event):
        received.append([weight.copy() for weight in model.get_weights()])

    learner = Scripted(model, values)
    rows = trainer(tmp_path, plan, model, learner, listener=listener).run()

    assert [row["phase"] for row in rows] == ["head"] * 4 + ["all"] * 2
    assert np.isnan(rows[3]["accuracy"])
    for after in (received[4], received[5], model.get_weights()):
        assert_equal(after, received[2], atol=0)
    assert any(not np.array_equal(a, b) for a, b in zip(received[2], received[3], strict=True))


PLATEAU = Plan(
    (Phase("head", "head", 3, 0.02), Phase("all", "all", 4, 0.01)),
    steps_per_epoch=2,
    batch_size=SIZE,
    optimization=Optimization(
        "sgd", "plateau", PlateauConfig(patience=1, factor=0.5), warmup=0.0, weight_decay=0.0
    ),
    checkpoint_steps=1,
)
ACCURACIES = [0.5, 0.4, 0.6, 0.6, 0.5, 0.9, 0.1]


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    """Return the network and the rows of an uninterrupted run whose learning rate falls."""
    model = toy_trainings.plain()
    learner = Scripted(model, ACCURACIES)
    return model, trainer(tmp_path_factory.mktemp("plateau"), PLATEAU, model, learner).run()


def test_the_rate_falls_after_epochs_without_improvement_and_each_phase_begins_anew(reduced):
    _, rows = reduced
    expected = [0.02, 0.02, 0.01, 0.01, 0.01, 0.005, 0.005]
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected)


@pytest.mark.parametrize("stop", [4, 11])
def test_a_run_that_was_stopped_has_the_reduced_rate(stop, reduced, tmp_path):
    """4: when the rate falls at the end of an epoch; 11: inside an epoch of the second phase."""
    whole, rows = reduced
    model, resumed = toy_trainings.plain(), toy_trainings.plain(seed=9)
    learner = Scripted(model, ACCURACIES)
    with pytest.raises(StoppedError):
        trainer(tmp_path, PLATEAU, model, learner, listener=stop_at(stop)).run()
    again = Scripted(resumed, ACCURACIES[stop // 2 :])
    resumed_rows = trainer(tmp_path, PLATEAU, resumed, again).run()
    assert without_times(resumed_rows) == without_times(rows)
    assert_equal(resumed.get_weights(), whole.get_weights(), atol=0)


def test_without_validation_the_lowest_loss_is_the_best(tmp_path):
    run = trainer(tmp_path, validation=None)
    rows = run.run()
    losses = [row["loss"] for row in rows]

    assert run.progress.best_epoch == 1 + int(np.argmin(losses))
    assert "accuracy" not in rows[0]


def test_any_metric_is_better_than_nan(tmp_path):
    model = toy_trainings.plain()
    run = trainer(tmp_path, model=model, learner=Scripted(model, [np.nan, 0.0, np.nan]))
    run.run()

    assert (run.progress.best_epoch, run.progress.best_value) == (2, 0.0)


# --- recipes and tasks


@pytest.mark.parametrize("recipe", ["scratch", "frozen", "finetune"])
def test_a_recipe_trains_its_layers_and_no_others(recipe, tmp_path):
    model = toy_trainings.normalized()
    before = {layer.name: layer.get_weights() for layer in model.layers}
    training = TrainingConfig(
        recipe=recipe, epochs=1, head_epochs=1, unfreeze="all",
        learning_rate=0.05, base_learning_rate=0.01,
    )  # fmt: skip
    plan = replace(PLAN, phases=phases_of(training, model), checkpoint_steps=None)
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
    """Return dark images with one bright square of class 1 each."""
    rng = np.random.default_rng(4)
    examples = []
    for number in range(count):
        top, left = rng.integers(0, side // 2, 2)
        pixels = np.full((side, side, 3), 20, np.uint8)
        mask = np.zeros((side, side), np.uint8)
        rows, columns = slice(top, top + side // 2), slice(left, left + side // 2)
        pixels[rows, columns], mask[rows, columns] = 220, 1
        box = np.array([[left, top, left + side // 2, top + side // 2]], np.float32)
        class_id = np.array([1], np.int32)
        examples.append(TrainingExample(pixels, class_id, box, class_id, mask, str(number)))
    return examples


@pytest.mark.parametrize(
    ("task", "build"),
    [
        ("classification", toy_trainings.plain),
        ("segmentation", lambda: segmenters.encoder_decoder(3, (16, 16), width=4)),
        ("localization", lambda: detectors.localizer(3, (32, 32))),
        ("detection", lambda: detectors.yolo(3, (32, 32), width=2)),
    ],
)
def test_every_task_trains(task, build, tmp_path):
    model = build()
    learner = LEARNERS[task].build(model, 3)
    examples = examples_with_boxes(8, model.input_shape[1])
    pixels = np.stack([example.pixels for example in examples])
    batch = Batch(pixels, learner.targets(examples), len(examples))
    plan = Plan((Phase("head", "head", 1, 0.005), Phase("all", "all", 1, 5e-4)), 6, 8)
    images = lambda epoch, first: iter([batch] * (6 - first))  # noqa: E731
    data = WorkerData(images, validation=lambda: [(pixels, examples)])
    run = Trainer(learner, plan, data, tmp_path)
    rows = run.run()

    assert rows[-1]["loss"] < rows[0]["loss"]
    assert run.progress.best_value == max(row[learner.metric] for row in rows)


def test_training_from_scratch_classifies_the_colours(tmp_path):
    phase = Phase("all", "all", 10, 0.01, freezes_normalization=False)
    plan = Plan((phase,), 12, 16, Optimization("adam"))
    batches = toy_trainings.batches_of(*toy_trainings.images(192, seed=3), 16)
    rows = trainer(tmp_path, plan, toy_trainings.plain(), batches=batches).run()

    assert max(row["accuracy"] for row in rows) > 0.9


# --- errors


def test_a_nan_loss_names_the_step_and_keeps_the_last_checkpoint(tmp_path):
    source = toy_trainings.batches_of(*IMAGES, SIZE)

    def batches(epoch, first):
        for number, batch in enumerate(source(epoch, first), start=first):
            if (epoch, number) == (1, 3):
                batch.targets["importance"][:] = np.nan
            yield batch

    run = trainer(tmp_path, batches=batches)
    with pytest.raises(
        TrainingError, match=r"step 5, epoch 2: the loss is nan .*changed no weight"
    ):
        run.run()
    assert run._checkpoints.latest().name == "step-00000004"
    assert all(np.isfinite(values).all() for values in weights(run))


def test_too_few_images_for_an_epoch_are_an_error(tmp_path):
    with pytest.raises(TrainingError, match="step 4, epoch 1: all images of the epoch are used"):
        trainer(tmp_path, replace(PLAN, steps_per_epoch=5)).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": lambda epoch, first: iter(())}, "no image to train on"),
        ({"validation": list}, "no image to validate on"),
    ],
)
def test_no_images_are_an_error(options, message, tmp_path):
    with pytest.raises(TrainingError, match=message):
        trainer(tmp_path, **options).run()


def test_an_unknown_metric_is_refused_with_the_known_ones(tmp_path):
    learner = toy_trainings.ColourLearner(toy_trainings.plain())
    learner.metric = "ap50"
    with pytest.raises(TrainingError, match=r"'ap50'.*use one of accuracy, mean_iou"):
        trainer(tmp_path, learner=learner).run()


def test_a_saved_network_has_the_same_outputs(uninterrupted, tmp_path):
    model = uninterrupted[0]._learner.model
    model.save(tmp_path / "model.keras")
    pixels = VALIDATION[0].astype(np.float32)
    loaded = keras.models.load_model(tmp_path / "model.keras")

    np.testing.assert_allclose(np.asarray(loaded(pixels)), np.asarray(model(pixels)), atol=1e-6)
