"""Keras layers, an initializer and an activation for classic networks, registered for loading."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cvbatch.core.errors import ModelError
from cvbatch.models.frameworks import keras, ops

Tensor = Any  # a keras.KerasTensor; Keras carries no type information


@keras.saving.register_keras_serializable("cvbatch")
class Bilinear(keras.initializers.Initializer):  # type: ignore[misc]  # Keras is untyped
    """Initialise a transposed convolution to bilinear interpolation of each channel.

    Along an axis with kernel size k, factor f = ⌈k/2⌉ and centre c = (k − 1) / 2, the weight at i
    is 1 − |i − c| / f. Output channel n reads input channel n only.

    Source: Long et al., Fully Convolutional Networks, 2015, section 3.3.
    """

    def __call__(
        self, shape: Sequence[int], dtype: Any = None
    ) -> Tensor:  # → (kh, kw, channels out, channels in), the kernel of a Conv2DTranspose
        """Return the kernel of that shape."""
        height, width, channels_out, channels_in = shape
        window = np.outer(_interpolation_weights(height), _interpolation_weights(width))
        kernel = window[:, :, None, None] * np.eye(channels_out, channels_in)
        return ops.convert_to_tensor(kernel, dtype or keras.config.floatx())


def _interpolation_weights(size: int) -> np.ndarray:  # → (size,), along one axis
    factor = (size + 1) // 2
    weights: np.ndarray = 1 - np.abs(np.arange(size) - (size - 1) / 2) / factor
    return weights


@keras.saving.register_keras_serializable("cvbatch")
class LocalResponseNormalization(keras.layers.Layer):  # type: ignore[misc]
    """Divide every value by a power of the squares of neighbouring channels (LRN).

    b_i = a_i · (bias + alpha · Σ a_j²)^−beta, the sum over the channels j from i − radius to
    i + radius that exist. Input and output: (B, ..., C). The defaults are those of later
    implementations; the paper has bias = 2 and alpha = 1e-4.

    Source: Krizhevsky et al., ImageNet Classification with Deep CNNs, 2012, section 3.3.
    """

    def __init__(
        self,
        radius: int = 2,
        alpha: float = 2e-5,
        beta: float = 0.75,
        bias: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.radius = radius
        self.alpha = alpha
        self.beta = beta
        self.bias = bias

    def call(self, inputs: Tensor) -> Tensor:  # (B, ..., C) → the same shape
        """Return the normalised values."""
        channels = inputs.shape[-1]
        values = ops.cast(inputs, "float32")  # squares overflow float16
        padding = [(0, 0)] * (len(inputs.shape) - 1) + [(self.radius, self.radius)]
        squares = ops.pad(ops.square(values), padding)
        energy = sum(squares[..., i : i + channels] for i in range(2 * self.radius + 1))
        # LiteRT has fast kernels for exp and log and their gradients, but not for a power.
        scale = ops.exp(-self.beta * ops.log(self.bias + self.alpha * energy))
        return ops.cast(values * scale, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, for saving."""
        config: dict[str, Any] = super().get_config()
        return config | {
            "radius": self.radius, "alpha": self.alpha, "beta": self.beta, "bias": self.bias
        }  # fmt: skip


