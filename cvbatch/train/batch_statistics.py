"""Batch-normalisation statistics of the current weights, from training images.

Keras' moving averages with a momentum of 0.99 cover the last hundred steps. In a small data set
those are several epochs, so validation would use the statistics of earlier weights, and at first
those of no image at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from cvbatch.models.frameworks import keras, tf
from cvbatch.models.graph_surgery import at_image_size
from cvbatch.train.batches import Batch
from cvbatch.train.collectives import Replicas
from cvbatch.train.phases import layers_of

_IMAGES = 256  # per worker; the effort of 85 images of a step, as it is a forward pass
_LAGS = 0.01  # share of earlier epochs in a moving average, from which it is replaced


class BatchStatistics:
    """Set mean and variance of a network's batch normalisation to those of given images.

    Only layers whose moving average lags are changed: trainable ones, as the others keep the
    statistics of their pretrained weights, that momentum^updates still ties to earlier epochs. A
    moving average with a momentum of 0.99 is replaced below 460 updates per epoch. No other
    variable of the network is changed.

    Args:
        network: images or features → raw outputs.
        replicas: all training workers; they get the same statistics, those of all their images.
        updates: of the moving averages in an epoch.

    Attributes:
        num_images: of each worker, enough for an estimate; 0: the network has no such layer.

    Source:
        Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3.2.
    """

    def __init__(self, network: keras.Model, replicas: Replicas, updates: int) -> None:
        self._network, self._replicas = network, replicas
        self._layers = [
            layer
            for layer in layers_of(network)
            if isinstance(layer, keras.layers.BatchNormalization)
            and layer.trainable
            and layer.momentum**updates > _LAGS
        ]
        self.num_images = _IMAGES if self._layers else 0
        is_weight = {id(weight) for weight in network.weights}
        self._seeds = [v for v in network.variables if id(v) not in is_weight]
        self._programs: dict[tuple[int, int], tf.types.experimental.GenericFunction] = {}

    def update(self, batches: Sequence[Batch]) -> None:
        """Set the statistics to those of this worker's batches and the other workers'.

        The network runs in training mode, so a layer receives inputs that the layers before it
        normalised by batch. With batch means mᵢ and variances vᵢ the mean is E[mᵢ], and the
        variance E[vᵢ + mᵢ²] − E[mᵢ]², over images. Without images nothing changes.

        Args:
            batches: images and their padding, which is left out.
        """
        if not self._layers:
            return
        sums = np.zeros((2, sum(layer.moving_mean.shape[0] for layer in self._layers)))
        num_images = 0
        with self._without_momentum():
            for batch in batches:
                if count := batch.num_real:
                    mean, variance = self._batch_moments(batch.pixels[:count])
                    sums += count * np.stack([mean, variance + mean**2])
                    num_images += count
        payload = np.append(sums, num_images).tobytes()
        parts = [np.frombuffer(part) for part in self._replicas.all_gather(payload)]
        *_, total = totals = np.sum(parts, axis=0)
        if total:
            mean, square = totals[:-1].reshape(2, -1) / total
            self._assign(mean, np.maximum(square - mean**2, 0.0))

    def _batch_moments(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance of all channels of all layers, each (channels,) float64."""
        size = pixels.shape[1:3]
        if size not in self._programs:
            network = at_image_size(self._network, size)

            def forward(pixels: tf.Tensor) -> None:
                network(pixels, training=True)

            self._programs[size] = tf.function(forward, reduce_retracing=True)
        self._programs[size](tf.cast(pixels, tf.float32))
        means = [np.float64(layer.moving_mean.numpy()) for layer in self._layers]
        variances = [np.float64(layer.moving_variance.numpy()) for layer in self._layers]
        return np.concatenate(means), np.concatenate(variances)

    @contextmanager
    def _without_momentum(self) -> Iterator[None]:
        """Let the moving averages of a training pass be the moments of its batch.

        Keras reads the momentum when a program is compiled. The seeds of dropout are restored, so
        that the next steps do not depend on the passes.
        """
        momenta = [layer.momentum for layer in self._layers]
        seeds = [seed.numpy() for seed in self._seeds]
        try:
            for layer in self._layers:
                layer.momentum = 0.0
            yield
        finally:
            for layer, momentum in zip(self._layers, momenta, strict=True):
                layer.momentum = momentum
            for seed, value in zip(self._seeds, seeds, strict=True):
                seed.assign(value)

    def _assign(self, mean: np.ndarray, variance: np.ndarray) -> None:  # (channels,)
        start = 0
        for layer in self._layers:
            channels = slice(start, start := start + layer.moving_mean.shape[0])
            layer.moving_mean.assign(mean[channels].astype(np.float32))
            layer.moving_variance.assign(variance[channels].astype(np.float32))
