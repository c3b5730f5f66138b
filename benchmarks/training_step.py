"""Benchmark of the training step: cvbatch's Trainer against plain `keras.fit`, data in memory.

Run: python -m benchmarks.training_step --network NAME --workers 1|2 [--epochs N] [--threads N]
One worker has `--threads` threads, as has `keras.fit`: their epochs alternate in one process. Two
workers have one thread, one core and half of the batch each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from cvbatch.models import registry
from cvbatch.train.batches import Batch, BatchSource
from cvbatch.train.collectives import Replicas
from cvbatch.train.learners.base import LEARNERS
from cvbatch.train.optimizers import Optimization
from cvbatch.train.phases import Phase
from cvbatch.train.trainer import Event, Plan, Trainer, WorkerData

BATCH = 16  # images per step, over all workers
STEPS = 8  # per epoch: short epochs, so that neighbours have the same machine state
RATE = 1e-3


@dataclass(frozen=True)
class Network:
    """A network to train."""

    task: str
    name: str
    num_classes: int
    side: int
    options: dict[str, Any]


NETWORKS = {
    "classifier": Network("classification", "MobileNetV2", 10, 128, {}),
    "segmenter": Network("segmentation", "encoder_decoder", 3, 128, {"width": 16}),
}


def build(network: Network) -> keras.Model:
    """Return the network with weights from a fixed seed."""
    keras.utils.set_random_seed(0)
    return registry.build(
        network.name, network.num_classes, (network.side, network.side), network.options
    )


def training_data(network: Network) -> tuple[np.ndarray, str, np.ndarray]:
    """Return pixels (N, side, side, 3) uint8, and the name and values of the targets."""
    rng = np.random.default_rng(0)
    count = BATCH * STEPS
    pixels = rng.integers(0, 256, (count, network.side, network.side, 3), np.uint8)
    if network.task == "classification":
        return pixels, "labels", rng.integers(0, network.num_classes, count).astype(np.int32)
    shape = (count, network.side, network.side)
    return pixels, "mask", rng.integers(0, network.num_classes, shape, np.uint8)


def batch_source(network: Network, worker: int, workers: int) -> BatchSource:
    """Return a worker's share of every step, in a new order each epoch."""
    pixels, name, truth = training_data(network)
    size = BATCH // workers

    def batches(epoch: int, first: int) -> Iterator[Batch]:
        order = np.random.default_rng(epoch).permutation(len(pixels))
        for start in range(first * BATCH, len(order), BATCH):
            rows = order[start + worker * size : start + (worker + 1) * size]
            yield Batch(pixels[rows], {name: truth[rows]}, size)

    return batches


def trained_rates(
    network: Network, epochs: int, replicas: Replicas, between: Callable[[], None]
) -> list[float]:
    """Return images/s of all workers in each epoch of the Trainer except the first.

    Args:
        network: The network to train.
        epochs: Number of epochs.
        replicas: Strategy and number of workers.
        between: Called after every epoch.
    """
    with replicas.strategy.scope():
        model = build(network)
        learner = LEARNERS[network.task].build(model, network.num_classes)
    optimization = Optimization(schedule="constant", warmup=0.0)
    workers = replicas.num_workers
    phase = Phase("all", "all", epochs, RATE, freezes_normalization=False)
    plan = Plan((phase,), STEPS, BATCH // workers, optimization)

    def listener(event: Event) -> None:
        between()

    with tempfile.TemporaryDirectory(prefix="cvbatch-bench-") as folder:
        batches = batch_source(network, replicas.worker, workers)
        trainer = Trainer(
            learner, plan, WorkerData(batches), Path(folder), replicas=replicas, listener=listener
        )
        rows = trainer.run()
    return [BATCH * STEPS / row["seconds"] for row in rows[1:]]


class Fit:
    """`keras.fit` with the same network, batch, optimizer and data, one epoch per call."""

    def __init__(self, network: Network) -> None:
        self.rates: list[float] = []
        self._model = build(network)
        self._model.compile(
            keras.optimizers.AdamW(RATE, weight_decay=1e-4),
            "sparse_categorical_crossentropy",
            jit_compile=False,  # on a CPU, XLA makes it many times slower
        )
        self._pixels, _, self._truth = training_data(network)

    def epoch(self) -> None:
        """Train one epoch and record images/s between its begin and end callbacks."""
        times: list[float] = []
        tick = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: times.append(time.perf_counter()),
            on_epoch_end=lambda epoch, logs: times.append(time.perf_counter()),
        )
        self._model.fit(
            self._pixels, self._truth, batch_size=BATCH, epochs=1, verbose=0, callbacks=[tick]
        )
        self.rates.append(BATCH * STEPS / (times[1] - times[0]))


def alone(network: Network, epochs: int, threads: int) -> dict[str, Any]:
    """Return the rates of one worker and of `keras.fit`, epoch by epoch, and their ratio."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    fit = Fit(network)
    ours = trained_rates(network, epochs, Replicas(), fit.epoch)
    theirs = fit.rates[1:]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"ours": ours, "fit": theirs, "ratio": statistics.median(ratios)}


def together(network_name: str, epochs: int) -> dict[str, Any]:
    """Start two worker processes; return the rates of the first."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    command = [sys.executable, "-m", "benchmarks.training_step", "--network", network_name]
    command += ["--workers", "2", "--epochs", str(epochs)]
    workers = []
    for number in range(2):
        task = {"type": "worker", "index": number}
        config = json.dumps({"cluster": {"worker": hosts}, "task": task})
        environment = {**os.environ, "TF_CONFIG": config}
        workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
    try:
        outputs = [worker.communicate()[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return {"ours": json.loads(outputs[0].splitlines()[-1])["ours"]}


def one_of_two(network: Network, epochs: int) -> dict[str, Any]:
    """Return the rates of this process as one of two workers, set by TF_CONFIG."""
    number = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    tf.config.threading.set_intra_op_parallelism_threads(1)
    replicas = Replicas(tf.distribute.MultiWorkerMirroredStrategy())
    return {"ours": trained_rates(network, epochs, replicas, lambda: None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--epochs", type=int, default=9, help="the first is not counted; default: %(default)s"
    )
    arguments = parser.parse_args()
    network = NETWORKS[arguments.network]
    if arguments.workers == 1:
        rates = alone(network, arguments.epochs, arguments.threads)
    elif "TF_CONFIG" in os.environ:
        rates = one_of_two(network, arguments.epochs)
    else:
        rates = together(arguments.network, arguments.epochs)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
