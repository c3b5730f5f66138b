"""What class weights and the Dice loss do for a class of few pixels, with a known optimum."""

import math

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.train.batches import Batch
from cvbatch.train.class_weights import balanced_weights
from cvbatch.train.learners.classification import ClassOptions, Segmentation
from cvbatch.train.learners.losses import ClassLoss
from cvbatch.train.step import Step

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SIDE, NOISE = 32, 30.0  # a line is brighter by one standard deviation of the noise


def lines(count, seed):
    """Return grey images with a line of one pixel, 3 % of the pixels, and their masks."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((count, SIDE, SIDE), np.uint8)
    mask[np.arange(count), rng.integers(0, SIDE, count)] = 1
    grey = np.clip(rng.normal(110 + NOISE * mask, NOISE), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1), mask


def recall_of_lines(options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(2, 1, activation="softmax")(layers.Rescaling(1 / NOISE, -4)(inputs))
    model = keras.Model(inputs, x)
    learner = Segmentation(model, 2, options=options)
    step = Step(learner, learner.training_model, keras.optimizers.Adam(0.05))
    pixels, mask = lines(32, seed=0)
    for _ in range(150):
        step([Batch(pixels, {"mask": mask}, len(pixels))])
    pixels, mask = lines(32, seed=1)
    predicted = np.asarray(model(pixels.astype(np.float32))).argmax(axis=-1)
    return float((predicted[mask == 1] == 1).mean())


def normal_cdf(x):
    return (1 + math.erf(x / math.sqrt(2))) / 2


def test_balanced_weights_move_the_decision_to_the_middle_of_both_classes():
    """A pixel is a line where its log-odds exceed those of the class frequencies, 3 % to 97 %."""
    _, mask = lines(32, seed=0)
    counts = np.bincount(mask.ravel())
    log_odds = math.log(counts[0] / counts[1])
    balanced = ClassLoss(class_weights=tuple(balanced_weights(counts)))

    plain = recall_of_lines(ClassOptions())
    assert plain == pytest.approx(normal_cdf(0.5 - log_odds), abs=0.01)
    assert plain < 0.01
    weighted = recall_of_lines(ClassOptions(loss=balanced))
    assert weighted == pytest.approx(normal_cdf(0.5), abs=0.05)


def test_a_dice_loss_finds_more_of_a_thin_class():
    assert recall_of_lines(ClassOptions(dice=2.0)) > 0.05
