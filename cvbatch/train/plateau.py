"""Reduce the learning rate when the validation metric no longer improves.

Keras' ReduceLROnPlateau cannot be used: its state is not part of a checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cvbatch.config.train import PlateauConfig


@dataclass(frozen=True)
class PlateauState:
    """State of a phase after each epoch; JSON-ready, as part of a checkpoint.

    Attributes:
        scale: factor of the phase's learning rate.
        best: the best value so far; None: none yet.
        wait: epochs without improvement, since the last one or the last reduction.
        cooldown: epochs that are still not counted.
    """

    scale: float = 1.0
    best: float | None = None
    wait: int = 0
    cooldown: int = 0

    def after_epoch(self, config: PlateauConfig, value: float, peak: float) -> PlateauState:
        """Return the state after an epoch.

        Args:
            config: the settings.
            value: of the metric, larger is better; NaN is no improvement.
            peak: learning rate of the phase.

        Source:
            keras.callbacks.ReduceLROnPlateau, which takes the same decisions.
        """
        cooldown = max(self.cooldown - 1, 0)
        wait = 0 if self.cooldown else self.wait
        is_first = self.best is None and not math.isnan(value)
        if is_first or (self.best is not None and value - config.min_delta > self.best):
            return replace(self, best=value, wait=0, cooldown=cooldown)
        if cooldown:
            return replace(self, wait=wait, cooldown=cooldown)
        wait += 1
        rate = self.scale * peak
        if wait < config.patience or rate <= config.min_rate:
            return replace(self, wait=wait, cooldown=cooldown)
        scale = max(rate * config.factor, config.min_rate) / peak
        return replace(self, scale=scale, wait=0, cooldown=config.cooldown)
