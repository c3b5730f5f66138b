"""The learning rate falls when that of keras.callbacks.ReduceLROnPlateau falls."""

from types import SimpleNamespace

import numpy as np
import pytest

from cvbatch.config.train import PlateauConfig
from cvbatch.train.plateau import rate_scale

PEAK = 0.1
CONFIGS = [
    PlateauConfig(patience=1, factor=0.5),
    PlateauConfig(patience=2, factor=0.5, min_delta=0.05),
    PlateauConfig(patience=3, factor=0.1, cooldown=2),
    PlateauConfig(patience=1, factor=0.3, cooldown=4, min_rate=0.004),
    PlateauConfig(patience=2, factor=0.5, min_delta=0.0, min_rate=0.1),
]


def our_rates(config, values):
    """Return the rate after each epoch."""
    return [PEAK * rate_scale(config, values[: i + 1], PEAK) for i in range(len(values))]


def rates_of_keras(config, values):
    import keras

    callback = keras.callbacks.ReduceLROnPlateau(
        "metric", mode="max", factor=config.factor, patience=config.patience,
        min_delta=config.min_delta, cooldown=config.cooldown, min_lr=config.min_rate,
    )  # fmt: skip
    callback.set_model(SimpleNamespace(optimizer=SimpleNamespace(learning_rate=PEAK)))
    callback.on_train_begin()
    rates = []
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"metric": value})
        rates.append(callback.model.optimizer.learning_rate)
    return rates


@pytest.mark.keras
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_the_rate_falls_when_that_of_keras_falls(config, seed):
    rng = np.random.default_rng(seed)
    values = np.cumsum(rng.normal(0.01 * (3 - seed), 0.1, 40)).tolist()
    values[20] = float("nan")
    expected = rates_of_keras(config, values)
    assert our_rates(config, values) == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) > 1 or config.min_rate == PEAK


def test_a_value_that_is_not_a_number_is_never_the_best():
    config = PlateauConfig(patience=2, factor=0.5)
    nan = float("nan")
    assert our_rates(config, [nan, -3.0, -3.0, nan]) == [PEAK, PEAK, PEAK, PEAK / 2]
    assert our_rates(config, [nan, nan, -3.0]) == [PEAK, PEAK / 2, PEAK / 2]
