"""Learning-rate schedules and optimizers, compared with their formulas in plain Python."""

import math
from typing import get_args

import keras
import numpy as np
import pytest

from cvbatch.config.train import OptimizerName
from cvbatch.train.optimizers import (
    OPTIMIZERS,
    Optimization,
    WarmUp,
    make_optimizer,
    make_schedule,
)

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
PEAK, STEPS, WARM = 0.4, 50, 10


def rates(optimization, steps=STEPS):
    schedule = make_schedule(optimization, PEAK, steps)
    return np.array([float(schedule(step)) for step in range(steps)])


def formula(name, step):
    if step < WARM:
        return PEAK * (step + 1) / WARM
    part = (step - WARM) / (STEPS - WARM)
    if name == "linear":
        return PEAK * (0.1 + 0.9 * (1 - part))
    if name == "cosine":
        return PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi * part)) / 2)
    if name == "step":
        return PEAK * 0.1 ** ((step >= 30) + (step >= 40))
    return PEAK


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "step"])
def test_a_phase_of_one_step_has_the_peak_rate(name):
    optimization = Optimization(schedule=name, warmup=0.0, drops=(1.0,))

    assert rates(optimization, 1).tolist() == pytest.approx([PEAK])


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "step"])
def test_a_schedule_follows_its_formula(name):
    optimization = Optimization(schedule=name, warmup=0.2, final=0.1, drops=(0.6, 0.8))
    expected = [formula(name, step) for step in range(STEPS)]

    np.testing.assert_allclose(rates(optimization), expected, rtol=1e-5)


def test_after_its_end_a_rate_is_constant():
    schedule = make_schedule(Optimization(schedule="linear", final=0.25), PEAK, STEPS)

    assert float(schedule(10 * STEPS)) == pytest.approx(PEAK / 4)


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_a_schedule_survives_serialization(name):
    schedule = make_schedule(Optimization(schedule=name), PEAK, STEPS)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))

    assert isinstance(again, WarmUp)
    assert [float(again(s)) for s in range(STEPS)] == [float(schedule(s)) for s in range(STEPS)]


def test_every_optimizer_of_a_job_file_is_in_the_table():
    assert list(OPTIMIZERS) == list(get_args(OptimizerName))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_num_slots_is_what_keras_allocates(name):
    weight = keras.Variable(np.zeros(5, np.float32))
    optimizer = make_optimizer(Optimization(optimizer=name), 0.1)
    num_settings = len(optimizer.variables)  # the step counter and the rate
    optimizer.build([weight])

    assert len(optimizer.variables) - num_settings == OPTIMIZERS[name].num_slots


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_has_the_rate_and_does_not_clip_or_accumulate(name):
    optimization = Optimization(optimizer=name, clip_norm=1.0, accumulate=4)
    optimizer = make_optimizer(optimization, make_schedule(optimization, PEAK, STEPS))

    assert type(optimizer).__name__.lower() == name
    assert float(optimizer.learning_rate) == pytest.approx(PEAK / round(0.05 * STEPS))
    assert optimizer.global_clipnorm is None
    assert optimizer.gradient_accumulation_steps is None


RATE, MOMENTUM, DECAY = 0.1, 0.7, 0.3
RHO, BETA_1, BETA_2, EPSILON = 0.9, 0.9, 0.999, 1e-7  # Keras' defaults


def sgd(w, gradients):
    velocity = 0.0
    for g in gradients:
        w = w - RATE * DECAY * w
        velocity = MOMENTUM * velocity - RATE * g
        w = w + velocity
    return w


def rmsprop(w, gradients):
    mean_square = momentum = 0.0
    for g in gradients:
        mean_square = RHO * mean_square + (1 - RHO) * g * g
        momentum = MOMENTUM * momentum + RATE * g / math.sqrt(mean_square + EPSILON)
        w = w - momentum
    return w


def adam(w, gradients, decay=0.0):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        w = w - RATE * decay * w
        m, v = BETA_1 * m + (1 - BETA_1) * g, BETA_2 * v + (1 - BETA_2) * g * g
        rate = RATE * math.sqrt(1 - BETA_2**t) / (1 - BETA_1**t)
        w = w - rate * m / (math.sqrt(v) + EPSILON)
    return w


def adamw(w, gradients):
    return adam(w, gradients, DECAY)


@pytest.mark.parametrize("formula_of", [sgd, rmsprop, adam, adamw])
def test_an_optimizer_follows_its_formula(formula_of):
    optimization = Optimization(
        optimizer=formula_of.__name__, momentum=MOMENTUM, weight_decay=DECAY
    )
    optimizer = make_optimizer(optimization, RATE)
    start, gradients = [2.0, -1.0], [[1.0, -3.0], [0.5, 2.0], [-2.0, 0.25]]
    weights = keras.Variable(np.array(start, np.float32))
    for gradient in gradients:
        optimizer.apply([np.array(gradient, np.float32)], [weights])
    expected = [
        formula_of(w, column) for w, column in zip(start, zip(*gradients, strict=True), strict=True)
    ]
    np.testing.assert_allclose(np.asarray(weights.value), expected, rtol=1e-5)
