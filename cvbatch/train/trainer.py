"""A network is taught here, on one worker or on many: phases, epochs, the best kept, resumed.

It knows nothing of where the workers come from, and of the task only what `Learner` promises.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from cvbatch.core.errors import TrainingError
from cvbatch.train.batches import Batch, BatchSource, PaddedBatches
from cvbatch.train.checkpoints import Checkpoints, Progress, restore
from cvbatch.train.collectives import Replicas
from cvbatch.train.history import Row
from cvbatch.train.learners.base import Learner
from cvbatch.train.optimizers import Optimization, make_optimizer, make_schedule
from cvbatch.train.phases import Phase, freeze, moving_statistics
from cvbatch.train.step import Step, StepResult
from cvbatch.train.validation import ValidationBatches, Validator


@dataclass(frozen=True)
class Plan:
    """What a run is asked for; it goes on only from checkpoints of the same."""

    phases: tuple[Phase, ...]
    steps_per_epoch: int  # updates
    batch_size: int  # images of a micro-batch on one worker; fewer are padded
    optimization: Optimization = field(default_factory=Optimization)
    patience: int | None = None  # epochs without a better one after which a phase ends
    checkpoint_steps: int | None = None  # between checkpoints inside an epoch; each ends with one
    keep: int = 3  # checkpoints

    def as_json(self, num_workers: int) -> dict[str, Any]:
        """Return all that decides about the weights, as words and numbers.

        Of the batch size, the workers and the micro-batches only their product does.
        """
        said = asdict(self)
        accumulate = said["optimization"].pop("accumulate")
        images = said.pop("batch_size") * accumulate * num_workers
        del said["patience"], said["keep"]
        return {**said, "images_per_step": images}


class Event(NamedTuple):
    """What a listener hears, on every worker at the same step."""

    row: Row | None  # of the epoch that just ended; None inside one
    checkpoint: Path | None  # that was just written; None on workers that write none


class Trainer:
    """Teaches a learner's network as planned, and leaves in it the best weights of all epochs.

    The best epoch is that of the highest `learner.metric` on the validation images, or of the
    lowest loss where there are none. A phase begins with the best weights of those before.

    folder: of the checkpoints; only the first worker reads and writes there. A run that finds
    checkpoints in it goes on from the last. resume: another one to go on from. network and
    judged: what is trained and validated in place of the learner's own views, when batches hold
    features: the heads of `cvbatch.train.feature_cache.split`. The learner's network is built in
    the scope of the replicas' strategy.
    """

    def __init__(
        self,
        learner: Learner,
        plan: Plan,
        feed: BatchSource,
        folder: Path,
        *,
        validation: ValidationBatches | None = None,
        replicas: Replicas | None = None,
        listener: Callable[[Event], None] = lambda event: None,
        resume: Path | None = None,
        network: keras.Model | None = None,
        judged: keras.Model | None = None,
    ) -> None:
        self._learner, self._plan, self._listener = learner, plan, listener
        self._replicas = replicas or Replicas()
        self._network = network or learner.training_model
        self._supply = PaddedBatches(feed, plan.batch_size, self._replicas.worker)
        self._judging: Validator | None = None
        if validation is not None:
            self._judging = Validator(learner, judged or learner.model, validation, self._replicas)
        described = plan.as_json(self._replicas.num_workers)
        self._checkpoints = Checkpoints(folder, plan.keep, described)
        self._resume = resume
        views = (learner.training_model, learner.model)
        found = {id(v): v for view in views for v in view.variables}
        self._variables = list(found.values())
        weights = {id(weight) for view in views for weight in view.weights}
        self._seeds = [v for v in self._variables if id(v) not in weights]
        self._step: Step
        self.progress = Progress()

    def run(self) -> list[Row]:
        """Train to the end of the last phase; return the history, a row an epoch.

        Raises:
            TrainingError: the loss is no number, the data end before the epoch, a checkpoint
                cannot be written or read.
        """
        self._begin()
        while True:
            while not self._is_phase_over():
                self._epoch()
            if self.progress.phase + 1 == len(self._plan.phases):
                break
            self._next_phase()
        self._take_best()
        return self.progress.rows

    def _begin(self) -> None:
        """Stand where the last checkpoint stood, or at the start; all workers alike."""
        arrays: list[np.ndarray] = []
        said, source = b"", None
        if self._replicas.is_chief:
            source = self._resume or self._checkpoints.latest()
            if source is not None:
                self.progress, arrays = self._checkpoints.read(source, self._variables)
                said = json.dumps(asdict(self.progress)).encode()
        if said := self._replicas.all_gather(said)[0]:
            self.progress = Progress(**json.loads(said))
        self._make_step()
        if source is not None:
            restore(self._step.variables, arrays, source)
        self._replicas.broadcast(self._step.variables)
        self._share_network()

    def _share_network(self) -> None:
        self._replicas.broadcast(self._variables)
        self._replicas.offset_seeds(self._seeds)

    def _make_step(self) -> None:
        phase, how = self._phase, self._plan.optimization
        if self._network is self._learner.training_model:
            freeze(self._network, phase)
        else:
            self._network.trainable = True
        steps = phase.epochs * self._plan.steps_per_epoch
        with self._replicas.strategy.scope():
            rate = make_schedule(how, phase.learning_rate, steps)
            optimizer = make_optimizer(how, rate)
        self._step = Step(self._learner, self._network, optimizer, self._replicas, how.clip_norm)

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
        self._take_best()
        self._make_step()

    def _take_best(self) -> None:
        if self._replicas.is_chief:
            self._checkpoints.read_best(self._variables)
        self._share_network()

    def _epoch(self) -> None:
        """Take the epoch's steps that are left, judge, write a checkpoint, tell the listener."""
        now, plan = self.progress, self._plan
        accumulate = plan.optimization.accumulate
        self._supply.begin(now.epoch, now.epoch_step * accumulate)
        rate = self._step.learning_rate
        while now.epoch_step < plan.steps_per_epoch:
            started = time.monotonic()
            batches = [self._supply.take() for _ in range(accumulate)]
            waited = time.monotonic() - started
            if now.epoch_step + 1 == plan.steps_per_epoch:
                rate = self._step.learning_rate
            outcome = self._one_step(batches)
            now.step += 1
            now.epoch_step += 1
            self._add(outcome, time.monotonic() - started, waited)
            is_last = now.epoch_step == plan.steps_per_epoch
            if plan.checkpoint_steps and now.step % plan.checkpoint_steps == 0 and not is_last:
                self._replicas.average(moving_statistics(self._network))
                self._listener(Event(None, self._checkpoint(is_best=False)))
        self._replicas.average(moving_statistics(self._network))
        row = self._row(rate)
        is_best = self._note(row)
        self._listener(Event(row, self._checkpoint(is_best=is_best)))

    def _one_step(self, batches: list[Batch]) -> StepResult:
        where = f"step {self.progress.step + 1}, epoch {self.progress.epoch + 1}"
        try:
            outcome = self._step(batches)
        except TrainingError as error:
            raise TrainingError(f"{where}: {error}; no weight was changed by that step") from error
        if outcome.num_images == 0:
            raise TrainingError(
                f"{where}: the images of the epoch are used up, but it has "
                f"{self._plan.steps_per_epoch} steps; take fewer, or give more images"
            )
        return outcome

    def _add(self, outcome: StepResult, seconds: float, waited: float) -> None:
        images = outcome.num_images
        told = {f"loss_{name}": value * images for name, value in outcome.parts.items()}
        told |= {"loss": outcome.loss * images, "images": images}
        told |= {"seconds": seconds, "waited_seconds": waited}
        sums = self.progress.sums
        for name, value in told.items():
            sums[name] = sums.get(name, 0.0) + value

    def _row(self, rate: float) -> Row:
        """Return the row of the epoch that just ended."""
        now = self.progress
        images = now.sums["images"]
        row: Row = {
            "epoch": now.epoch + 1,
            "step": now.step,
            "phase": self._phase.name,
            "seconds": now.sums["seconds"],
            "waited_seconds": now.sums["waited_seconds"],
            "learning_rate": rate,
        }
        row |= {k: total / images for k, total in now.sums.items() if k.startswith("loss")}
        return row | (self._judging() if self._judging is not None else {})

    def _note(self, row: Row) -> bool:
        """Close the epoch; say whether it is the best so far."""
        now = self.progress
        value = -row["loss"] if self._judging is None else row[self._learner.metric]
        best = now.best_value
        is_best = best is None or value > best or (np.isnan(best) and not np.isnan(value))
        if is_best:
            now.best_value, now.best_epoch = value, row["epoch"]
        now.stale_epochs = 0 if is_best else now.stale_epochs + 1
        now.epoch += 1
        now.phase_epoch += 1
        now.epoch_step, now.sums = 0, {}
        now.rows.append(row)
        return bool(is_best)

    def _checkpoint(self, *, is_best: bool) -> Path | None:
        if not self._replicas.is_chief:
            return None
        step = self._step.variables
        return self._checkpoints.write(self.progress, self._variables, step, is_best=is_best)
