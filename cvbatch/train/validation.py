"""Distributed validation: each worker scores its shard; metric sums are all-gathered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from cvbatch.core.errors import TrainingError
from cvbatch.core.types import TrainingExample
from cvbatch.models.frameworks import keras, tf
from cvbatch.train.collectives import Replicas
from cvbatch.train.learners.base import Learner

# Returns this worker's shard, anew at every epoch: images (B, H, W, C), or their features, with the
# examples that have the labels.
ValidationBatches = Callable[[], Iterable[tuple[np.ndarray, Sequence[TrainingExample]]]]


class Validator:
    """Compute the validation metrics of a network, repeatedly while its weights change.

    Args:
        learner: the task's metrics.
        network: the learner's model, or its head if `batches` contains features.
        batches: this worker's validation images.
        replicas: all training workers.
    """

    def __init__(
        self,
        learner: Learner,
        network: keras.Model,
        batches: ValidationBatches,
        replicas: Replicas,
    ) -> None:
        self._learner, self._batches, self._replicas = learner, batches, replicas
        self._predict = tf.function(
            lambda pixels: network(pixels, training=False), reduce_retracing=True
        )

    def __call__(self) -> dict[str, float]:
        """Return the metrics over the images of all workers; NaN for an undefined one.

        Raises:
            TrainingError: no worker has an image, or `learner.metric` is not among the metrics.
        """
        metrics, num_images = self._learner.empty_metrics(), 0
        for pixels, examples in self._batches():
            outputs = self._predict(tf.cast(pixels, tf.float32))
            arrays = tf.nest.map_structure(lambda tensor: tensor.numpy(), outputs)
            metrics = metrics.merge(self._learner.evaluate(arrays, examples))
            num_images += len(examples)
        payload = json.dumps([num_images, metrics.to_state()]).encode()
        shards = [json.loads(shard) for shard in self._replicas.all_gather(payload)]
        if not sum(count for count, _ in shards):
            raise TrainingError(
                "there is no image to validate on; check the validation split, or leave it out"
            )
        first, *others = [type(metrics).from_state(state) for _, state in shards]
        values = self._learner.summarize(first.merge(*others))
        metric = self._learner.metric
        if metric not in values:
            raise TrainingError(
                f"metric {metric!r}, which selects the best checkpoint, is not computed; use one "
                f"of {', '.join(values)}"
            )
        return {name: float(value) for name, value in values.items()}