@keras.saving.register_keras_serializable("cvbatch")
class TrainableSubsampling(keras.layers.Layer):  # type: ignore[misc]
    """Apply average pooling with a trainable coefficient and bias per channel (LeNet's S layers).

    Input: (B, H, W, C). Output: (B, ⌊H/size⌋, ⌊W/size⌋, C). Untrained, it is average pooling.

    Args:
        size: side of a pooling window, in pixels.

    Source: LeCun et al., Gradient-Based Learning, 1998, section II.B.
    """

    def __init__(self, size: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create one coefficient and one bias per channel."""
        mean = keras.initializers.Constant(1 / self.size**2)
        channels = input_shape[-1]
        self.coefficient = self.add_weight(shape=(channels,), initializer=mean, name="coefficient")
        self.offset = self.add_weight(shape=(channels,), initializer="zeros", name="offset")

    def call(self, inputs: Tensor) -> Tensor:  # (B, H, W, C) → (B, ⌊H/size⌋, ⌊W/size⌋, C)
        """Return the scaled and shifted averages."""
        means = ops.average_pool(inputs, self.size, strides=self.size, padding="valid")
        return means * (self.coefficient * self.size**2) + self.offset

    def multiply_adds(
        self, input_shape: Sequence[int | None], output_shape: Sequence[int | None]
    ) -> int:
        """Return one multiply-add per output value, for the coefficient."""
        return _positions(output_shape) * int(output_shape[-1] or 0)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, for saving."""
        config: dict[str, Any] = super().get_config()
        return config | {"size": self.size}


@keras.saving.register_keras_serializable("cvbatch")
class PartialConv2D(keras.layers.Layer):  # type: ignore[misc]
    """Apply a valid convolution whose output channels each read only some input channels.

    Input: (B, H, W, C). Output: (B, H − k + 1, W − k + 1, len(connections)). It has k² weights per
    connection and one bias per output channel.

    Args:
        connections: for each output channel, the input channels that it reads.
        kernel_size: k, in pixels.
    """

    def __init__(
        self, connections: Sequence[Sequence[int]], kernel_size: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.connections = [[int(channel) for channel in channels] for channels in connections]
        self.kernel_size = kernel_size

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the weights of the connections.

        Raises:
            ModelError: a connection reads a channel that the input does not have.
        """
        channels = int(input_shape[-1] or 0)
        pairs = [(i, output) for output, inputs in enumerate(self.connections) for i in inputs]
        unknown = [i for i, _ in pairs if not 0 <= i < channels]
        if unknown:
            raise ModelError(
                f"PartialConv2D {self.name}: a connection reads channel {unknown[0]}, but the "
                f"input has {channels} channels; use 0 to {channels - 1}"
            )
        num_outputs = len(self.connections)
        mean_fan_in = self.kernel_size**2 * len(pairs) / num_outputs
        limit = math.sqrt(3 / mean_fan_in)  # keeps the variance (LeCun et al. 1998, Backprop)
        self.kernel = self.add_weight(
            shape=(self.kernel_size, self.kernel_size, len(pairs)),
            initializer=keras.initializers.RandomUniform(-limit, limit),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(num_outputs,), initializer="zeros", name="bias")
        # (connections, C · outputs), one-hot: position of each connection in a dense kernel
        self._one_hot = np.zeros((len(pairs), channels * num_outputs), np.float32)
        for connection, (i, output) in enumerate(pairs):
            self._one_hot[connection, i * num_outputs + output] = 1

    def call(self, inputs: Tensor) -> Tensor:  # (B, H, W, C) → (B, H − k + 1, W − k + 1, outputs)
        """Return the convolution, without an activation."""
        one_hot = ops.cast(self._one_hot, self.compute_dtype)
        shape = (self.kernel_size, self.kernel_size, inputs.shape[-1], len(self.connections))
        kernel = ops.reshape(ops.matmul(self.kernel, one_hot), shape)
        return ops.conv(inputs, kernel, strides=1, padding="valid") + self.bias

    def multiply_adds(
        self, input_shape: Sequence[int | None], output_shape: Sequence[int | None]
    ) -> int:
        """Return k² per connection and output position, the least an implementation needs."""
        num_connections = sum(len(inputs) for inputs in self.connections)
        return _positions(output_shape) * self.kernel_size**2 * num_connections

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, for saving."""
        config: dict[str, Any] = super().get_config()
        return config | {"connections": self.connections, "kernel_size": self.kernel_size}


@keras.saving.register_keras_serializable("cvbatch")
class RadialBasis(keras.layers.Layer):  # type: ignore[misc]
    """Return minus the squared Euclidean distance to one fixed code of ±1 per class.

    Input: (B, F). Output: (B, units). The codes are non-trainable weights, drawn with a fixed seed;
    two of them differ in about F/2 of F values.

    Args:
        units: number of classes.

    Source: LeCun et al., Gradient-Based Learning, 1998, section II.B, whose codes are bitmaps of
        characters.
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the codes, (units, F)."""
        self.codes = self.add_weight(
            shape=(self.units, input_shape[-1]),
            initializer=_sign_codes,
            trainable=False,
            name="codes",
        )

    def call(self, inputs: Tensor) -> Tensor:  # (B, F) → (B, units)
        """Return minus the squared distance to each code."""
        # LiteRT has no gradient of an index with None, so expand_dims is used.
        return -ops.sum(ops.square(ops.expand_dims(inputs, 1) - self.codes), axis=-1)

    def multiply_adds(
        self, input_shape: Sequence[int | None], output_shape: Sequence[int | None]
    ) -> int:
        """Return one multiply-add per value of each code, for the square."""
        return self.units * int(input_shape[-1] or 0)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, for saving."""
        config: dict[str, Any] = super().get_config()
        return config | {"units": self.units}


@keras.saving.register_keras_serializable("cvbatch")
class DepthwiseMaxPooling(keras.layers.Layer):  # type: ignore[misc]
    """Return the maximum over groups of neighbouring channels.

    Input: (B, ..., C). Output: (B, ..., C / size).

    Args:
        size: channels of a group; C must be a multiple of it.
    """

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def call(self, inputs: Tensor) -> Tensor:  # (B, ..., C) → (B, ..., C / size)
        """Return the largest value of each group."""
        if inputs.shape[-1] % self.size:
            raise ValueError(f"{inputs.shape[-1]} channels are not groups of {self.size}")
        groups = [inputs[..., i :: self.size] for i in range(self.size)]
        return functools.reduce(ops.maximum, groups)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, for saving."""
        config: dict[str, Any] = super().get_config()
        return config | {"size": self.size}


@keras.saving.register_keras_serializable("cvbatch")
class ChannelSlice(keras.layers.Layer):  # type: ignore[misc]
    """Return some channels, as `inputs[..., start:stop:step]`; a step of -1 reverses them.

    Input: (B, ..., C). Output: (B, ..., selected channels).
    """

    def __init__(
        self, start: int | None = None, stop: int | None = None, step: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.start, self.stop, self.step = start, stop, step

    def call(self, inputs: Tensor) -> Tensor:  # (B, ..., C) → (B, ..., channels)
        """Return the selected channels."""
        return inputs[..., self.start : self.stop : self.step]

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, for saving."""
        config: dict[str, Any] = super().get_config()
        return config | {"start": self.start, "stop": self.stop, "step": self.step}


@keras.saving.register_keras_serializable("cvbatch")  # type: ignore[untyped-decorator]
def scaled_tanh(x: Tensor) -> Tensor:
    """Return 1.7159 · tanh(2x/3), which is ±1 at ±1.

    Source: LeCun et al., Gradient-Based Learning, 1998, appendix A.
    """
    return 1.7159 * ops.tanh(x * (2 / 3))


def _sign_codes(shape: Sequence[int], dtype: Any = None) -> Tensor:  # → (classes, F) of ±1
    """Return codes that do not depend on the number of classes nor on the NumPy version."""
    bits = np.random.RandomState(1998).randint(0, 2, tuple(shape))
    return ops.convert_to_tensor(2.0 * bits - 1.0, dtype or keras.config.floatx())


def _positions(shape: Sequence[int | None]) -> int:
    """Return height × width of a shape (B, H, W, C)."""
    return math.prod(int(side or 0) for side in shape[1:-1])
