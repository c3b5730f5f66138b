"""Learner protocol, and the table of learners by task.

The training loop knows a task only by this protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from cvbatch.config.train import TrainJob
from cvbatch.core.tasks import Task
from cvbatch.core.types import TrainingExample
from cvbatch.models.frameworks import keras
from cvbatch.train.learners.classification import Classification, Segmentation
from cvbatch.train.learners.detection import Localization, detection
from cvbatch.train.learners.metrics import MetricSet
from cvbatch.train.learners.targets import Targets

Tensor = Any  # a tensor of Keras' backend; Keras carries no type information


class Learner(Protocol):
    """Targets, losses and validation metrics of one task, for one network.

    The loss of a step is Σ loss_weights[name] · Σ losses[name] / images. `targets` and `losses`
    accept all image sizes that `graph_surgery.with_image_size` supports for `training_model`;
    `evaluate` accepts the size of `model`.

    Attributes:
        model: the network that is saved; its outputs are decoded.
        training_model: the layers of `model` up to its raw outputs: (B, H, W, channels) 0..255 →
            logits and other raw numbers. It shares the weights.
        loss_weights: weight of each loss term by name.
        metric: key of `summarize` that selects the best checkpoint; larger is better.
    """

    model: keras.Model
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


class LearnerEntry(NamedTuple):
    """How to build the learner of a task.

    Args:
        build: function of (model, num_classes, options by name).
        options: training job → options of `build`; all others have their defaults.
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
