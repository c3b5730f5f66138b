"""Ray Train driver: start the training workers and report their epochs.

Ray's Keras callback and Ray Data are not used (`cvbatch.train.input_pipeline` explains the latter).
A checkpoint is stored in the sink when the worker's report of it returns. A run with the same name
and storage path resumes from the last checkpoint after the loss of a worker or of the driver.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train

from cvbatch.core.child_process import silent_stderr
from cvbatch.core.errors import CvbatchError, TrainingError
from cvbatch.core.progress import Listener
from cvbatch.models.keras_settings import VARIABLES, own_keras
from cvbatch.storage import store
from cvbatch.train.history import Row, format_row
from cvbatch.train.worker_spec import Position, WorkerSpec

_POLL_S = 0.5  # between two requests for new epochs


class _TrainingLog:
    """Ray actor: receives the workers' epochs, and an error that makes a restart useless."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._error: CvbatchError | None = None
        self._position: Position | None = None

    def add_row(self, row: Row) -> None:
        """Add an epoch; a repeated epoch replaces the earlier one and all after it."""
        self._rows = [old for old in self._rows if old["epoch"] < row["epoch"]] + [row]

    def set_position(self, position: Position) -> None:
        self._position = position

    def state(self) -> tuple[list[Row], Position | None]:
        return self._rows, self._position

    def set_error(self, error: CvbatchError) -> None:
        self._error = self._error or error

    def error(self) -> CvbatchError | None:
        return self._error


def run_training(spec: WorkerSpec, listener: Listener, check: Callable[[], None]) -> dict[str, Any]:
    """Train to the end; return the summary that worker 0 returns.

    Args:
        spec: the specification of the workers.
        listener: receives the metrics of each epoch, and how far the current one is.
        check: called every half second; it stops the training by raising.

    Raises:
        CvbatchError: the training cannot continue; the last checkpoint is complete.
    """
    log = ray.remote(num_cpus=0)(_TrainingLog).remote()
    trainer = _trainer(spec, log)
    results: list[Any] = []

    def fit() -> None:
        try:
            results.append(trainer.fit().return_value)
        except ray.train.TrainingFailedError as error:
            results.append(error)

    # In another thread, because Ray replaces the main thread's signal handlers, which stop the job.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    last_epoch = 0
    while thread.is_alive():
        thread.join(_POLL_S)
        check()
        rows, position = ray.get(log.state.remote())
        last_epoch = _report(rows, position, last_epoch, listener, spec.job.training.num_epochs)
    error = ray.get(log.error.remote())
    if error is not None:
        raise error
    if not results or not isinstance(results[0], dict):
        raise TrainingError(_failure_message(spec, results[0] if results else None))
    return results[0]


def _report(
    rows: list[Row],
    position: Position | None,
    last_epoch: int,
    listener: Listener,
    num_epochs: int,
) -> int:
    """Report the position and the epochs after `last_epoch`; return the last one's number."""
    for row in rows:
        if row["epoch"] > last_epoch:
            last_epoch = row["epoch"]
            listener.epoch(format_row(row, num_epochs), row)
    if position is not None and position.epoch > last_epoch:
        listener.advanced(position.epoch - 1 + position.done, position.text)
    return last_epoch


def _failure_message(spec: WorkerSpec, error: Exception | None) -> str:
    lines = str(error or "").strip().splitlines()
    cause = f" ({lines[-1].strip()[:300]})" if lines else ""
    return (
        f"the workers failed more often than run.max_failures {spec.job.run.max_failures} "
        f"allows{cause}; check their memory and disks"
    )


def _trainer(spec: WorkerSpec, log: Any) -> Any:
    with silent_stderr():  # this imports TensorFlow, which writes to stderr
        own_keras()
        from ray.train.tensorflow import TensorflowTrainer
    run = spec.job.run
    gpus = run.gpus_per_worker or 0
    resources = {"CPU": run.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    location = store.Location.of(store.join(spec.sink_uri, "_cvbatch"))
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    return TensorflowTrainer(
        _train_worker,
        train_loop_config={"spec": spec, "log": log},
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.num_workers, use_gpu=gpus > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name="training",
            storage_path=location.path,
            storage_filesystem=spec.storage.file_system(location),
            failure_config=ray.train.FailureConfig(max_failures=run.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=spec.job.training.keep),
            worker_runtime_env={"env_vars": VARIABLES},
        ),
    )


def _train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """Run in every worker; log an error that a restart cannot fix."""
    own_keras()  # Ray has imported TensorFlow, and so Keras
    from cvbatch.train.ray_worker import TrainingWorker

    spec, log = config["spec"], config["log"]
    if ray.get(log.error.remote()) is not None:
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="cvbatch-training-") as folder:
            return TrainingWorker(spec, log, Path(folder)).train()
    except CvbatchError as error:
        ray.get(log.set_error.remote(error))
        raise
