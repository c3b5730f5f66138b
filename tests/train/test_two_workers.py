"""Two workers with batches of 8 train the same weights as one worker with batches of 16."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
TIMEOUT_S = 240
CASES = (
    "plain-sgd", "plain-adam", "frozen-sgd", "frozen-adam", "clipped-sgd", "accumulated-adam",
    "weighted-sgd",
)  # fmt: skip


def start(folder, environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.two_workers", str(folder)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes):
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]


def two_free_ports():
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Return the results of two processes with MultiWorkerMirroredStrategy, and their folder."""
    folder = tmp_path_factory.mktemp("workers")
    cluster = {"worker": [f"127.0.0.1:{port}" for port in two_free_ports()]}
    configs = [{"cluster": cluster, "task": {"type": "worker", "index": i}} for i in range(2)]
    finish([start(folder, {"TF_CONFIG": json.dumps(config)}) for config in configs])
    return [dict(np.load(folder / f"worker-{i}.npz")) for i in range(2)], folder


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """Return the results of one process with a replica on each of two devices."""
    folder = tmp_path_factory.mktemp("devices")
    finish([start(folder, {})])
    return dict(np.load(folder / "devices.npz"))


def weights_of(results, case):
    return [
        results[key] for key in sorted(results) if key.startswith(f"{case}/") and key[-2:].isdigit()
    ]


def assert_equal(actual, expected, atol=1e-5):
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_workers_have_numbers_and_gather_in_order(workers):
    (first, second), _ = workers

    assert first["workers"].tolist() == [0, 2, 1]
    assert second["workers"].tolist() == [1, 2, 1]
    assert first["gathered"].tolist() == second["gathered"].tolist() == ["x", "xxxxx"]


@pytest.mark.parametrize("case", CASES)
def test_two_workers_train_the_weights_of_one(case, workers):
    from cvbatch.train.collectives import Replicas
    from tests.support import two_workers

    (first, second), _ = workers
    alone = two_workers.take_steps(case, Replicas(), 2 * two_workers.SIZE)
    initial = two_workers.CASES[case][0]().get_weights()

    assert_equal(weights_of(first, case), weights_of(alone, case))
    assert_equal(weights_of(first, case), weights_of(second, case), atol=0)
    np.testing.assert_allclose(first[f"{case}/loss"], alone[f"{case}/loss"], atol=1e-5)
    pairs = zip(weights_of(first, case), initial, strict=True)
    assert any(np.abs(weight - before).max() > 0.01 for weight, before in pairs)


@pytest.mark.parametrize("case", ["plain-sgd", "accumulated-adam"])
def test_two_devices_train_the_weights_of_one(case, devices):
    from cvbatch.train.collectives import Replicas
    from tests.support import two_workers

    alone = two_workers.take_steps(case, Replicas(), 2 * two_workers.SIZE)

    assert devices["workers"].tolist() == [0, 1, 2]
    assert_equal(weights_of(devices, case), weights_of(alone, case))


def test_padding_of_one_worker_does_not_change_a_step(workers):
    from cvbatch.train.collectives import Replicas
    from cvbatch.train.step import Step
    from tests.support import toy_trainings, two_workers

    (first, _), _ = workers
    model = toy_trainings.plain()
    step = Step(
        toy_trainings.ColourLearner(model), model, two_workers.OPTIMIZERS["sgd"](), Replicas()
    )
    shares = [two_workers.rows_of_step(0, worker, 2, two_workers.SIZE) for worker in range(2)]
    batches = [
        toy_trainings.batch_of(pixels[:real], colour[:real])
        for (pixels, colour), real in zip(shares, two_workers.RAGGED, strict=True)
    ]
    pixels = np.concatenate([batch.pixels for batch in batches])
    targets = {
        name: np.concatenate([batch.targets[name] for batch in batches])
        for name in batches[0].targets
    }
    result = step([batches[0]._replace(pixels=pixels, targets=targets, num_real=len(pixels))])

    assert first["ragged/images"] == result.num_images == sum(two_workers.RAGGED)
    assert_equal(weights_of(first, "ragged"), model.get_weights())


def test_moving_statistics_differ_until_they_are_averaged(workers):
    (first, second), _ = workers
    keys = [key for key in first if key.startswith("statistics/own")]

    assert len(keys) == 4
    for key in keys:
        mean = key.replace("own", "mean")
        assert np.abs(first[key] - second[key]).max() > 1e-6
        np.testing.assert_allclose(first[mean], (first[key] + second[key]) / 2, atol=1e-6)
        np.testing.assert_array_equal(first[mean], second[mean])


def test_workers_have_the_same_statistics_at_every_checkpoint(workers):
    (first, second), _ = workers
    keys = [key for key in first if key.startswith("normalizing/")]

    assert len(keys) == 2
    for key in keys:
        np.testing.assert_array_equal(first[key], second[key])


def test_statistics_at_the_end_of_an_epoch_are_those_of_the_images_of_both_workers(workers):
    from cvbatch.train.batch_statistics import BatchStatistics
    from cvbatch.train.collectives import Replicas
    from tests.support import toy_trainings, two_workers

    (first, second), _ = workers
    model, images = toy_trainings.normalized(), toy_trainings.images(48)
    model.set_weights(weights_of(first, "normalized"))
    sources = [toy_trainings.batches_of(*images, two_workers.SIZE, i, 2) for i in range(2)]
    BatchStatistics(model, Replicas(), 3).update([b for source in sources for b in source(0, 0)])

    assert_equal(weights_of(first, "normalized"), model.get_weights())
    assert_equal(weights_of(first, "normalized"), weights_of(second, "normalized"), atol=0)


def test_a_nan_loss_on_one_worker_stops_both(workers):
    for results in workers[0]:
        assert "must be finite" in str(results["nan/message"])
        assert results["nan/same"]


def test_dropout_differs_between_workers(workers, devices):
    (first, second), _ = workers
    assert second["seeds/0"].tolist() == (first["seeds/0"] + [1, 0]).tolist()
    assert len(devices["seeds/0"]) == 2


def test_a_resumed_training_on_two_workers_equals_one_on_one_worker(workers, tmp_path):
    from cvbatch.train.trainer import Trainer, WorkerData
    from tests.support import toy_trainings, two_workers

    (first, second), folder = workers
    model = toy_trainings.normalized()
    plan = replace(two_workers.TRAINING, batch_size=2 * two_workers.SIZE)
    images = toy_trainings.images(two_workers.TRAINING_IMAGES, seed=1)
    pixels, colour = toy_trainings.images(31, seed=2)
    rows = Trainer(
        toy_trainings.ColourLearner(model),
        plan,
        WorkerData(
            toy_trainings.batches_of(*images, plan.batch_size),
            validation=lambda: [(pixels, toy_trainings.examples_of(pixels, colour))],
        ),
        tmp_path,
    ).run()

    assert_equal(weights_of(first, "training"), model.get_weights())
    assert_equal(weights_of(first, "training"), weights_of(second, "training"), atol=0)
    rates = first["training/learning_rate"]
    assert rates[-1] == pytest.approx(rates[-2] / 2)
    for key in ("step", "loss", "loss_square", "val_loss", "accuracy", "learning_rate"):
        assert first[f"training/{key}"].tolist() == second[f"training/{key}"].tolist()
        np.testing.assert_allclose(first[f"training/{key}"], [r[key] for r in rows], atol=1e-5)
    assert list((folder / "checkpoints-0").iterdir())
    assert not (folder / "checkpoints-1").exists()
