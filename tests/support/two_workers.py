"""One of two training workers, selected by TF_CONFIG: `python -m tests.support.two_workers FOLDER`.

Every case uses collectives of both; the outputs of worker N are in FOLDER/worker-N.npz. Without
TF_CONFIG it is one worker with two devices.
"""

import contextlib
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from cvbatch.config.train import PlateauConfig
from cvbatch.core.errors import TrainingError
from cvbatch.train.collectives import Replicas
from cvbatch.train.optimizers import Optimization
from cvbatch.train.phases import Phase, moving_statistics
from cvbatch.train.step import Step
from cvbatch.train.trainer import Plan, Trainer, WorkerData
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
    "weighted-sgd": (toy_trainings.plain, "sgd", {}, 1),
}
LEARNERS = {"weighted-sgd": toy_trainings.WeightedLearner}
RAGGED = (8, 3)  # real rows of each worker
TRAINING = Plan(
    (Phase("head", "head", 1, 0.02), Phase("all", "all", 3, 0.01)),
    steps_per_epoch=5,
    batch_size=SIZE,
    # no epoch improves by 1: the rate falls before the last epoch
    optimization=Optimization(
        "adam",
        schedule="plateau",
        plateau=PlateauConfig(patience=1, factor=0.5, min_delta=1.0),
        clip_norm=1.0,
    ),
    checkpoint_steps=7,
)
TRAINING_IMAGES = 70  # of 5 × 2 × 8: the last step has 6 images, all on the first worker


def rows_of_step(step, worker, workers, per_worker):
    """Return a worker's slice of the images of a step."""
    pixels, colour = toy_trainings.images(per_worker * workers, seed=step)
    shard = slice(worker * per_worker, (worker + 1) * per_worker)
    return pixels[shard], colour[shard]


def take_steps(case, replicas, per_worker):
    build, optimizer_name, options, micro = CASES[case]
    with replicas.strategy.scope():
        model, optimizer = build(), OPTIMIZERS[optimizer_name]()
    learner = LEARNERS.get(case, toy_trainings.ColourLearner)(model)
    step = Step(learner, model, optimizer, replicas, **options)
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
        model, optimizer = toy_trainings.plain(), OPTIMIZERS["sgd"]()
    step = Step(toy_trainings.ColourLearner(model), model, optimizer, replicas)
    pixels, colour = rows_of_step(0, replicas.worker, 2, SIZE)
    outcome = step([toy_trainings.batch_of(pixels, colour, RAGGED[replicas.worker])])
    return {**weights_of("ragged", model), "ragged/images": np.array(outcome.num_images)}


def statistics(replicas):
    """Trainable batch normalisation: the statistics of each worker, then their mean."""
    with replicas.strategy.scope():
        model, optimizer = toy_trainings.normalized(), OPTIMIZERS["sgd"]()
    step = Step(toy_trainings.ColourLearner(model), model, optimizer, replicas)
    step([toy_trainings.batch_of(*rows_of_step(0, replicas.worker, 2, SIZE))])
    moving = moving_statistics(model)
    local = {f"statistics/own{i}": v.numpy() for i, v in enumerate(moving)}
    replicas.average(moving)
    return local | {f"statistics/mean{i}": v.numpy() for i, v in enumerate(moving)}


def not_a_number(replicas):
    """The loss of one worker is NaN; neither worker may change its weights."""
    with replicas.strategy.scope():
        model, optimizer = toy_trainings.plain(), OPTIMIZERS["adam"]()
    before = model.get_weights()
    step = Step(toy_trainings.ColourLearner(model), model, optimizer, replicas)
    batch = toy_trainings.batch_of(*rows_of_step(0, replicas.worker, 2, SIZE))
    if replicas.worker == 1:
        batch.targets["importance"][2] = np.nan
    message = ""
    try:
        step([batch])
    except TrainingError as error:
        message = str(error)
    same = all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))
    return {"nan/message": np.array(message), "nan/same": np.array(same)}


