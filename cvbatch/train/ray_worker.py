"""One worker of a training: it learns its part of every step, and the first leaves the results."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import ray
import ray.train
import tensorflow as tf

from cvbatch.core.types import InputKey
from cvbatch.images.decode import Limits
from cvbatch.storage import store
from cvbatch.storage.lease import check_token
from cvbatch.storage.retry import is_full, translate
from cvbatch.train import history, network
from cvbatch.train.augmentation import Augmentation
from cvbatch.train.batches import Batch
from cvbatch.train.collectives import Replicas
from cvbatch.train.feature_cache import split, spool
from cvbatch.train.input_pipeline import Laying, Reader, Scales, Share, TrainingBatches, judged
from cvbatch.train.trainer import Event, Plan, Trainer
from cvbatch.train.validation import Validator

if TYPE_CHECKING:
    from cvbatch.train.worker_spec import WorkerSpec

_TOLD_FAILURES = 5  # images that cannot be used, told with their reasons
_EVENTS = "_cvbatch/tensorboard/events.out.tfevents.cvbatch"
Row = dict[str, Any]


class TrainingWorker:
    """One worker, from the network's file to what it leaves in the sink."""

    def __init__(self, lessons: WorkerSpec, ledger: Any, folder: Path) -> None:
        self._lessons, self._ledger, self._folder = lessons, ledger, folder
        self._trainer: Trainer
        job = lessons.job
        threads = max(1, int(job.run.cpus_per_worker))
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        strategy = None
        if lessons.num_workers > 1:
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self._replicas = Replicas(strategy)
        keras.utils.set_random_seed(job.training.seed)
        self._begun = lessons.storage.fetch(lessons.begun_uri)
        with self._replicas.strategy.scope():
            model = network.load(self._begun, job.model.model, job.training.precision)
            self._learner = network.learner_of(job, model, len(lessons.data.classes))
        self._share = Share(self._replicas.worker, lessons.num_workers, job.training.batch_size)
        self._laying = Laying(
            storage=lessons.storage,
            wanted=lessons.wanted,
            key=InputKey(*lessons.image_size, job.model.resize),
            limits=Limits(job.source.max_bytes, job.source.max_pixels),
            channels=lessons.channels,
            threads=threads,
        )
        self._readers = {
            name: Reader(split, self._laying, self._share)
            for name, split in lessons.data.splits.items()
        }
        if sizes := job.training.image_sizes:
            largest = InputKey(*max(sizes, key=math.prod), job.model.resize)
            laying = replace(self._laying, key=largest)
            self._readers["train"] = Reader(lessons.data.splits["train"], laying, self._share)

    def learn(self) -> dict[str, Any]:
        """Train, judge, leave the model in the sink; return what the run came to.

        Raises:
            CvbatchError: it cannot go on.
        """
        training = self._lessons.job.training
        plan = Plan(
            phases=network.phases(training),
            steps_per_epoch=self._lessons.steps_per_epoch,
            batch_size=training.batch_size,
            optimization=network.optimization(training),
            patience=training.patience,
            checkpoint_steps=training.checkpoint_steps,
            keep=1,  # here; those under the sink are Ray's to keep
        )
        validation = self._readers.get("validation")
        with self._last_checkpoint() as resume:
            self._trainer = trainer = Trainer(
                self._learner,
                plan,
                folder=self._folder / "checkpoints",
                validation=None if validation is None else lambda: judged(validation),
                replicas=self._replicas,
                listener=self._hear,
                resume=resume,
                **self._taught_on(),
            )
            rows = trainer.run()
        metrics = self._final_metrics()
        said = {
            "epochs": len(rows),
            "steps": rows[-1]["step"],
            "best_epoch": trainer.progress.best_epoch,
            "metrics": metrics,
            "num_unusable": self._failures(),
        }
        if self._replicas.is_chief:
            self._check_lease()
            self._leave()
            self._put("metrics.json", json.dumps(metrics, indent=1).encode())
            job = self._lessons.job
            classes = self._lessons.data.classes
            self._put("model.keras", network.save(job, self._learner.model, classes, self._begun))
        return said

    def _taught_on(self) -> dict[str, Any]:
        """Return what the trainer learns from: images, or features that were computed once."""
        training = self._lessons.job.training
        reader = self._readers["train"]
        if training.recipe != "features":
            augment = Augmentation(**training.augment.model_dump(), seed=training.seed)
            used = augment if training.augments else None
            targets = self._learner.targets
            seed, pool = training.seed, training.shuffle_images
            return {"feed": TrainingBatches(reader, targets, used, seed, pool, self._scales())}
        parts = split(self._learner.trained)
        batches = (
            Batch(pixels, self._learner.targets(examples), len(examples))
            for pixels, examples in judged(reader)
        )
        kept = spool(parts.base, batches, self._folder / "features")
        size = training.batch_size
        return {
            "feed": lambda epoch, first: kept.batches(size, training.seed, epoch, first),
            "network": parts.head,
        }

    def _scales(self) -> Scales | None:
        training = self._lessons.job.training
        if training.image_sizes is None:
            return None
        steps = self._lessons.steps_per_epoch
        return Scales(tuple(training.image_sizes), training.seed, training.accumulate, steps)

    @contextmanager
    def _last_checkpoint(self) -> Iterator[Path | None]:
        """Yield where the run's last checkpoint lies, here; None where there is none."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None or not self._replicas.is_chief:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="cvbatch-resumed-") as folder:
            yield Path(checkpoint.to_directory(folder))

    def _hear(self, event: Event) -> None:
        """Report a checkpoint, with all workers; as the first, tell of the epoch."""
        self._check_lease()
        checkpoint = None
        if event.checkpoint is not None:
            checkpoint = ray.train.Checkpoint.from_directory(event.checkpoint)
        try:
            ray.train.report(event.row or {}, checkpoint=checkpoint)
        except OSError as error:
            if not is_full(error):
                raise  # another worker may fare better
            raise translate(error, self._lessons.sink_uri) from None
        if event.row is not None and self._replicas.is_chief:
            ray.get(self._ledger.note.remote(event.row))
            self._leave()

    def _final_metrics(self) -> dict[str, dict[str, float | None]]:
        """Return the figures of the best weights on the validation and the test images."""
        found: dict[str, dict[str, float | None]] = {}
        for name in ("validation", "test"):
            reader = self._readers.get(name)
            if reader is not None:
                figures = self._judge(reader)
                found[name] = {k: None if v != v else v for k, v in figures.items()}
        return found

    def _judge(self, reader: Reader) -> dict[str, float]:
        return Validator(
            self._learner, self._learner.model, lambda: judged(reader), self._replicas
        )()

    def _failures(self) -> dict[str, Any]:
        """Return how many images of all workers cannot be used, and why some of them."""
        own = {
            name: f"{failure.kind}: {failure.message}"
            for reader in self._readers.values()
            for name, failure in reader.failures.items()
        }
        told: dict[str, str] = {}
        for said in self._replicas.gather(json.dumps(own).encode()):
            told |= json.loads(said)
        return {"count": len(told), "such_as": dict(sorted(told.items())[:_TOLD_FAILURES])}

    def _check_lease(self) -> None:
        """Stop if another run has the sink, also while the driver, which has the lease, hangs."""
        if self._replicas.is_chief:
            check_token(self._lessons.storage, self._lessons.sink_uri, self._lessons.lease_token)

    def _leave(self) -> None:
        """Put what the epochs came to so far into the sink."""
        rows, best_epoch = self._trainer.progress.rows, self._trainer.progress.best_epoch
        self._put("history.parquet", history.to_parquet(rows))
        self._put("history.json", history.to_json(rows))
        self._put("curves.png", history.curves_png(rows, best_epoch))
        self._put(_EVENTS, _event_file(rows))

    def _put(self, name: str, data: bytes) -> None:
        self._lessons.storage.put_bytes(store.join(self._lessons.sink_uri, name), data)


def _event_file(rows: list[Row]) -> bytes:
    """Return the numbers of all epochs as TensorBoard reads them, by step."""
    with tempfile.TemporaryDirectory(prefix="cvbatch-events-") as folder:
        history.write_tensorboard(rows, Path(folder))
        (path,) = Path(folder).iterdir()
        return path.read_bytes()
