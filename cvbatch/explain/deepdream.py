"""DeepDream: what layers see in an image is made more of, from coarse to fine.

Source: Mordvintsev et al., Inceptionism, 2015; octaves with the lost detail put back as in
Chollet, Deep Learning with Python.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import keras
import numpy as np
import tensorflow as tf

from cvbatch.config.explain import DreamConfig
from cvbatch.core.errors import ModelError
from cvbatch.explain.filters import WHITE, AsInput, unit, within_border
from cvbatch.explain.layer_selection import select_layers, truncate_model
from cvbatch.models.graph_surgery import with_image_size

Size = tuple[int, int]  # height, width
Climb = Callable[[tf.Tensor], tf.Tensor]


class Dreamer:
    """A network cut off behind the layers that dream, at the size of every octave."""

    def __init__(
        self, model: keras.Model, as_input: AsInput, image_size: Size, config: DreamConfig
    ) -> None:
        """Raises ModelError where a layer is not there, or the network cannot have a size."""
        self._config = config
        self._sizes = octave_sizes(image_size, config.octaves, config.octave_scale)
        cut, weights = _cut(model, config.layers)
        self._climbs = {
            size: _climber(with_image_size(cut, size), as_input, weights, config.step)
            for size in self._sizes
        }

    def __call__(
        self,
        image: np.ndarray,  # (H, W, 3) uint8 RGB
    ) -> np.ndarray:  # (H, W, 3) uint8 RGB
        """Return the image as the layers dream it; the same whatever other images there are."""
        rng = np.random.default_rng(self._config.seed)
        original = image.astype(np.float32) / np.float32(WHITE)
        canvas = seen = _scaled(original, self._sizes[0])
        for size in self._sizes:
            detail = _scaled(original, size)
            # what the smaller octave could not hold of the original is put back
            canvas = _scaled(canvas, size) + detail - _scaled(seen, size)
            canvas = self._ascend(canvas, self._climbs[size], rng)
            seen = detail
        pixels: np.ndarray = np.rint(np.clip(canvas, 0, 1) * WHITE).astype(np.uint8)
        return pixels

    def _ascend(self, canvas: np.ndarray, climb: Climb, rng: np.random.Generator) -> np.ndarray:
        """Return the canvas some steps on, shifted round before each and back after it."""
        jitter = self._config.jitter
        for _ in range(self._config.steps):
            shift = rng.integers(-jitter, jitter + 1, 2)
            shifted = np.roll(canvas, shift, (0, 1))
            climbed = climb(tf.constant(shifted[None]))[0].numpy()
            canvas = np.roll(climbed, -shift, (0, 1))
        return canvas


def octave_sizes(image_size: Size, octaves: int, scale: float) -> list[Size]:
    """Return the sizes at which an image is dreamt, the smallest first, its own last."""
    height, width = image_size
    return [
        (max(1, round(height / scale**k)), max(1, round(width / scale**k)))
        for k in reversed(range(octaves))
    ]


def _scaled(image: np.ndarray, size: Size) -> np.ndarray:  # (h, w, 3) → (H, W, 3) float32
    """Return the image at another size: averaged where it shrinks, linear where it grows."""
    height, width = size
    method = cv2.INTER_AREA if height < len(image) else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)


def _cut(model: keras.Model, layers: dict[str, float]) -> tuple[keras.Model, list[float]]:
    """Return the network up to the layers, its outputs theirs, and their weights."""
    weight_of: dict[str, float] = {}
    for name, weight in layers.items():
        weight_of |= dict.fromkeys(select_layers(model, [name], (), "dream.layers"), weight)
    return truncate_model(model, list(weight_of)), list(weight_of.values())


def _climber(network: keras.Model, as_input: AsInput, weights: list[float], step: float) -> Climb:
    """Return the step that takes a canvas (1, H, W, 3) further: up the mean squares of maps."""
    for tensor in network.outputs:
        if min(tensor.shape[1:3]) < 1:
            raise ModelError(
                f"dream.octaves: at {network.input_shape[1]} x {network.input_shape[2]} pixels "
                "nothing is left of a layer's map; say fewer octaves or a smaller octave_scale"
            )

    def climb(canvas: tf.Tensor) -> tf.Tensor:
        maps = tf.nest.flatten(network(as_input(canvas * WHITE), training=False))
        losses = [
            weight * tf.reduce_mean(tf.square(tf.cast(within_border(one), tf.float32)))
            for weight, one in zip(weights, maps, strict=True)
        ]
        return canvas + step * unit(tf.gradients(tf.add_n(losses), canvas)[0])

    return tf.function(climb, autograph=False)  # type: ignore[no-any-return]