def seeds(replicas):
    """Each worker has other dropout seeds."""
    with replicas.strategy.scope():
        model = toy_trainings.normalized(dropout=0.5)
    states = [v for v in model.variables if all(v is not w for w in model.weights)]
    replicas.broadcast(states)
    replicas.offset_seeds(states)
    return {f"seeds/{i}": state.numpy() for i, state in enumerate(states)}


def training(replicas, folder):
    """A run is stopped inside its second epoch and resumed with other initial weights."""
    data = toy_trainings.images(TRAINING_IMAGES, seed=1)
    pixels, colour = (values[replicas.worker :: 2] for values in toy_trainings.images(31, seed=2))

    def listener(event):
        if event.row is None:
            raise toy_trainings.StoppedError

    def trainer(seed, **options):
        with replicas.strategy.scope():
            model = toy_trainings.normalized(seed)
        return Trainer(
            toy_trainings.ColourLearner(model),
            TRAINING,
            WorkerData(
                toy_trainings.batches_of(*data, SIZE, replicas.worker, 2),
                validation=lambda: [(pixels, toy_trainings.examples_of(pixels, colour))],
            ),
            folder / f"checkpoints-{replicas.worker}",
            replicas=replicas,
            **options,
        )

    with contextlib.suppress(toy_trainings.StoppedError):
        trainer(0, listener=listener).run()
    resumed = trainer(50 + replicas.worker)
    rows = resumed.run()
    history = {f"training/{key}": np.array([row[key] for row in rows]) for key in rows[0]}
    return {**weights_of("training", resumed._learner.model), **history}


def normalizing(replicas, folder):
    """The moving statistics on each worker at each checkpoint event."""
    with replicas.strategy.scope():
        model = toy_trainings.normalized()
    moving, events = moving_statistics(model), []
    Trainer(
        toy_trainings.ColourLearner(model),
        Plan(
            (Phase("all", "all", 1, 0.01, freezes_normalization=False),),
            3,
            SIZE,
            checkpoint_steps=2,
        ),
        WorkerData(toy_trainings.batches_of(*toy_trainings.images(48), SIZE, replicas.worker, 2)),
        folder / f"normalizing-{replicas.worker}",
        replicas=replicas,
        listener=lambda event: events.append([variable.numpy() for variable in moving]),
    ).run()
    at_events = {f"normalizing/{i}": np.concatenate(values) for i, values in enumerate(events)}
    return {**at_events, **weights_of("normalized", model)}


def two_devices(folder):
    """One worker with two replicas of the network, which takes both shards of a batch."""
    cpu = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [cpu] * 2)
    replicas = Replicas(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    outputs = {"workers": np.array([replicas.worker, replicas.num_workers, replicas.num_local])}
    for case in ("plain-sgd", "accumulated-adam"):
        outputs |= take_steps(case, replicas, 2 * SIZE)
    for case in (statistics, seeds):
        outputs |= case(replicas)
    np.savez(folder / "devices.npz", **outputs)


def main(folder):
    if "TF_CONFIG" not in os.environ:
        two_devices(folder)
        return
    replicas = Replicas(tf.distribute.MultiWorkerMirroredStrategy())
    outputs = {"workers": np.array([replicas.worker, replicas.num_workers, replicas.num_local])}
    payloads = replicas.all_gather(b"x" * (1 + 4 * replicas.worker))
    outputs["gathered"] = np.array([payload.decode() for payload in payloads])
    for case in CASES:
        outputs |= take_steps(case, replicas, SIZE)
    for case in (ragged, statistics, not_a_number, seeds):
        outputs |= case(replicas)
    outputs |= training(replicas, folder)
    outputs |= normalizing(replicas, folder)
    np.savez(folder / f"worker-{replicas.worker}.npz", **outputs)
    replicas.all_gather(
        b""
    )  # a barrier: a worker that exits early would break the other's last collective


if __name__ == "__main__":
    main(Path(sys.argv[1]))
