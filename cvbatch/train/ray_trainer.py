"""A training job on Ray Train: what every worker is told, and who hears of what it does.

Ray's own Keras callback and datasets are not used: `cvbatch.train.input_pipeline` says why of the
latter. A checkpoint that a worker reports lies under the sink when the report returns, and a run of
the same name and place goes on from the last one, whoever was lost: a worker, or the driver.
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
from cvbatch.storage import store
from cvbatch.train import history
from cvbatch.train.worker_spec import WorkerSpec

_POLL_S = 0.5  # between two looks at what the workers have told
Row = dict[str, Any]


class _Ledger:
    """What workers tell the driver, and what makes it useless to try again."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._error: CvbatchError | None = None

    def note(self, row: Row) -> None:
        """Hear of an epoch; one that is gone through again takes its old place."""
        self._rows = [old for old in self._rows if old["epoch"] < row["epoch"]] + [row]

    def fail(self, error: CvbatchError) -> None:
        self._error = self._error or error

    def error(self) -> CvbatchError | None:
        return self._error

    def rows(self) -> list[Row]:
        return self._rows


def run_training(
    lessons: WorkerSpec, hear: Callable[[str, Row], None], check: Callable[[], None]
) -> dict[str, Any]:
    """Return what the first worker says of the run when all epochs are done.

    hear: is told of each epoch, in a line and in numbers. check: is called every half second, and
    stops the training by what it raises.

    Raises:
        CvbatchError: the training cannot go on; what the last checkpoint holds is good.
    """
    ledger = ray.remote(num_cpus=0)(_Ledger).remote()
    trainer = _trainer(lessons, ledger)
    outcome: list[Any] = []

    def fit() -> None:
        try:
            outcome.append(trainer.fit().return_value)
        except ray.train.TrainingFailedError as error:
            outcome.append(error)

    # In a thread of its own: Ray would take the main thread's signals, which stop the job.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    told = 0
    while thread.is_alive():
        thread.join(_POLL_S)
        check()
        told = _tell(ray.get(ledger.rows.remote()), told, hear)
    error = ray.get(ledger.error.remote())
    if error is not None:
        raise error
    if not outcome or not isinstance(outcome[0], dict):
        raise TrainingError(_lost(lessons, outcome[0] if outcome else None))
    return outcome[0]


def _tell(rows: list[Row], told: int, hear: Callable[[str, Row], None]) -> int:
    for row in rows:
        if row["epoch"] > told:
            told = row["epoch"]
            hear(history.line(row), row)
    return told


def _lost(lessons: WorkerSpec, error: Exception | None) -> str:
    lines = str(error or "").strip().splitlines()
    last = f" ({lines[-1].strip()[:300]})" if lines else ""
    return (
        f"the workers failed more often than run.max_failures {lessons.job.run.max_failures} "
        f"allows{last}; look at the memory and disks they have"
    )


def _trainer(lessons: WorkerSpec, ledger: Any) -> Any:
    with silent_stderr():  # TensorFlow comes with it, and says so
        from ray.train.tensorflow import TensorflowTrainer
    run = lessons.job.run
    gpus = run.gpus_per_worker or 0
    resources = {"CPU": run.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    place = store.Location.of(store.join(lessons.sink_uri, "_cvbatch"))
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    return TensorflowTrainer(
        _learn,
        train_loop_config={"lessons": lessons, "ledger": ledger},
        scaling_config=ray.train.ScalingConfig(
            num_workers=lessons.num_workers, use_gpu=gpus > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name="training",
            storage_path=place.path,
            storage_filesystem=lessons.storage.file_system(place),
            failure_config=ray.train.FailureConfig(max_failures=run.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=lessons.job.training.keep),
        ),
    )


def _learn(config: dict[str, Any]) -> dict[str, Any] | None:
    """Run in every worker; tell the ledger what no second try would mend."""
    from cvbatch.train.ray_worker import TrainingWorker

    lessons, ledger = config["lessons"], config["ledger"]
    if ray.get(ledger.error.remote()) is not None:
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="cvbatch-training-") as folder:
            return TrainingWorker(lessons, ledger, Path(folder)).learn()
    except CvbatchError as error:
        ray.get(ledger.fail.remote(error))
        raise
