"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from cvbatch.config.train import OptimizerName, PlateauConfig, ScheduleName
from cvbatch.models.frameworks import keras, ops, schedules

Tensor = Any  # a scalar of Keras; Keras carries no type information
Rate = Any  # a number, or a keras LearningRateSchedule


@dataclass(frozen=True)
class Optimization:
    """Optimizer settings of all phases; each phase has its own peak learning rate."""

    optimizer: OptimizerName = "adamw"
    schedule: ScheduleName = "cosine"
    plateau: PlateauConfig | None = None  # of plateau: when the rate falls
    warmup: float = 0.05  # fraction of a phase's steps in which the rate rises to its peak
    final: float = 0.0  # of cosine and linear: rate at a phase's end, as a fraction of its peak
    drops: tuple[float, ...] = (0.6, 0.85)  # of step: fractions of a phase at which the rate drops
    drop_factor: float = 0.1  # of step: factor of each drop
    momentum: float = 0.9  # of sgd and rmsprop
    weight_decay: float = 1e-4  # decoupled, times the rate: of adamw and sgd
    clip_norm: float | None = None  # maximum global norm of the gradients
    accumulate: int = 1  # micro-batches of a step, on each worker


@keras.saving.register_keras_serializable("cvbatch")
class WarmUp(schedules.LearningRateSchedule):  # type: ignore[misc]  # Keras is untyped
    """Linear warm-up to `peak`, which is reached at step `steps` − 1; then the schedule `after`.

    Unlike Keras' warm-up, the first step has a rate above 0.

    Args:
        peak: highest learning rate.
        steps: number of warm-up steps.
        after: schedule from step `steps` on, counted from 0; None: constant `peak`.

    Source:
        Goyal et al., Accurate, Large Minibatch SGD, 2017, section 2.2.
    """

    def __init__(
        self,
        peak: float,
        steps: int,
        after: schedules.LearningRateSchedule | None = None,
    ) -> None:
        super().__init__()
        self.peak, self.steps, self.after = peak, steps, after

    def __call__(self, step: Tensor) -> Tensor:  # () → () float32
        """Return the learning rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        # Keras' schedules do not accept negative steps.
        steps_after = ops.maximum(step - self.steps, 0.0)
        later = self.peak * ops.ones(()) if self.after is None else self.after(steps_after)
        rising = self.peak * (step + 1) / max(self.steps, 1)
        return ops.where(step < self.steps, rising, later)

    def get_config(self) -> dict[str, Any]:
        """Return the serialized constructor arguments."""
        after = self.after and keras.saving.serialize_keras_object(self.after)
        return {"peak": self.peak, "steps": self.steps, "after": after}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WarmUp:
        """Return the schedule of a `get_config`."""
        after = config["after"] and keras.saving.deserialize_keras_object(config["after"])
        return cls(config["peak"], config["steps"], after)


class ScaledRate(schedules.LearningRateSchedule):  # type: ignore[misc]  # Keras is untyped
    """A schedule times a factor that is changed between steps.

    Args:
        schedule: learning rate by step.

    Attributes:
        factor: a keras.Variable, at first 1; create the schedule in the scope of the workers'
            strategy.
    """

    def __init__(self, schedule: schedules.LearningRateSchedule) -> None:
        super().__init__()
        self._schedule = schedule
        self.factor = keras.Variable(1.0, trainable=False, dtype="float32", name="rate_factor")

    def __call__(self, step: Tensor) -> Tensor:  # () → () float32
        """Return the learning rate of a step, counted from 0."""
        return self._schedule(step) * self.factor


def make_schedule(optimization: Optimization, peak: float, steps: int) -> WarmUp:
    """Return the learning-rate schedule of a phase: warm-up, then the schedule that is set.

    constant: stays at the peak, as plateau does until `ScaledRate` lowers it. linear: falls
    linearly to `final` · peak. cosine: falls to it along half a cosine (Loshchilov and Hutter,
    SGDR, 2017). step: is multiplied by `drop_factor` at each of `drops`. Linear and cosine start
    after the warm-up and end at the last step.

    Args:
        optimization: name and settings of the schedule.
        peak: highest learning rate.
        steps: number of steps of the phase.
    """
    warmup_steps = round(optimization.warmup * steps)
    decay_steps = max(1, steps - warmup_steps)
    final = optimization.final
    after: dict[ScheduleName, Callable[[], schedules.LearningRateSchedule | None]] = {
        "constant": lambda: None,
        "plateau": lambda: None,
        "linear": lambda: schedules.PolynomialDecay(peak, decay_steps, final * peak),
        "cosine": lambda: schedules.CosineDecay(peak, decay_steps, alpha=final),
        # A boundary in Keras is the last step with the rate before it.
        "step": lambda: schedules.PiecewiseConstantDecay(
            [max(0, round(drop * steps) - warmup_steps - 1) for drop in optimization.drops],
            [peak * optimization.drop_factor**i for i in range(len(optimization.drops) + 1)],
        ),
    }
    return WarmUp(peak, warmup_steps, after[optimization.schedule]())


class OptimizerEntry(NamedTuple):
    """How to build a Keras optimizer, and the memory of its state."""

    build: Callable[[Optimization, Rate], keras.optimizers.Optimizer]
    num_slots: int  # numbers of state per trained weight, at most
    convex_rate: float  # peak learning rate with which a head of one layer converges


def _sgd(optimization: Optimization, rate: Rate) -> keras.optimizers.Optimizer:
    decay = optimization.weight_decay or None
    return keras.optimizers.SGD(rate, momentum=optimization.momentum, weight_decay=decay)


OPTIMIZERS: dict[OptimizerName, OptimizerEntry] = {
    "sgd": OptimizerEntry(_sgd, 1, 1e-2),
    "adam": OptimizerEntry(lambda settings, rate: keras.optimizers.Adam(rate), 2, 1e-2),
    "adamw": OptimizerEntry(
        lambda settings, rate: keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay),
        2,
        1e-2,
    ),
    "rmsprop": OptimizerEntry(
        lambda settings, rate: keras.optimizers.RMSprop(rate, momentum=settings.momentum), 2, 1e-3
    ),
}


def make_optimizer(optimization: Optimization, rate: Rate) -> keras.optimizers.Optimizer:
    """Return a new Keras optimizer that neither clips nor accumulates: `Step` does both.

    Args:
        optimization: the optimizer's name and settings.
        rate: learning rate, a number or a schedule over steps.
    """
    return OPTIMIZERS[optimization.optimizer].build(optimization, rate)
