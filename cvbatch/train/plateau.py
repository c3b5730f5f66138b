"""Reduce the learning rate when the validation metric no longer improves.

Keras' ReduceLROnPlateau cannot be used: its state is not part of a checkpoint. Here there is none:
the reductions follow from the history.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from cvbatch.config.train import PlateauConfig


def rate_scale(config: PlateauConfig, values: Iterable[float], peak: float) -> float:
    """Return the factor of the learning rate after some epochs of a phase.

    Args:
        config: the settings.
        values: of the metric after each epoch, larger is better; NaN is no improvement.
        peak: learning rate of the phase.

    Source:
        keras.callbacks.ReduceLROnPlateau, which takes the same decisions.
    """
    rate, best, wait, cooldown = peak, -math.inf, 0, 0
    for value in values:
        if cooldown:
            cooldown, wait = cooldown - 1, 0
        if value - config.min_delta > best:
            best, wait = value, 0
        elif not cooldown:
            wait += 1
            if wait >= config.patience and rate > config.min_rate:
                rate = max(rate * config.factor, config.min_rate)
                cooldown, wait = config.cooldown, 0
    return rate / peak
