"""Training worker: runs its share of every step; rank 0 writes checkpoints and results."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from cvbatch.core.errors import ModelError
from cvbatch.core.types import InputKey
from cvbatch.images.decode import Limits
from cvbatch.models.frameworks import keras, tf
from cvbatch.plots.figure import to_files
from cvbatch.plots.learning_curves import draw_learning_curves
from cvbatch.storage import store
from cvbatch.storage.lease import check_token
from cvbatch.storage.retry import is_full, translate
from cvbatch.train import history, network
from cvbatch.train.augmentation import Augmentation
from cvbatch.train.batches import Batch, BatchSource
from cvbatch.train.checkpoints import Progress
from cvbatch.train.collectives import Replicas
from cvbatch.train.feature_cache import FeatureCache, cache_features, split_network
from cvbatch.train.input_pipeline import (
    DecodeSpec,
    ExampleReader,
    Shard,
    SizeSchedule,
    TrainingBatches,
    summarize_failures,
    validation_batches,
)
from cvbatch.train.phases import phases_of
from cvbatch.train.run_notes import history_notes
from cvbatch.train.trainer import Event, Features, Plan, Trainer, WorkerData
from cvbatch.train.validation import Validator
from cvbatch.train.worker_spec import Position

if TYPE_CHECKING:
    from cvbatch.train.worker_spec import WorkerSpec

_LOG_INTERVAL_S = 1.0  # between two positions that worker 0 logs
_DRAWING_SHARE = 0.05  # of the time, at most, for drawing the curves while the training runs
# Recipes that train the head on cached features, and the most bytes of them on each worker.
_CACHING = {"features": math.inf, "finetune": 4 << 30}
_EVENTS = "_cvbatch/tensorboard/events.out.tfevents.cvbatch"


class TrainingWorker:
    """One training worker, from the initial model to the results in the sink.

    Args:
        spec: what all workers share.
        log: handle of the driver's actor that receives epochs.
        folder: local folder for checkpoints and cached features.
    """

    def __init__(self, spec: WorkerSpec, log: Any, folder: Path) -> None:
        self._spec, self._log, self._folder = spec, log, folder
        self._trainer: Trainer
        self._logged_s = 0.0
        job = spec.job
        threads = max(1, int(job.run.cpus_per_worker))
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        strategy = None
        if spec.num_workers > 1:
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self._replicas = Replicas(strategy)
        keras.utils.set_random_seed(job.training.seed)
        self._initial_model = spec.storage.fetch(spec.initial_model_uri)
        with self._replicas.strategy.scope():
            model = network.load(job, self._initial_model)
            self._learner = network.make_learner(job, model, len(spec.data.classes))
        self._readers = self._make_readers(threads)
        self._next_drawing = 0.0  # of the curves; `time.monotonic`

    def _make_readers(self, threads: int) -> dict[str, ExampleReader]:
        """Return this worker's reader of each split."""
        spec, job = self._spec, self._spec.job
        shard = Shard(self._replicas.worker, spec.num_workers, job.training.batch_size)
        decode_spec = DecodeSpec(
            storage=spec.storage,
            label_spec=spec.label_spec,
            key=InputKey(*spec.image_size, job.model.resize),
            limits=Limits.from_source(job.source.model_dump()),
            channels=spec.channels,
            threads=threads,
        )
        readers = {
            name: ExampleReader(split, decode_spec, shard)
            for name, split in spec.data.splits.items()
        }
        if sizes := job.training.image_sizes:  # decoded at the largest, then shrunk
            largest = InputKey(*max(sizes, key=math.prod), job.model.resize)
            decode_spec = replace(decode_spec, key=largest)
            readers["train"] = ExampleReader(spec.data.splits["train"], decode_spec, shard)
        return readers

    def train(self) -> dict[str, Any]:
        """Train, evaluate, write the model into the sink; return a summary.

        Raises:
            CvbatchError: the training cannot continue.
        """
        plan = self._plan()
        self._trainer = Trainer(
            self._learner,
            plan,
            self._worker_data(),
            self._folder / "checkpoints",
            replicas=self._replicas,
            listener=self._on_checkpoint,
            on_step=self._on_step,
        )
        with self._last_checkpoint() as resume:
            rows = self._trainer.run(resume)
        best_epoch, metrics = self._trainer.progress.best_epoch, self._final_metrics()
        planned = {phase.name: phase.epochs for phase in plan.phases}
        job, metric = self._spec.job, self._learner.metric
        summary = {
            "epochs": len(rows),
            "steps": rows[-1]["step"],
            "best_epoch": best_epoch,
            "notes": history_notes(rows, best_epoch, planned, metric, job),
            "metrics": metrics,
            "num_unusable": self._gather_failures(),
        }
        if self._replicas.is_chief:
            self._check_lease()
            self._put_history(is_last=True)
            self._put("metrics.json", json.dumps(metrics, indent=1).encode())
            self._put("model.keras", self._saved_model())
        return summary

    def _plan(self) -> Plan:
        training = self._spec.job.training
        return Plan(
            phases=phases_of(training, self._learner.training_model),
            steps_per_epoch=self._spec.steps_per_epoch,
            batch_size=training.batch_size,
            optimization=network.optimization(training),
            patience=training.patience,
            checkpoint_steps=training.checkpoint_steps,
            keep=1,  # in the local folder; Ray keeps those in the sink
        )

    def _worker_data(self) -> WorkerData:
        validation = self._readers.get("validation")
        return WorkerData(
            self._training_batches(),
            self._features(),
            None if validation is None else partial(validation_batches, validation),
            self._spec.data.classes,
        )

    def _training_batches(self) -> BatchSource:
        """Return this worker's batches of images."""
        training = self._spec.job.training
        augmentation = None
        if training.has_augmentation:
            augmentation = Augmentation(**training.augment.model_dump(), seed=training.seed)
        return TrainingBatches(
            self._readers["train"],
            self._learner.targets,
            augmentation,
            training.seed,
            training.shuffle_images,
            self._sizes(),
        )

    def _features(self) -> Features | None:
        """Return the features that a head is trained on; None: the base runs at every step.

        The recipe finetune caches features of up to 4 GiB, if images are not augmented.
        """
        training, reader = self._spec.job.training, self._readers["train"]
        if training.recipe not in _CACHING or training.has_augmentation or training.image_sizes:
            return None
        try:
            base, head = split_network(self._learner.training_model)
        except ModelError:
            if training.recipe == "features":
                raise
            return None
        num_values = len(self._spec.data.splits["train"]) * math.prod(base.output.shape[1:])
        if 4 * num_values / self._spec.num_workers > _CACHING[training.recipe]:
            return None

        @cache
        def features() -> FeatureCache:
            batches = (
                Batch(pixels, self._learner.targets(examples), len(examples))
                for pixels, examples in validation_batches(reader)
            )
            return cache_features(base, batches, self._folder / "features")

        size, seed = training.batch_size, training.seed
        return Features(head, lambda epoch, first: features().batches(size, seed, epoch, first))

    def _sizes(self) -> SizeSchedule | None:
        training = self._spec.job.training
        if training.image_sizes is None:
            return None
        steps = self._spec.steps_per_epoch
        return SizeSchedule(tuple(training.image_sizes), training.seed, training.accumulate, steps)

    @contextmanager
    def _last_checkpoint(self) -> Iterator[Path | None]:
        """Yield a local copy of the run's last checkpoint; None if there is none."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None or not self._replicas.is_chief:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="cvbatch-resumed-") as folder:
            yield Path(checkpoint.to_directory(folder))

    def _on_step(self, progress: Progress) -> None:
        """On worker 0, log now and then what is done of the epoch, and always its end."""
        done = progress.epoch_step / self._spec.steps_per_epoch
        is_due = time.monotonic() - self._logged_s >= _LOG_INTERVAL_S or done == 1
        if is_due and self._replicas.is_chief:
            self._logged_s = time.monotonic()
            loss = progress.sums["loss"] / progress.sums["images"]
            epochs = self._spec.job.training.num_epochs
            self._log.set_position.remote(Position(progress.epoch + 1, epochs, done, loss))

    def _on_checkpoint(self, event: Event) -> None:
        """Report a checkpoint to Ray, on all workers; on worker 0, log the epoch that ended."""
        self._check_lease()
        checkpoint = None
        if event.checkpoint is not None:
            checkpoint = ray.train.Checkpoint.from_directory(event.checkpoint)
        try:
            ray.train.report(event.row or {}, checkpoint=checkpoint)
        except OSError as error:
            if not is_full(error):
                raise  # a restarted worker may succeed
            raise translate(error, self._spec.sink_uri) from None
        if event.row is not None and self._replicas.is_chief:
            ray.get(self._log.add_row.remote(event.row))
            self._put_history()

    def _final_metrics(self) -> dict[str, dict[str, float | None]]:
        """Return the metrics of the best weights on the validation and the test images.

        Those on the validation images are in the history.
        """
        metrics = {}
        if "validation" in self._readers:
            progress = self._trainer.progress
            metrics["validation"] = history.validation_values(
                progress.rows[progress.best_epoch - 1]
            )
        if "test" in self._readers:
            batches = partial(validation_batches, self._readers["test"])
            classes = self._spec.data.classes
            metrics["test"] = Validator(self._learner, batches, self._replicas, classes)()
        return {
            name: {key: None if math.isnan(value) else value for key, value in values.items()}
            for name, values in metrics.items()
        }

    def _gather_failures(self) -> dict[str, Any]:
        """Return the number of unusable images on all workers, by kind, and examples."""
        failures = {
            name: [failure.kind, failure.message]
            for reader in self._readers.values()
            for name, failure in reader.failures.items()
        }
        merged: dict[str, tuple[str, str]] = {}
        for shard in self._replicas.all_gather(json.dumps(failures).encode()):
            merged |= json.loads(shard)
        return summarize_failures(merged)

    def _check_lease(self) -> None:
        """Stop if another run has taken over the sink, even if the driver does not respond."""
        if self._replicas.is_chief:
            check_token(self._spec.storage, self._spec.sink_uri, self._spec.lease_token)

    def _put_history(self, *, is_last: bool = False) -> None:
        """Write the metrics of all epochs so far into the sink.

        Curves are drawn again when `_DRAWING_SHARE` of the time since then allows it, and at the
        end.
        """
        rows, best_epoch = self._trainer.progress.rows, self._trainer.progress.best_epoch
        self._put("history.parquet", history.to_parquet(rows))
        self._put("history.json", history.to_json(rows))
        self._put(_EVENTS, _event_file(rows))
        started = time.monotonic()
        if is_last or started >= self._next_drawing:
            for name, data in to_files("curves", draw_learning_curves(rows, best_epoch)).items():
                self._put(name, data)
            self._next_drawing = started + (time.monotonic() - started) / _DRAWING_SHARE

    def _saved_model(self) -> bytes:
        job, classes = self._spec.job, self._spec.data.classes
        return network.save(job, self._learner.model, classes, self._initial_model)

    def _put(self, name: str, data: bytes) -> None:
        self._spec.storage.put_bytes(store.join(self._spec.sink_uri, name), data)


def _event_file(rows: list[history.Row]) -> bytes:
    """Return the metrics of all epochs as a TensorBoard event file."""
    with tempfile.TemporaryDirectory(prefix="cvbatch-events-") as folder:
        history.write_tensorboard(rows, Path(folder))
        (path,) = Path(folder).iterdir()
        return path.read_bytes()
