"""DeepDream: gradient ascent on the activations of layers, over several octaves of an image.

Source: Mordvintsev et al., Inceptionism, 2015; the detail that a smaller octave loses is added back
as in Chollet, Deep Learning with Python.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from cvbatch.config.explain import DreamConfig
from cvbatch.core.errors import ModelError
from cvbatch.explain.filters import WHITE, AsInput, crop_border, normalize_gradient
from cvbatch.explain.layer_selection import select_layers, truncate_model
from cvbatch.models.frameworks import keras, tf
from cvbatch.models.graph_surgery import with_image_size

Size = tuple[int, int]  # height, width
AscentStep = Callable[[tf.Tensor], tf.Tensor]


class DeepDream:
    """Callable that computes the DeepDream of an image.

    Args:
        model: its layers are maximized.
        as_input: function of pixels 0..255 (B, H, W, 3) that returns the network's input.
        image_size: height and width of the images in pixels.
        config: section `dream` of the job.

    Raises:
        ModelError: a layer does not exist, or the network cannot have the size of an octave.
    """

    def __init__(
        self, model: keras.Model, as_input: AsInput, image_size: Size, config: DreamConfig
    ) -> None:
        self._config = config
        self._sizes = octave_sizes(image_size, config.octaves, config.octave_scale)
        truncated, weights = _truncate(model, config.layers)
        self._steps = {
            size: _ascent_step(with_image_size(truncated, size), as_input, weights, config.step)
            for size in self._sizes
        }

    def __call__(
        self,
        image: np.ndarray,  # (H, W, 3) uint8 RGB
    ) -> np.ndarray:  # (H, W, 3) uint8 RGB
        """Return the DeepDream of the image; it does not depend on other images."""
        rng = np.random.default_rng(self._config.seed)
        original = image.astype(np.float32) / np.float32(WHITE)
        canvas = previous = _resize(original, self._sizes[0])
        for size in self._sizes:
            resized = _resize(original, size)
            # Add the detail of the original that the smaller octave lost.
            canvas = _resize(canvas, size) + resized - _resize(previous, size)
            canvas = self._ascend(canvas, self._steps[size], rng)
            previous = resized
        pixels: np.ndarray = np.rint(np.clip(canvas, 0, 1) * WHITE).astype(np.uint8)
        return pixels

    def _ascend(self, canvas: np.ndarray, step: AscentStep, rng: np.random.Generator) -> np.ndarray:
        """Return the canvas after `dream.steps` steps, each at a random circular shift."""
        jitter = self._config.jitter
        for _ in range(self._config.steps):
            shift = rng.integers(-jitter, jitter + 1, 2)
            shifted = np.roll(canvas, shift, (0, 1))
            changed = step(tf.constant(shifted[None]))[0].numpy()
            canvas = np.roll(changed, -shift, (0, 1))
        return canvas


def octave_sizes(image_size: Size, octaves: int, scale: float) -> list[Size]:
    """Return the image sizes of the octaves, smallest first; the last is `image_size`."""
    height, width = image_size
    return [
        (max(1, round(height / scale**k)), max(1, round(width / scale**k)))
        for k in reversed(range(octaves))
    ]


def _resize(image: np.ndarray, size: Size) -> np.ndarray:  # (h, w, 3) → (H, W, 3) float32
    """Resize the image: area averages if it shrinks, linear interpolation if it grows."""
    height, width = size
    method = cv2.INTER_AREA if height < len(image) else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)


def _truncate(model: keras.Model, layers: dict[str, float]) -> tuple[keras.Model, list[float]]:
    """Return a model whose outputs are those of the layers, and the weight of each output."""
    weights: dict[str, float] = {}
    for name, weight in layers.items():
        weights |= dict.fromkeys(select_layers(model, [name], (), "dream.layers"), weight)
    return truncate_model(model, list(weights)), list(weights.values())


def _ascent_step(
    network: keras.Model, as_input: AsInput, weights: list[float], step: float
) -> AscentStep:
    """Return a function that moves a canvas (1, H, W, 3) one step along the gradient.

    The loss is the weighted sum of the mean squares of the network's outputs.
    """
    for tensor in network.outputs:
        if min(tensor.shape[1:3]) < 1:
            raise ModelError(
                f"dream.octaves: at {network.input_shape[1]} x {network.input_shape[2]} pixels the "
                "output of a layer is empty; use fewer octaves or a smaller octave_scale"
            )

    def ascend(canvas: tf.Tensor) -> tf.Tensor:
        maps = tf.nest.flatten(network(as_input(canvas * WHITE), training=False))
        losses = [
            weight * tf.reduce_mean(tf.square(tf.cast(crop_border(layer_map), tf.float32)))
            for weight, layer_map in zip(weights, maps, strict=True)
        ]
        gradient = tf.gradients(tf.add_n(losses), canvas)[0]
        return canvas + step * normalize_gradient(gradient)

    return tf.function(ascend, autograph=False)  # type: ignore[no-any-return]
