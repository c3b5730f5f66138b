"""Learner protocol, and the table of learners by task.

The training loop knows a task only by this protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from cvbatch.config.train import TrainJob
from cvbatch.core.tasks import Task
from cvbatch.core.types import TrainingExample
from cvbatch.models.class_head import ClassScores
from cvbatch.models.frameworks import keras
from cvbatch.train.learners.classification import (
    Classification,
    ClassOptions,
    Segmentation,
    class_scores,
    pixel_scores,
)
from cvbatch.train.learners.detection import Localization, box_scores, detection
from cvbatch.train.learners.losses import ClassLoss
from cvbatch.train.learners.metrics import MetricSet
from cvbatch.train.learners.targets import Targets

Tensor = Any  # a tensor of Keras' backend; Keras carries no type information
_FOCAL_GAMMA = 2.0  # of the paper, and of keras.losses


class Learner(Protocol):
    """Targets, losses and validation metrics of one task, for one network.

    The loss of a step is Σ loss_weights[name] · Σ losses[name] / images. `targets` and `losses`
    accept all image sizes that `graph_surgery.with_image_size` supports for `training_model`;
    `evaluate` accepts the size of `model`.

    Attributes:
        model: the network that is saved; its outputs are decoded.
        graph: `model` as one flat graph of the same layers (`graph_surgery.flatten`).
        training_model: the part of `graph` up to its raw outputs: (B, H, W, channels) 0..255 →
            logits and other raw numbers.
        loss_weights: weight of each loss term by name.
        metric: key of `summarize` that selects the best checkpoint; larger is better.
    """

    model: keras.Model
    graph: keras.Model
    training_model: keras.Model
    loss_weights: dict[str, float]
    metric: str

    def targets(self, examples: Sequence[TrainingExample]) -> Targets:
        """Return the targets of `training_model` by name, arrays of fixed shape (B, ...)."""

    def losses(self, outputs: Any, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss terms, each (B,) float32; an image's loss depends on that image only."""

    def evaluate(self, outputs: Any, examples: Sequence[TrainingExample]) -> MetricSet:
        """Return the metrics of the outputs of `model`, given as NumPy arrays."""

    def empty_metrics(self) -> MetricSet:
        """Return the metrics of no image, to merge others into."""

    def summarize(self, metrics: MetricSet) -> dict[str, float]:
        """Return the values of merged metrics by name; NaN where undefined."""

    def per_class(self, metrics: MetricSet) -> dict[str, np.ndarray]:
        """Return values of each class, (C,), by name; NaN where undefined. The first is shown."""


class LearnerEntry(NamedTuple):
    """How to build the learner of a task.

    Args:
        build: function of (model, num_classes, options by name).
        class_scores: function of (flat model, name of the output or None): all class scores of the
            model that belong to the same classes.
        options: training job → options of `build`; all others have their defaults.
    """

    build: Callable[..., Learner]
    class_scores: Callable[[keras.Model, str | None], list[ClassScores]]
    options: Callable[[TrainJob], dict[str, Any]] = lambda job: {}


def _class_loss(job: TrainJob) -> ClassLoss:
    """Return the loss of class scores of a job whose class weights are a list, or absent."""
    settings, weights = job.training.loss, job.training.class_weights
    gamma = 0.0
    if settings.name == "focal":
        gamma = _FOCAL_GAMMA if settings.gamma is None else settings.gamma
    class_weights = None if weights is None else tuple(float(weight) for weight in weights)
    return ClassLoss(gamma, settings.label_smoothing, class_weights)


def _class_options(job: TrainJob) -> ClassOptions:
    config, dice = job.model, job.training.loss.dice
    return ClassOptions(config.output, config.activation, _class_loss(job), dice)


def _box_options(job: TrainJob) -> dict[str, Any]:
    return {"class_loss": _class_loss(job)}


LEARNERS: dict[Task, LearnerEntry] = {
    "classification": LearnerEntry(
        Classification,
        class_scores,
        lambda job: {"multi_label": job.model.multi_label, "options": _class_options(job)},
    ),
    "segmentation": LearnerEntry(
        Segmentation,
        pixel_scores,
        lambda job: {"options": _class_options(job), "ignored": job.training.ignored_class},
    ),
    "detection": LearnerEntry(detection, box_scores, _box_options),
    "localization": LearnerEntry(Localization, box_scores, _box_options),
}
