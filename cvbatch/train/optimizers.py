"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import ops
from keras.optimizers import schedules

from cvbatch.config.train import OptimizerName, ScheduleName
from cvbatch.core.errors import ConfigError

Tensor = Any  # a scalar of Keras; Keras carries no type information
Rate = Any  # a number, or a schedule of Keras over steps


@dataclass(frozen=True)
class Optimization:
    """How the weights are moved, in every phase alike; the rate itself is the phase's."""

    optimizer: OptimizerName = "adamw"
    schedule: ScheduleName = "cosine"
    warmup: float = 0.05  # part of a phase's steps in which the rate rises to its peak
    final: float = 0.0  # rate at a phase's end, as a part of its peak: of cosine and linear
    drops: tuple[float, ...] = (0.6, 0.85)  # parts of a phase's steps where "step" lowers the rate
    drop_factor: float = 0.1  # by which it does
    momentum: float = 0.9  # of sgd and rmsprop
    weight_decay: float = 1e-4  # decoupled, times the rate: of adamw and sgd
    clip_norm: float | None = None  # of all gradients together
    accumulate: int = 1  # micro-batches of a step, on each worker


@keras.saving.register_keras_serializable("cvbatch")
class WarmUp(schedules.LearningRateSchedule):  # type: ignore[misc]  # Keras is untyped
    """Rises in equal parts to `peak` at step `steps` − 1, then is `after`, from its step 0 on.

    Goyal et al., Accurate, Large Minibatch SGD, 2017, section 2.2; unlike Keras' own warm-up,
    the first step has a rate above 0. after: None for `peak` for ever.
    """

    def __init__(
        self, peak: float, steps: int, after: schedules.LearningRateSchedule | None = None
    ) -> None:
        super().__init__()
        self.peak, self.steps, self.after = peak, steps, after

    def __call__(self, step: Tensor) -> Tensor:  # () → () float32
        """Return the rate of a step, counted from 0."""
        at = ops.cast(step, "float32")
        # Keras' own schedules take no step before their first.
        behind = ops.maximum(at - self.steps, 0.0)
        later = self.peak * ops.ones(()) if self.after is None else self.after(behind)
        rising = self.peak * (at + 1) / max(self.steps, 1)
        return ops.where(at < self.steps, rising, later)

    def get_config(self) -> dict[str, Any]:
        """Return what the schedule is made again from."""
        after = self.after and keras.saving.serialize_keras_object(self.after)
        return {"peak": self.peak, "steps": self.steps, "after": after}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WarmUp:
        """Return the schedule that `get_config` told."""
        after = config["after"] and keras.saving.deserialize_keras_object(config["after"])
        return cls(config["peak"], config["steps"], after)


def make_schedule(how: Optimization, peak: float, steps: int) -> WarmUp:
    """Return the rate over the steps of a phase: it rises to its peak, then goes as `how` says.

    constant: stays. linear: falls to `final` · peak in a straight line. cosine: falls there along
    half a cosine (Loshchilov and Hutter, SGDR, 2017). step: is multiplied by `drop_factor` at
    each of the `drops`. All count from the end of the warm-up to the last step.

    Raises:
        ConfigError: the schedule is unknown.
    """
    rising = round(how.warmup * steps)
    falling = max(1, steps - rising)
    after: dict[str, Callable[[], schedules.LearningRateSchedule | None]] = {
        "constant": lambda: None,
        "linear": lambda: schedules.PolynomialDecay(peak, falling, how.final * peak),
        "cosine": lambda: schedules.CosineDecay(peak, falling, alpha=how.final),
        # A boundary of Keras is the last step of the rate before it.
        "step": lambda: schedules.PiecewiseConstantDecay(
            [max(0, round(part * steps) - rising - 1) for part in how.drops],
            [peak * how.drop_factor**i for i in range(len(how.drops) + 1)],
        ),
    }
    return WarmUp(peak, rising, _known(after, how.schedule, "learning-rate schedule")())


class OptimizerEntry(NamedTuple):
    """How to build an optimizer of Keras, and the memory of its state."""

    build: Callable[[Optimization, Rate], keras.optimizers.Optimizer]
    num_slots: int  # numbers of its state for each trained weight, at most


def _sgd(how: Optimization, rate: Rate) -> keras.optimizers.Optimizer:
    decay = how.weight_decay or None
    return keras.optimizers.SGD(rate, momentum=how.momentum, weight_decay=decay)


OPTIMIZERS: dict[OptimizerName, OptimizerEntry] = {
    "sgd": OptimizerEntry(_sgd, 1),
    "adam": OptimizerEntry(lambda how, rate: keras.optimizers.Adam(rate), 2),
    "adamw": OptimizerEntry(
        lambda how, rate: keras.optimizers.AdamW(rate, weight_decay=how.weight_decay), 2
    ),
    "rmsprop": OptimizerEntry(
        lambda how, rate: keras.optimizers.RMSprop(rate, momentum=how.momentum), 2
    ),
}


def make_optimizer(how: Optimization, rate: Rate) -> keras.optimizers.Optimizer:
    """Return a new optimizer of Keras. It neither clips nor accumulates gradients: steps do.

    Args:
        how: the optimizer's name and settings.
        rate: learning rate, a number or a schedule over steps.

    Raises:
        ConfigError: the optimizer is unknown.
    """
    entry: OptimizerEntry = _known(OPTIMIZERS, how.optimizer, "optimizer")
    return entry.build(how, rate)


def _known(table: Mapping[Any, Any], name: str, what: str) -> Any:
    if name not in table:
        raise ConfigError(f"no {what} is called {name!r}; there are {', '.join(sorted(table))}")
    return table[name]
