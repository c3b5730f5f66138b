"""Validation: every worker judges its own images, the sums are merged, all hear the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from cvbatch.core.errors import TrainingError
from cvbatch.core.types import TrainingExample
from cvbatch.train.collectives import Replicas
from cvbatch.train.learners.base import Learner

# This worker's images, (B, H, W, C), or features of them, with their labels. Asked every epoch.
ValidationBatches = Callable[[], Iterable[tuple[np.ndarray, Sequence[TrainingExample]]]]


class Validator:
    """Measures a network on validation images, again and again while its weights move.

    network: the learner's own, or the head of it where validation gives features.
    """

    def __init__(
        self, learner: Learner, network: keras.Model, validation: ValidationBatches, replicas: Replicas
    ) -> None:
        self._learner, self._validation, self._replicas = learner, validation, replicas
        self._answer = tf.function(
            lambda pixels: network(pixels, training=False), reduce_retracing=True
        )

    def __call__(self) -> dict[str, float]:
        """Return the figures over the images of all workers; NaN for one that is not defined.

        Raises:
            TrainingError: no worker has an image, or the metric of the best is not among them.
        """
        own, num_images = self._learner.empty_metrics(), 0
        for pixels, examples in self._validation():
            outputs = self._answer(tf.cast(pixels, tf.float32))
            arrays = tf.nest.map_structure(lambda tensor: tensor.numpy(), outputs)
            own = own.merge(self._learner.evaluate(arrays, examples))
            num_images += len(examples)
        payload = json.dumps([num_images, own.to_state()]).encode()
        told = [json.loads(said) for said in self._replicas.all_gather(payload)]
        if not sum(count for count, _ in told):
            raise TrainingError(
                "there is no image to validate on; check the validation split, or leave it out"
            )
        first, *others = [type(own).from_state(state) for _, state in told]
        figures = self._learner.summarize(first.merge(*others))
        metric = self._learner.metric
        if metric not in figures:
            raise TrainingError(
                f"metric {metric!r}, by which the best checkpoint is chosen, is not among those "
                f"measured; they are {', '.join(figures)}"
            )
        return {name: float(value) for name, value in figures.items()}
