"""A small training task: classify which of three colours is strongest in an image."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from cvbatch.core.types import TrainingExample
from cvbatch.metrics.classification import Confusion
from cvbatch.train.batches import Batch
from cvbatch.train.learners.losses import ClassLoss

SIDE, COLOURS = 8, 3


class StoppedError(Exception):
    """Raised by a listener to stop a run."""


def stop_at(number):
    """Return a listener that stops a run at checkpoint `number`, from 1."""
    events = []

    def listener(event):
        events.append(event)
        if len(events) == number:
            raise StoppedError

    return listener


class ColourLearner:
    """Cross-entropy and a second loss, so that loss weights have an effect; metric: accuracy."""

    metric = "accuracy"

    def __init__(self, model, trained=None):
        self.model, self.graph, self.training_model = model, model, trained or model
        self.loss_weights = {"cross_entropy": 0.8, "square": 0.2}

    def targets(self, examples):
        return targets_of(np.array([example.class_ids[0] for example in examples]))

    def losses(self, outputs, targets):
        truth = ops.one_hot(targets["colour"], COLOURS)
        return {
            "cross_entropy": -ops.sum(truth * ops.log(outputs + 1e-7), axis=-1),
            "square": ops.sum(ops.square(truth - outputs), axis=-1) * targets["importance"],
        }

    def empty_metrics(self):
        return Confusion.empty(COLOURS)

    def evaluate(self, outputs, examples):
        truth = np.array([example.class_ids[0] for example in examples])
        return Confusion.empty(COLOURS).add(truth, outputs.argmax(-1))

    def summarize(self, partial):
        return {"accuracy": partial.accuracy, "mean_iou": partial.mean_iou}

    def per_class(self, partial):
        return {"recall": partial.per_class()["recall"]}


class WeightedLearner(ColourLearner):
    """The same with the focal loss of a job with class weights."""

    LOSS = ClassLoss(gamma=1.0, label_smoothing=0.1, class_weights=(3.0, 1.0, 0.2))

    def losses(self, outputs, targets):
        logits = ops.log(outputs + 1e-7)
        terms = self.LOSS.of_class(logits, targets["colour"])
        return super().losses(outputs, targets) | {"cross_entropy": terms}


def images(count, seed=0):  # → (count, SIDE, SIDE, 3) uint8, (count,) int32
    """Return noise in which one colour channel is stronger, and that channel."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, COLOURS, count).astype(np.int32)
    pixels = rng.integers(0, 180, (count, SIDE, SIDE, 3))
    pixels[np.arange(count), :, :, colour] += 40
    return pixels.astype(np.uint8), colour


def targets_of(colour):
    importance = np.linspace(0.5, 1.5, 64, dtype=np.float32)[np.arange(len(colour)) % 64]
    targets = {"colour": colour, "importance": np.where(colour == 1, importance[0], 1.0)}
    targets["importance"] = targets["importance"].astype(np.float32)
    return targets


def batch_of(pixels, colour, num_real=None):
    return Batch(pixels, targets_of(colour), len(colour) if num_real is None else num_real)


def examples_of(pixels, colour):
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    return [
        TrainingExample(p, np.array([c], np.int32), *none)
        for p, c in zip(pixels, colour, strict=True)
    ]


def batches_of(pixels, colour, size, worker=0, workers=1):
    """Return shuffled batches by epoch; a worker gets its slice of every global batch."""

    def batches(epoch, first):
        order = np.random.default_rng((7, epoch)).permutation(len(colour))
        for start in range(first * size * workers, len(order), size * workers):
            rows = order[start : start + size * workers][worker * size : (worker + 1) * size]
            if len(rows):
                yield batch_of(pixels[rows], colour[rows])

    return batches


def plain(seed=0, regularizer=None):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(6, 3, activation="relu", name="first", kernel_regularizer=regularizer)(x)
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(COLOURS, activation="softmax", name="scores")(x))


def normalized(seed=0, is_frozen=False, dropout=0.0):
    """A network with batch normalisation, with random statistics and weights."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(6, 3, use_bias=False, name="first")(x)
    x = layers.BatchNormalization(name="norm1", momentum=0.9)(x)
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="second")(layers.ReLU()(x))
    x = layers.BatchNormalization(name="norm2", momentum=0.9)(x)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU()(x))
    x = layers.Dropout(dropout, name="drop")(x) if dropout else x
    model = keras.Model(inputs, layers.Dense(COLOURS, activation="softmax", name="scores")(x))
    rng = np.random.default_rng(seed)
    for name in ("norm1", "norm2"):
        layer = model.get_layer(name)
        layer.set_weights([rng.uniform(0.3, 1.2, w.shape) for w in layer.get_weights()])
        layer.trainable = not is_frozen
    return model
