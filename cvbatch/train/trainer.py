"""Training loop: phases, epochs, validation, checkpoints, early stopping, resume.

It runs on one worker or in step with others, and uses only the `Learner` protocol of a task.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cvbatch.core.errors import TrainingError
from cvbatch.models.frameworks import keras
from cvbatch.train.batch_statistics import BatchStatistics
from cvbatch.train.batches import Batch, BatchSource, PaddedBatches
from cvbatch.train.checkpoints import Checkpoints, Progress, restore
from cvbatch.train.collectives import Replicas
from cvbatch.train.history import Row
from cvbatch.train.learners.base import Learner
from cvbatch.train.optimizers import Optimization, ScaledRate, make_optimizer, make_schedule
from cvbatch.train.phases import Phase, freeze, moving_statistics
from cvbatch.train.plateau import rate_scale
from cvbatch.train.step import Step, StepResult
from cvbatch.train.validation import ValidationBatches, Validator


@dataclass(frozen=True)
class Plan:
    """Settings of a training run; it resumes only from checkpoints of an equal plan."""

    phases: tuple[Phase, ...]
    steps_per_epoch: int  # optimizer updates
    batch_size: int  # images of a micro-batch on one worker; smaller ones are padded
    optimization: Optimization = field(default_factory=Optimization)
    patience: int | None = None  # epochs without improvement that end a phase; None: no limit
    checkpoint_steps: int | None = None  # steps between checkpoints; None: one after each epoch
    keep: int = 3  # number of checkpoints

    def as_json(self, num_workers: int) -> dict[str, Any]:
        """Return the settings that determine the weights, as JSON-ready values.

        Of batch size, workers and micro-batches, only the product is included.
        """
        settings = asdict(self)
        accumulate = settings["optimization"].pop("accumulate")
        del settings["optimization"]["plateau"]
        if self.optimization.plateau is not None:
            settings["optimization"]["plateau"] = self.optimization.plateau.model_dump()
        images = settings.pop("batch_size") * accumulate * num_workers
        del settings["patience"], settings["keep"]
        return {**settings, "images_per_step": images}


class Event(NamedTuple):
    """What a listener receives, on every worker after the same step."""

    row: Row | None  # metrics of the epoch that ended; None inside an epoch
    checkpoint: Path | None  # the new checkpoint; None on workers that write none


class Features(NamedTuple):
    """Cached outputs of the base, which phases of the head are trained on instead of images."""

    head: keras.Model  # features → outputs of the network (`train.feature_cache.split_network`)
    batches: BatchSource  # this worker's training batches; their pixels are the features


@dataclass(frozen=True)
class WorkerData:
    """One worker's share of the data.

    Attributes:
        images: training batches.
        features: cached outputs of the base for phases that train only the head; None: such phases
            run the base at every step.
        validation: validation images; None: no validation.
        classes: class names, for the values of single classes in the history.
    """

    images: BatchSource
    features: Features | None = None
    validation: ValidationBatches | None = None
    classes: Sequence[str] = ()


class Trainer:
    """Train a learner's network as planned; afterwards it has the best weights of all epochs.

    The best epoch has the highest `learner.metric` on the validation images, or the lowest loss if
    there are none; of equal epochs, the last: the metric of few images is coarse, and the learning
    rate falls. A phase starts with the best weights of the phases before. A run resumes from
    the last checkpoint in `folder`, if there is one. At the end of an epoch, statistics of batch
    normalisation that lag are replaced by those of the epoch's first images.

    Args:
        learner: the task; its network must be built in the scope of the replicas' strategy.
        plan: settings of the run.
        data: of this worker.
        folder: contains the checkpoints; only worker 0 reads and writes it.
        replicas: all training workers; None: the current strategy.
        listener: called after every checkpoint.
        on_step: called after every step.
    """

    def __init__(
        self,
        learner: Learner,
        plan: Plan,
        data: WorkerData,
        folder: Path,
        *,
        replicas: Replicas | None = None,
        listener: Callable[[Event], None] = lambda event: None,
        on_step: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._learner, self._plan, self._data = learner, plan, data
        self._listener, self._on_step = listener, on_step
        self._replicas = replicas or Replicas()
        self._network = learner.training_model
        self._batches: PaddedBatches
        self._validator: Validator | None = None
        if data.validation is not None:
            self._validator = Validator(learner, data.validation, self._replicas, data.classes)
        self._checkpoints = Checkpoints(folder, plan.keep, plan.as_json(self._replicas.num_workers))
        models = (learner.training_model, learner.model)
        unique = {id(variable): variable for model in models for variable in model.variables}
        self._variables = list(unique.values())
        weights = {id(weight) for model in models for weight in model.weights}
        self._seeds = [v for v in self._variables if id(v) not in weights]
        self._step: Step
        self._statistics: BatchStatistics
        self._scaled_rate: ScaledRate
        self.progress = Progress()

    def run(self, resume: Path | None = None) -> list[Row]:
        """Train to the end of the last phase; return the history, one row per epoch.

        Args:
            resume: a checkpoint outside `folder` to resume from; None: the last one in `folder`.

        Raises:
            TrainingError: the loss is NaN or infinite, there are fewer images than an epoch needs,
                or a checkpoint cannot be written or read.
        """
        self._start(resume)
        while True:
            while not self._is_phase_over():
                self._run_epoch()
            if self.progress.phase + 1 == len(self._plan.phases):
                break
            self._next_phase()
        self._restore_best()
        return self.progress.rows

    def _start(self, resume: Path | None) -> None:
        """Set all workers to the state of the last checkpoint, or to the initial state."""
        arrays: list[np.ndarray] = []
        payload, source = b"", None
        if self._replicas.is_chief:
            source = resume or self._checkpoints.latest()
            if source is not None:
                self.progress, arrays = self._checkpoints.read(source, self._variables)
                payload = json.dumps(asdict(self.progress)).encode()
        if payload := self._replicas.all_gather(payload)[0]:
            self.progress = Progress(**json.loads(payload))
        self._make_step()
        if source is not None:
            restore(self._step.variables, arrays, source)
        self._replicas.broadcast(self._step.variables)
        self._broadcast_network()

    def _broadcast_network(self) -> None:
        self._replicas.broadcast(self._variables)
        self._replicas.offset_seeds(self._seeds)

    def _make_step(self) -> None:
        phase, optimization = self._phase, self._plan.optimization
        self._network, batches = self._learner.training_model, self._data.images
        freeze(self._network, phase)
        if self._data.features is not None and phase.part == "head":
            self._network, batches = self._data.features
        self._batches = PaddedBatches(batches, self._plan.batch_size, self._replicas.worker)
        steps = phase.epochs * self._plan.steps_per_epoch
        with self._replicas.strategy.scope():
            schedule: Any = make_schedule(optimization, phase.learning_rate, steps)
            if optimization.plateau is not None:
                schedule = self._scaled_rate = ScaledRate(schedule)
            optimizer = make_optimizer(optimization, schedule)
        self._set_rate()
        self._step = Step(
            self._learner, self._network, optimizer, self._replicas, optimization.clip_norm
        )
        updates = self._plan.steps_per_epoch * optimization.accumulate
        self._statistics = BatchStatistics(self._network, self._replicas, updates)

    def _set_rate(self) -> None:
        """Apply the reductions of the learning rate that follow from the rows of the phase."""
        plateau, progress = self._plan.optimization.plateau, self.progress
        if plateau is not None:
            rows = progress.rows[progress.epoch - progress.phase_epoch :]
            scale = rate_scale(plateau, map(self._value, rows), self._phase.learning_rate)
            self._scaled_rate.factor.assign(scale)

    @property
    def _phase(self) -> Phase:
        return self._plan.phases[self.progress.phase]

    def _is_phase_over(self) -> bool:
        patience = self._plan.patience
        is_stale = patience is not None and self.progress.stale_epochs >= patience
        return is_stale or self.progress.phase_epoch >= self._phase.epochs

    def _next_phase(self) -> None:
        self.progress.phase += 1
        self.progress.phase_epoch = self.progress.stale_epochs = 0
        self._restore_best()
        self._make_step()

    def _restore_best(self) -> None:
        if self._replicas.is_chief:
            self._checkpoints.read_best(self._variables)
        self._broadcast_network()

    def _run_epoch(self) -> None:
        """Run the epoch's remaining steps, validate, write a checkpoint, call the listener."""
        progress, plan = self.progress, self._plan
        accumulate = plan.optimization.accumulate
        first_batch, num_images = progress.epoch_step * accumulate, self._statistics.num_images
        self._batches.start_epoch(progress.epoch, first_batch, num_images)
        rate = self._step.learning_rate
        while progress.epoch_step < plan.steps_per_epoch:
            started = time.monotonic()
            batches = [self._batches.next_batch() for _ in range(accumulate)]
            waited = time.monotonic() - started
            if progress.epoch_step + 1 == plan.steps_per_epoch:
                rate = self._step.learning_rate
            result = self._run_step(batches)
            progress.step += 1
            progress.epoch_step += 1
            self._add(result, time.monotonic() - started, waited)
            self._on_step(progress)
            is_last = progress.epoch_step == plan.steps_per_epoch
            if plan.checkpoint_steps and progress.step % plan.checkpoint_steps == 0 and not is_last:
                self._replicas.average(moving_statistics(self._network))
                self._listener(Event(None, self._write_checkpoint(is_best=False)))
        self._replicas.average(moving_statistics(self._network))
        self._statistics.update(self._batches.first)
        row = self._row(rate)
        is_best = self._end_epoch(row)
        self._listener(Event(row, self._write_checkpoint(is_best=is_best)))

    def _run_step(self, batches: list[Batch]) -> StepResult:
        position = f"step {self.progress.step + 1}, epoch {self.progress.epoch + 1}"
        try:
            result = self._step(batches)
        except TrainingError as error:
            raise TrainingError(f"{position}: {error}; this step changed no weight") from error
        if result.num_images == 0:
            raise TrainingError(
                f"{position}: all images of the epoch are used, but it has "
                f"{self._plan.steps_per_epoch} steps; reduce the steps or add images"
            )
        return result

    def _add(self, result: StepResult, seconds: float, waited: float) -> None:
        """Add a step to the sums of the epoch."""
        images = result.num_images
        values = {f"loss_{name}": value * images for name, value in result.parts.items()}
        values |= {"loss": result.loss * images, "images": images}
        values |= {"seconds": seconds, "waited_seconds": waited}
        sums = self.progress.sums
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value

    def _row(self, rate: float) -> Row:
        """Return the metrics of the epoch that ended; validate if there are images for it."""
        progress = self.progress
        images = progress.sums["images"]
        row: Row = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "phase": self._phase.name,
            "seconds": progress.sums["seconds"],
            "waited_seconds": progress.sums["waited_seconds"],
            "learning_rate": rate,
        }
        row |= {k: total / images for k, total in progress.sums.items() if k.startswith("loss")}
        values = self._validator() if self._validator is not None else {}
        return row | {f"val_{k}" if k.startswith("loss") else k: v for k, v in values.items()}

    def _end_epoch(self, row: Row) -> bool:
        """Add the row to the history; return whether it is the best so far."""
        progress = self.progress
        value = self._value(row)
        best = progress.best_value
        is_better = best is None or value > best or (np.isnan(best) and not np.isnan(value))
        is_best = is_better or value == best
        if is_best:
            progress.best_value, progress.best_epoch = value, row["epoch"]
        progress.stale_epochs = 0 if is_better else progress.stale_epochs + 1
        progress.epoch += 1
        progress.phase_epoch += 1
        progress.epoch_step, progress.sums = 0, {}
        progress.rows.append(row)
        self._set_rate()
        return bool(is_best)

    def _value(self, row: Row) -> float:
        """Return the value of an epoch that selects the best one; larger is better."""
        value: float = -row["loss"] if self._validator is None else row[self._learner.metric]
        return value

    def _write_checkpoint(self, *, is_best: bool) -> Path | None:
        if not self._replicas.is_chief:
            return None
        return self._checkpoints.write(
            self.progress, self._variables, self._step.variables, is_best=is_best
        )
