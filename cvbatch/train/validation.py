"""Distributed validation: each worker scores its shard; loss and metric sums are all-gathered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cvbatch.core.errors import TrainingError
from cvbatch.core.types import TrainingExample
from cvbatch.models.frameworks import keras, ops, tf
from cvbatch.train.collectives import Replicas
from cvbatch.train.history import CLASS_SEPARATOR
from cvbatch.train.learners.base import Learner

# Returns this worker's shard, anew at every epoch: images (B, H, W, C) with the examples that have
# the labels.
ValidationBatches = Callable[[], Iterable[tuple[np.ndarray, Sequence[TrainingExample]]]]

_MAX_CLASSES = 100  # of more classes, no values of single classes are reported


class Validator:
    """Compute the validation loss and metrics of a network, repeatedly while its weights change.

    The loss is that of a training step: the weighted terms, averaged over the images, plus the
    network's regularization. One pass over the images gives loss and metrics.

    Args:
        learner: the task's losses and metrics.
        batches: this worker's validation images.
        replicas: all training workers.
        classes: class names, by class id; the values of single classes are named after them.
    """

    def __init__(
        self,
        learner: Learner,
        batches: ValidationBatches,
        replicas: Replicas,
        classes: Sequence[str] = (),
    ) -> None:
        self._learner, self._batches, self._replicas = learner, batches, replicas
        self._classes = classes if len(classes) <= _MAX_CLASSES else ()
        graph = learner.graph
        self._network = keras.Model(graph.input, (learner.training_model.output, graph.output))
        self._evaluate = tf.function(self._outputs_and_losses, reduce_retracing=True)

    def __call__(self) -> dict[str, float]:
        """Return metrics, loss, loss terms and values of classes over the images of all workers.

        Their names are those of `Learner.summarize`, loss, loss_<term>, and <value>/<class> of
        `Learner.per_class`; NaN for an undefined one.

        Raises:
            TrainingError: no worker has an image, or `learner.metric` is not among the metrics.
        """
        learner = self._learner
        metrics, num_images = learner.empty_metrics(), 0
        sums = np.zeros(len(learner.loss_weights) + 1)
        for pixels, examples in self._batches():
            targets = learner.targets(examples)
            outputs, losses = self._evaluate(tf.cast(pixels, tf.float32), targets)
            arrays = tf.nest.map_structure(lambda tensor: tensor.numpy(), outputs)
            metrics = metrics.merge(learner.evaluate(arrays, examples))
            sums += losses.numpy()
            num_images += len(examples)
        payload = json.dumps([num_images, sums.tolist(), metrics.to_state()]).encode()
        shards = [json.loads(shard) for shard in self._replicas.all_gather(payload)]
        num_images = sum(count for count, *_ in shards)
        if not num_images:
            raise TrainingError(
                "there is no image to validate on; check the validation split, or leave it out"
            )
        first, *others = [type(metrics).from_state(state) for *_, state in shards]
        merged = first.merge(*others)
        values = learner.summarize(merged)
        if learner.metric not in values:
            raise TrainingError(
                f"metric {learner.metric!r}, which selects the best checkpoint, is not computed; "
                f"use one of {', '.join(values)}"
            )
        means = np.sum([losses for _, losses, _ in shards], axis=0) / num_images
        values = values | self._losses(means) | self._class_values(learner.per_class(merged))
        return {name: float(value) for name, value in values.items()}

    def _outputs_and_losses(self, pixels: Any, targets: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the outputs of the model, and each loss term and the penalty, summed over images.

        Args:
            pixels: (B, H, W, C) float32.
            targets: each (B, ...).
        """
        raw, outputs = self._network(pixels, training=False)
        raw = keras.tree.map_structure(lambda tensor: ops.cast(tensor, "float32"), raw)
        losses = self._learner.losses(raw, targets)
        sums = [tf.reduce_sum(losses[name]) for name in self._learner.loss_weights]
        count = tf.cast(tf.shape(pixels)[0], tf.float32)
        penalties = [count * tf.cast(loss, tf.float32) for loss in self._network.losses]
        return outputs, tf.stack([*sums, sum(penalties, tf.constant(0.0))])

    def _losses(self, means: np.ndarray) -> dict[str, float]:
        """Return the loss and its terms, given the mean of each term and of the penalty."""
        weights = self._learner.loss_weights
        loss = float(np.dot([*weights.values(), 1.0], means))
        return {"loss": loss} | dict(zip((f"loss_{name}" for name in weights), means, strict=False))

    def _class_values(self, values: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {
            f"{name}{CLASS_SEPARATOR}{label}": value
            for name, by_class in values.items()
            for label, value in zip(self._classes, by_class, strict=False)
        }
