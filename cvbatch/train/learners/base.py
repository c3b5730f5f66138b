"""Learner protocol, and the table of learners by task.

A learner has targets, losses and metrics of one task. The training loop uses this protocol alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np

from cvbatch.config.train import TrainJob
from cvbatch.core.tasks import Task
from cvbatch.core.types import TrainingExample
from cvbatch.train.learners.classification import Classification, Segmentation
from cvbatch.train.learners.detection import Localization, detection
from cvbatch.train.learners.metrics import MetricSet
from cvbatch.train.learners.targets import Targets

Tensor = Any  # a tensor of Keras' backend; Keras carries no type information


class Learner(Protocol):
    """How a network learns a task.

    The loss of a step is Σ loss_weights[name] · Σ losses[name] / images. `targets` and `losses`
    are of any image size that `graphs.resized` gives `trained`; `measure` is of the model's own.
    """

    model: keras.Model  # what is saved; it decodes itself
    training_model: (
        keras.Model
    )  # its layers up to raw numbers: (B, H, W, channels) 0..255 → outputs
    loss_weights: dict[str, float]
    metric: str  # of `summarize`, by which the best checkpoint is chosen: larger is better

    def targets(self, examples: Sequence[TrainingExample]) -> Targets:
        """Return what `trained` should answer: arrays of fixed shape, (B, ...)."""

    def losses(self, outputs: Any, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parts of the loss, each (B,) float32, an image's its own alone."""

    def evaluate(self, outputs: Any, examples: Sequence[TrainingExample]) -> MetricSet:
        """Return the scores of what `model` answered, its outputs as NumPy arrays."""

    def empty_metrics(self) -> MetricSet:
        """Return the scores of no image, to merge others into."""

    def summarize(self, measures: MetricSet) -> dict[str, float]:
        """Return the figures of merged scores; NaN where there is nothing to form one of."""


class LearnerEntry(NamedTuple):
    """How to build the learner of a task.

    Args:
        build: function of (model, num_classes, options by name).
        options: the options that a training job sets; the others have the defaults of `build`.
    """

    build: Callable[..., Learner]
    options: Callable[[TrainJob], dict[str, Any]] = lambda job: {}


LEARNERS: dict[Task, LearnerEntry] = {
    "classification": LearnerEntry(
        Classification, lambda job: {"multi_label": job.model.multi_label}
    ),
    "segmentation": LearnerEntry(
        Segmentation,
        lambda job: {
            "class_weights": job.training.class_weights,
            "ignored": job.training.ignored_class,
        },
    ),
    "detection": LearnerEntry(detection),
    "localization": LearnerEntry(Localization),
}


def answers(model: keras.Model, pixels: np.ndarray) -> Any:  # (B, H, W, channels) → NumPy arrays
    """Return what a model says of a batch, as `measure` takes it."""
    said = model(pixels.astype(np.float32), training=False)
    return keras.tree.map_structure(lambda tensor: keras.ops.convert_to_numpy(tensor), said)
