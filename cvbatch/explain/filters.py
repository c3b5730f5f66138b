"""What filters answer to: patterns by gradient ascent for many of them at once, and their weights.

Source: Erhan et al., Visualizing higher-layer features of a deep network, 2009; the recipe (noise,
steps, normalised gradient, border) is that of Chollet, Deep Learning with Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from cvbatch.core.errors import ModelError
from cvbatch.explain.layer_selection import KERNELS, output_of, truncate_model
from cvbatch.inference.gradcam import leaf_operations, record_calls

BORDER_PX = 2  # of a layer's map: padding is felt there
_NOISE = (0.4, 0.6)  # where pixels go from 0 to 1
WHITE = 255.0

AsInput = Callable[[tf.Tensor], tf.Tensor]  # pixels 0..255 (B, H, W, 3) → what the network is fed


class Patterns(NamedTuple):
    """What filters of one layer answer to most."""

    images: np.ndarray  # (N, H, W, 3) float32, about 0..1
    activation: np.ndarray  # (N,) float32: the filter's mean activation before the last step


class AscentSettings(NamedTuple):
    """How far gradient ascent goes."""

    steps: int
    step: float  # the length of one, where pixels go from 0 to 1
    batch_size: int
    seed: int


def filter_patterns(
    model: keras.Model,
    as_input: AsInput,
    layer: str,
    num_filters: int,
    image_size: tuple[int, int],
    ascent: AscentSettings,
) -> Patterns:
    """Return for the first filters of a layer the pictures that they answer to.

    Each begins as noise of its own, uniform in 0.4..0.6, and goes `steps` steps along the gradient
    of the filter's mean activation (without a border of 2 pixels), its length divided out. Filters
    are taken a batch at a time: pictures of a batch do not meet, so all have the gradient they
    would have alone.
    """
    climb = _climber(model, as_input, layer, ascent)
    pictures, activation = [], []
    for start in range(0, num_filters, ascent.batch_size):
        filters = range(start, min(start + ascent.batch_size, num_filters))
        # the last batch is filled up: a function that is traced for one size is traced once
        numbers = np.resize(np.array(filters, np.int32), ascent.batch_size)
        canvas = tf.constant(
            np.stack([initial_noise(ascent.seed, int(n), image_size) for n in numbers])
        )
        reached = tf.zeros(len(numbers))
        for _ in range(ascent.steps):
            canvas, reached = climb(canvas, tf.constant(numbers))
        pictures.append(canvas.numpy()[: len(filters)])
        activation.append(reached.numpy()[: len(filters)])
    return Patterns(np.concatenate(pictures), np.concatenate(activation))


def initial_noise(
    seed: int, number: int, image_size: tuple[int, int]
) -> np.ndarray:  # (H, W, 3) float32 in 0.4..0.6
    """Return what the pattern of a filter begins as, the same whatever others are asked for."""
    rng = np.random.default_rng((seed, number))
    return rng.uniform(*_NOISE, (*image_size, 3)).astype(np.float32)


def _climber(
    model: keras.Model, as_input: AsInput, layer: str, ascent: AscentSettings
) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Return the step that takes canvases (B, H, W, 3) and filters (B,) a step further."""
    maps_of = _up_to(model, layer)

    def climb(canvas: tf.Tensor, filters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        maps = within_border(maps_of(as_input(canvas * WHITE)))
        chosen = tf.gather(maps, filters, axis=3, batch_dims=1)  # (B, h, w)
        activation = tf.reduce_mean(tf.cast(chosen, tf.float32), axis=(1, 2))
        gradient = tf.gradients(activation, canvas)[0]
        return canvas + ascent.step * unit(gradient), activation

    return tf.function(climb, autograph=False)  # type: ignore[no-any-return]


def _up_to(model: keras.Model, layer: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the network up to a layer; of one that is no graph all is traced, and pruned then."""
    try:
        cut = truncate_model(model, [layer])
    except ModelError:

        def recorded(images: tf.Tensor) -> tf.Tensor:
            with record_calls(model) as calls:
                model(images, training=False)
            return output_of(calls, layer)

        return recorded
    return lambda images: tf.nest.flatten(cut(images, training=False))[0]


def within_border(
    maps: tf.Tensor,  # (B, h, w, c)
) -> tf.Tensor:  # (B, h', w', c)
    """Return maps without 2 pixels a side, or as many as leave one."""
    top, left = (min(BORDER_PX, (side - 1) // 2) for side in maps.shape[1:3])
    return maps[:, top : maps.shape[1] - top, left : maps.shape[2] - left]


def unit(
    gradient: tf.Tensor,  # (B, H, W, 3)
) -> tf.Tensor:  # (B, H, W, 3)
    """Return each image's gradient at the length 1; one without length stays 0."""
    return tf.math.l2_normalize(gradient, axis=(1, 2, 3))


def kernels_of(model: keras.Model, layer: str) -> np.ndarray:  # (kh, kw, inputs, filters) float32
    """Return a convolution's weights: what each filter does to each input channel.

    A depthwise convolution's filters have one input channel each; of a separable one the product
    of its two parts is what it does.

    Raises:
        ModelError: the layer is not a convolution with a kernel.
    """
    step = dict(leaf_operations(model))[layer]
    if not isinstance(step, KERNELS):
        raise ModelError(
            f"weights.layers: {layer!r} is a {type(step).__name__}, which has no kernels to show; "
            "name a convolution"
        )
    if isinstance(step, keras.layers.SeparableConv2D):
        depthwise, pointwise = map(_numbers, (step.depthwise_kernel, step.pointwise_kernel))
        kh, kw, inputs, each = depthwise.shape
        filters = pointwise.reshape(inputs, each, -1)
        kernels = np.einsum("hwim,imo->hwio", depthwise, filters)
    else:
        kernels = _numbers(step.kernel)
        kh, kw, inputs, each = kernels.shape
        if isinstance(step, keras.layers.DepthwiseConv2D):
            kernels = kernels.reshape(kh, kw, 1, inputs * each)
        elif isinstance(step, keras.layers.Conv2DTranspose):
            kernels = np.swapaxes(kernels, 2, 3)
    exact: np.ndarray = kernels.astype(np.float32)
    return exact


def _numbers(weight: keras.Variable) -> np.ndarray:
    numbers: np.ndarray = keras.ops.convert_to_numpy(weight)
    return numbers
