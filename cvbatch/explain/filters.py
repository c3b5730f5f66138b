"""Filter patterns by gradient ascent on the input, and filter weights.

Source: Erhan et al., Visualizing higher-layer features of a deep network, 2009; start from noise,
normalized gradient and cropped border are those of Chollet, Deep Learning with Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cvbatch.core.errors import ModelError
from cvbatch.explain.layer_selection import KERNELS, layer_output, truncate_model
from cvbatch.inference.gradcam import leaf_operations, record_calls
from cvbatch.models.frameworks import keras, tf

BORDER_PX = 2  # border of a feature map that is ignored, because padding affects it
_NOISE = (0.4, 0.6)  # range of the initial pixels, where pixels are in 0..1
WHITE = 255.0

AsInput = Callable[[tf.Tensor], tf.Tensor]  # pixels 0..255 (B, H, W, 3) → the network's input


class Patterns(NamedTuple):
    """Images that maximize the filters of one layer.

    Attributes:
        images: one per filter, about 0..1.
        activation: mean activation of each filter before the last step.
    """

    images: np.ndarray  # (N, H, W, 3) float32
    activation: np.ndarray  # (N,) float32


class AscentSettings(NamedTuple):
    """Settings of gradient ascent.

    Attributes:
        steps: number of steps.
        step: length of one step, where pixels are in 0..1.
        batch_size: filters that are processed at once.
        seed: of the initial noise.
    """

    steps: int
    step: float
    batch_size: int
    seed: int


def filter_patterns(
    model: keras.Model,
    as_input: AsInput,
    layer: str,
    num_filters: int,
    image_size: tuple[int, int],
    settings: AscentSettings,
) -> Patterns:
    """Compute images that maximize the first filters of a layer.

    Each image starts as its own noise, uniform in 0.4..0.6. Each step moves it along the normalized
    gradient of the filter's mean activation, without a border of 2 pixels. Filters are processed in
    batches; images of a batch are independent, so the batch size does not change the gradients.

    Args:
        model: network that has the layer.
        as_input: function of pixels 0..255 (B, H, W, 3) that returns the network's input.
        layer: path of the layer.
        num_filters: number of filters, beginning with the first.
        image_size: height and width of the images in pixels.
        settings: of gradient ascent.
    """
    ascend = _ascent_step(model, as_input, layer, settings.step)
    images, activations = [], []
    for start in range(0, num_filters, settings.batch_size):
        filters = range(start, min(start + settings.batch_size, num_filters))
        # The last batch is padded to full size, so that the function is traced only once.
        filter_ids = np.resize(np.array(filters, np.int32), settings.batch_size)
        canvas = tf.constant(
            np.stack([initial_noise(settings.seed, int(n), image_size) for n in filter_ids])
        )
        activation = tf.zeros(len(filter_ids))
        for _ in range(settings.steps):
            canvas, activation = ascend(canvas, tf.constant(filter_ids))
        images.append(canvas.numpy()[: len(filters)])
        activations.append(activation.numpy()[: len(filters)])
    return Patterns(np.concatenate(images), np.concatenate(activations))


def initial_noise(
    seed: int, filter_id: int, image_size: tuple[int, int]
) -> np.ndarray:  # (H, W, 3) float32 in 0.4..0.6
    """Return the initial image of a filter; it depends only on the arguments."""
    rng = np.random.default_rng((seed, filter_id))
    return rng.uniform(*_NOISE, (*image_size, 3)).astype(np.float32)


def _ascent_step(
    model: keras.Model, as_input: AsInput, layer: str, step: float
) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Return a function of canvases (B, H, W, 3) and filter ids (B,) that does one step.

    It returns the changed canvases, and the mean activations (B,) before the step.
    """
    feature_map = _forward_to(model, layer)

    def ascend(canvas: tf.Tensor, filter_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        maps = crop_border(feature_map(as_input(canvas * WHITE)))
        channels = tf.gather(maps, filter_ids, axis=3, batch_dims=1)  # (B, h, w)
        activation = tf.reduce_mean(tf.cast(channels, tf.float32), axis=(1, 2))
        gradient = tf.gradients(activation, canvas)[0]
        return canvas + step * normalize_gradient(gradient), activation

    return tf.function(ascend, autograph=False)  # type: ignore[no-any-return]


def _forward_to(model: keras.Model, layer: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the function from the network's input to the output of a layer.

    A model that is not a graph of layers cannot be truncated: it is traced as a whole, and
    TensorFlow prunes what the output does not need.
    """
    try:
        truncated = truncate_model(model, [layer])
    except ModelError:

        def record_layer(images: tf.Tensor) -> tf.Tensor:
            with record_calls(model) as calls:
                model(images, training=False)
            return layer_output(calls, layer)

        return record_layer
    return lambda images: tf.nest.flatten(truncated(images, training=False))[0]


def crop_border(
    maps: tf.Tensor,  # (B, h, w, c)
) -> tf.Tensor:  # (B, h', w', c)
    """Remove 2 pixels on each side, or fewer so that at least one pixel remains."""
    top, left = (min(BORDER_PX, (side - 1) // 2) for side in maps.shape[1:3])
    return maps[:, top : maps.shape[1] - top, left : maps.shape[2] - left]


def normalize_gradient(
    gradient: tf.Tensor,  # (B, H, W, 3)
) -> tf.Tensor:  # (B, H, W, 3)
    """Scale each image's gradient to L2 norm 1; a gradient of 0 remains 0."""
    return tf.math.l2_normalize(gradient, axis=(1, 2, 3))


def kernel_weights(model: keras.Model, layer: str) -> np.ndarray:  # (kh, kw, inputs, filters)
    """Return the kernel of a convolution, float32, always with inputs before filters.

    The filters of a depthwise convolution have one input channel each. The kernel of a separable
    convolution is the product of its depthwise and pointwise kernels.

    Raises:
        ModelError: the layer is not a convolution with a kernel.
    """
    operation = dict(leaf_operations(model))[layer]
    if not isinstance(operation, KERNELS):
        raise ModelError(
            f"weights.layers: {layer!r} is a {type(operation).__name__}, which has no kernel; use "
            "the name of a convolution"
        )
    if isinstance(operation, keras.layers.SeparableConv2D):
        depthwise = _to_numpy(operation.depthwise_kernel)
        kh, kw, inputs, multiplier = depthwise.shape
        pointwise = _to_numpy(operation.pointwise_kernel).reshape(inputs, multiplier, -1)
        kernels = np.einsum("hwim,imo->hwio", depthwise, pointwise)
    else:
        kernels = _to_numpy(operation.kernel)
        kh, kw, inputs, multiplier = kernels.shape
        if isinstance(operation, keras.layers.DepthwiseConv2D):
            kernels = kernels.reshape(kh, kw, 1, inputs * multiplier)
        elif isinstance(operation, keras.layers.Conv2DTranspose):
            kernels = np.swapaxes(kernels, 2, 3)
    weights: np.ndarray = kernels.astype(np.float32)
    return weights


def _to_numpy(weight: keras.Variable) -> np.ndarray:
    array: np.ndarray = keras.ops.convert_to_numpy(weight)
    return array
