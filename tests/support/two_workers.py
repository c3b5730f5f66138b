"""One of two training workers: `python -m tests.support.two_workers FOLDER`; TF_CONFIG says which.

Every case is a meeting of both; what each found is left in FOLDER/worker-N.npz. Without TF_CONFIG
it is one worker of two devices.
"""

import contextlib
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from cvbatch.core.errors import TrainingError
from cvbatch.train.collectives import Replicas
from cvbatch.train.optimizers import Optimization
from cvbatch.train.phases import Phase, moving_statistics, phases_of
from cvbatch.train.step import Step
from cvbatch.train.trainer import Plan, Trainer
from tests.support import toy_trainings

STEPS, SIZE = 20, 8
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
}
# name → network, optimizer, options of the step, micro-batches of a step on each worker
CASES = {
    "plain-sgd": (lambda: toy_trainings.plain(regularizer="l2"), "sgd", {}, 1),
    "plain-adam": (toy_trainings.plain, "adam", {}, 1),
    "frozen-sgd": (lambda: toy_trainings.normalized(is_frozen=True), "sgd", {}, 1),
    "frozen-adam": (lambda: toy_trainings.normalized(is_frozen=True), "adam", {}, 1),
    "clipped-sgd": (toy_trainings.plain, "sgd", {"clip_norm": 0.05}, 1),
    "accumulated-adam": (lambda: toy_trainings.plain(regularizer="l2"), "adam", {}, 2),
}
RAGGED = (8, 3)  # real rows of each worker
TRAINING = Plan(
    (Phase("head", "head", 1, 0.02), Phase("all", "all", 2, 0.01)),
    steps_per_epoch=5,
    batch_size=SIZE,
    optimization=Optimization("adam", clip_norm=1.0),
    checkpoint_steps=7,
)
TRAINING_IMAGES = 70  # of 5 × 2 × 8: the last step has 6 images, all on the first worker


def rows_of_step(step, worker, workers, per_worker):
    """The slice of a step's images that a worker has."""
    pixels, colour = toy_trainings.images(per_worker * workers, seed=step)
    mine = slice(worker * per_worker, (worker + 1) * per_worker)
    return pixels[mine], colour[mine]


def take_steps(case, replicas, per_worker):
    build, optimizer, options, micro = CASES[case]
    with replicas.strategy.scope():
        model, moves = build(), OPTIMIZERS[optimizer]()
    step = Step(toy_trainings.ColourLearner(model), model, moves, replicas, **options)
    losses = []
    for number in range(STEPS):
        rows = rows_of_step(number, replicas.worker, replicas.num_workers, per_worker)
        parts = [np.split(values, micro) for values in rows]
        losses.append(
            step([toy_trainings.batch_of(*part) for part in zip(*parts, strict=True)]).loss
        )
    return {**weights_of(case, model), f"{case}/loss": np.array(losses)}


def weights_of(case, model):
    return {f"{case}/{i:02d}": weight for i, weight in enumerate(model.get_weights())}


def ragged(replicas):
    with replicas.strategy.scope():
        model, moves = toy_trainings.plain(), OPTIMIZERS["sgd"]()
    step = Step(toy_trainings.ColourLearner(model), model, moves, replicas)
    pixels, colour = rows_of_step(0, replicas.worker, 2, SIZE)
    outcome = step([toy_trainings.batch_of(pixels, colour, RAGGED[replicas.worker])])
    return {**weights_of("ragged", model), "ragged/images": np.array(outcome.num_images)}


def statistics(replicas):
    """Batch normalisation that learns: each worker's statistics, then their mean."""
    with replicas.strategy.scope():
        model, moves = toy_trainings.normalized(), OPTIMIZERS["sgd"]()
    step = Step(toy_trainings.ColourLearner(model), model, moves, replicas)
    step([toy_trainings.batch_of(*rows_of_step(0, replicas.worker, 2, SIZE))])
    moving = moving_statistics(model)
    own = {f"statistics/own{i}": v.numpy() for i, v in enumerate(moving)}
    replicas.average(moving)
    return own | {f"statistics/mean{i}": v.numpy() for i, v in enumerate(moving)}


def not_a_number(replicas):
    """One worker's loss is not a number; neither worker may move its weights."""
    with replicas.strategy.scope():
        model, moves = toy_trainings.plain(), OPTIMIZERS["adam"]()
    before = model.get_weights()
    step = Step(toy_trainings.ColourLearner(model), model, moves, replicas)
    batch = toy_trainings.batch_of(*rows_of_step(0, replicas.worker, 2, SIZE))
    if replicas.worker == 1:
        batch.targets["importance"][2] = np.nan
    said = ""
    try:
        step([batch])
    except TrainingError as error:
        said = str(error)
    same = all(np.array_equal(*two) for two in zip(before, model.get_weights(), strict=True))
    return {"nan/said": np.array(said), "nan/same": np.array(same)}


def seeds(replicas):
    """Each worker drops its own units."""
    with replicas.strategy.scope():
        model = toy_trainings.normalized(dropout=0.5)
    states = [v for v in model.variables if all(v is not w for w in model.weights)]
    replicas.broadcast(states)
    replicas.offset_seeds(states)
    return {f"seeds/{i}": state.numpy() for i, state in enumerate(states)}


class StoppedError(Exception):
    """The run is killed here."""


def training(replicas, folder):
    """A run that is killed inside its second epoch and goes on with networks it never saw."""
    made = toy_trainings.images(TRAINING_IMAGES, seed=1)
    pixels, colour = (values[replicas.worker :: 2] for values in toy_trainings.images(31, seed=2))

    def listener(event):
        if event.row is None:
            raise StoppedError

    def trainer(seed, **options):
        with replicas.strategy.scope():
            model = toy_trainings.normalized(seed)
        return Trainer(
            toy_trainings.ColourLearner(model),
            TRAINING,
            toy_trainings.batches_of(*made, SIZE, replicas.worker, 2),
            folder / f"checkpoints-{replicas.worker}",
            validation=lambda: [(pixels, toy_trainings.examples_of(pixels, colour))],
            replicas=replicas,
            **options,
        )

    with contextlib.suppress(StoppedError):
        trainer(0, listener=listener).run()
    again = trainer(50 + replicas.worker)
    rows = again.run()
    told = {f"training/{key}": np.array([row[key] for row in rows]) for key in rows[0]}
    return {**weights_of("training", again._learner.model), **told}


def normalizing(replicas, folder):
    """The moving statistics on each worker as each checkpoint is heard of."""
    with replicas.strategy.scope():
        model = toy_trainings.normalized()
    moving, heard = moving_statistics(model), []
    Trainer(
        toy_trainings.ColourLearner(model),
        Plan(phases_of("scratch", 1, 0.01), 3, SIZE, checkpoint_steps=2),
        toy_trainings.batches_of(*toy_trainings.images(48), SIZE, replicas.worker, 2),
        folder / f"normalizing-{replicas.worker}",
        replicas=replicas,
        listener=lambda event: heard.append([variable.numpy() for variable in moving]),
    ).run()
    return {f"normalizing/{i}": np.concatenate(values) for i, values in enumerate(heard)}


def two_devices(folder):
    """One worker that holds two copies of the network, and takes both shares of a batch."""
    cpu = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [cpu] * 2)
    replicas = Replicas(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    found = {"workers": np.array([replicas.worker, replicas.num_workers, replicas.num_local])}
    for case in ("plain-sgd", "accumulated-adam"):
        found |= take_steps(case, replicas, 2 * SIZE)
    for case in (statistics, seeds):
        found |= case(replicas)
    np.savez(folder / "devices.npz", **found)


def main(folder):
    if "TF_CONFIG" not in os.environ:
        two_devices(folder)
        return
    replicas = Replicas(tf.distribute.MultiWorkerMirroredStrategy())
    found = {"workers": np.array([replicas.worker, replicas.num_workers, replicas.num_local])}
    told = replicas.all_gather(b"x" * (1 + 4 * replicas.worker))
    found["gathered"] = np.array([payload.decode() for payload in told])
    for case in CASES:
        found |= take_steps(case, replicas, SIZE)
    for case in (ragged, statistics, not_a_number, seeds):
        found |= case(replicas)
    found |= training(replicas, folder)
    found |= normalizing(replicas, folder)
    np.savez(folder / f"worker-{replicas.worker}.npz", **found)
    replicas.all_gather(b"")  # the first to leave would break the other's last meeting


if __name__ == "__main__":
    main(Path(sys.argv[1]))
