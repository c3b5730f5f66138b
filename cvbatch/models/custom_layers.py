"""The layers and initializers that Keras lacks, registered so that a saved file needs no code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from cvbatch.core.errors import ModelError

Tensor = Any  # a keras.KerasTensor; Keras carries no type information


@keras.saving.register_keras_serializable("cvbatch")
class Bilinear(keras.initializers.Initializer):  # type: ignore[misc]  # Keras is untyped
    """Makes a transposed convolution interpolate each of its maps bilinearly.

    Along an axis with a kernel of k, and f = ⌈k/2⌉ the factor, the weight at i is
    1 − |i − c| / f with c the kernel's centre, (k − 1) / 2; an output map reads its own input
    map only (Long, Shelhamer and Darrell, Fully Convolutional Networks, 2015, section 3.3).
    """

    def __call__(
        self, shape: Sequence[int], dtype: Any = None
    ) -> Tensor:  # → (kh, kw, maps out, maps in), the kernel of a Conv2DTranspose
        """Return the kernel of that shape."""
        height, width, maps_out, maps_in = shape
        window = np.outer(_hat(height), _hat(width))
        own = np.eye(maps_out, maps_in)
        kernel = window[:, :, None, None] * own
        return ops.convert_to_tensor(kernel, dtype or keras.config.floatx())


def _hat(size: int) -> np.ndarray:  # → (size,), linear interpolation's weights along one axis
    factor = (size + 1) // 2
    weights: np.ndarray = 1 - np.abs(np.arange(size) - (size - 1) / 2) / factor
    return weights


@keras.saving.register_keras_serializable("cvbatch")
class LocalResponseNormalization(keras.layers.Layer):  # type: ignore[misc]
    """Divides every value by the energy of its neighbours in the channels at its position.

    b_i = a_i · (k + α · Σ a_j²)^−β, the sum over the channels j from i − r to i + r that exist
    (Krizhevsky et al., ImageNet Classification with Deep CNNs, 2012, section 3.3, whose values
    are k = 2, α = 1e-4; the defaults here are those of its later re-implementations).

    Input and output: (B, ..., C). radius: r, in channels.
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
        values = ops.cast(inputs, "float32")  # a square soon passes float16's largest number
        around = [(0, 0)] * (len(inputs.shape) - 1) + [(self.radius, self.radius)]
        squares = ops.pad(ops.square(values), around)
        energy = sum(squares[..., i : i + channels] for i in range(2 * self.radius + 1))
        # exp and log, not a power: LiteRT runs them, and their gradients, in its fast kernels
        scale = ops.exp(-self.beta * ops.log(self.bias + self.alpha * energy))
        return ops.cast(values * scale, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return what the layer is made again from."""
        config: dict[str, Any] = super().get_config()
        return config | {
            "radius": self.radius, "alpha": self.alpha, "beta": self.beta, "bias": self.bias
        }  # fmt: skip


@keras.saving.register_keras_serializable("cvbatch")
class TrainableSubsampling(keras.layers.Layer):  # type: ignore[misc]
    """Sums squares of pixels, times one coefficient and plus one bias for each map.

    Input: (B, H, W, C). Output: (B, ⌊H/size⌋, ⌊W/size⌋, C); before training it is average
    pooling. The S layers of LeCun et al., Gradient-Based Learning, 1998, section II.B.

    size: the side of a square, in pixels.
    """

    def __init__(self, size: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make one coefficient and one bias for each map."""
        mean = keras.initializers.Constant(1 / self.size**2)
        maps = input_shape[-1]
        self.coefficient = self.add_weight(shape=(maps,), initializer=mean, name="coefficient")
        self.offset = self.add_weight(shape=(maps,), initializer="zeros", name="offset")

    def call(self, inputs: Tensor) -> Tensor:  # (B, H, W, C) → (B, ⌊H/size⌋, ⌊W/size⌋, C)
        """Return the weighted sums."""
        means = ops.average_pool(inputs, self.size, strides=self.size, padding="valid")
        return means * (self.coefficient * self.size**2) + self.offset

    def multiply_adds(
        self, input_shape: Sequence[int | None], output_shape: Sequence[int | None]
    ) -> int:
        """Return one a value: the coefficient's."""
        return _positions(output_shape) * int(output_shape[-1] or 0)

    def get_config(self) -> dict[str, Any]:
        """Return what the layer is made again from."""
        config: dict[str, Any] = super().get_config()
        return config | {"size": self.size}


@keras.saving.register_keras_serializable("cvbatch")
class PartialConv2D(keras.layers.Layer):  # type: ignore[misc]
    """A convolution whose every map reads only some of the maps before it.

    Input: (B, H, W, C). Output: (B, H − k + 1, W − k + 1, maps). It has k² weights for each
    connection and a bias for each map, no more: absent connections are no parameters.

    connections: for each map of the output the maps of the input that it reads.
    kernel_size: k, in pixels.
    """

    def __init__(
        self, connections: Sequence[Sequence[int]], kernel_size: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.connections = [[int(source) for source in sources] for sources in connections]
        self.kernel_size = kernel_size

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the weights of the connections.

        Raises:
            ModelError: a connection begins at a map that the input does not have.
        """
        channels = int(input_shape[-1] or 0)
        pairs = [(s, map_id) for map_id, sources in enumerate(self.connections) for s in sources]
        beyond = [source for source, _ in pairs if not 0 <= source < channels]
        if beyond:
            raise ModelError(
                f"PartialConv2D {self.name}: a connection reads map {beyond[0]}, but its input has "
                f"{channels} maps; number them from 0 to {channels - 1}"
            )
        num_maps = len(self.connections)
        inputs_of_one = self.kernel_size**2 * len(pairs) / num_maps
        limit = math.sqrt(3 / inputs_of_one)  # keeps the variance (LeCun et al. 1998, Backprop)
        self.kernel = self.add_weight(
            shape=(self.kernel_size, self.kernel_size, len(pairs)),
            initializer=keras.initializers.RandomUniform(-limit, limit),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(num_maps,), initializer="zeros", name="bias")
        # (connections, C · maps): where in a full kernel the weights of each connection lie
        self._places = np.zeros((len(pairs), channels * num_maps), np.float32)
        for connection, (source, map_id) in enumerate(pairs):
            self._places[connection, source * num_maps + map_id] = 1

    def call(self, inputs: Tensor) -> Tensor:  # (B, H, W, C) → (B, H − k + 1, W − k + 1, maps)
        """Return the convolution, without an activation."""
        places = ops.cast(self._places, self.compute_dtype)
        shape = (self.kernel_size, self.kernel_size, inputs.shape[-1], len(self.connections))
        kernel = ops.reshape(ops.matmul(self.kernel, places), shape)
        return ops.conv(inputs, kernel, strides=1, padding="valid") + self.bias

    def multiply_adds(
        self, input_shape: Sequence[int | None], output_shape: Sequence[int | None]
    ) -> int:
        """Return k² for each connection and position, as if absent ones cost nothing."""
        num_connections = sum(len(sources) for sources in self.connections)
        return _positions(output_shape) * self.kernel_size**2 * num_connections

    def get_config(self) -> dict[str, Any]:
        """Return what the layer is made again from."""
        config: dict[str, Any] = super().get_config()
        return config | {"connections": self.connections, "kernel_size": self.kernel_size}


@keras.saving.register_keras_serializable("cvbatch")
class RadialBasis(keras.layers.Layer):  # type: ignore[misc]
    """Compares a vector with one fixed code of ±1 for each class.

    Input: (B, F). Output: (B, units), minus the squared Euclidean distance to each code, so that
    the nearest is the highest. The codes are weights that are not trained. LeCun et al. 1998
    (section II.B) drew theirs as characters of 7×12 pixels; here they are drawn at random,
    always the same ones, about F/2 places apart, so that there are some for every class.
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the codes, (units, F)."""
        self.codes = self.add_weight(
            shape=(self.units, input_shape[-1]),
            initializer=_sign_codes,
            trainable=False,
            name="codes",
        )

    def call(self, inputs: Tensor) -> Tensor:  # (B, F) → (B, units)
        """Return minus the squared distances."""
        # expand_dims, not an index with None: LiteRT has no gradient of the latter
        return -ops.sum(ops.square(ops.expand_dims(inputs, 1) - self.codes), axis=-1)

    def multiply_adds(
        self, input_shape: Sequence[int | None], output_shape: Sequence[int | None]
    ) -> int:
        """Return one, the square, for each number of each code."""
        return self.units * int(input_shape[-1] or 0)

    def get_config(self) -> dict[str, Any]:
        """Return what the layer is made again from."""
        config: dict[str, Any] = super().get_config()
        return config | {"units": self.units}


@keras.saving.register_keras_serializable("cvbatch")  # type: ignore[untyped-decorator]
def scaled_tanh(x: Tensor) -> Tensor:
    """Return 1.7159 · tanh(2x/3), which is ±1 at ±1 (LeCun et al. 1998, appendix A)."""
    return 1.7159 * ops.tanh(x * (2 / 3))


def _sign_codes(shape: Sequence[int], dtype: Any = None) -> Tensor:  # → (classes, F) of ±1
    """Return codes that more classes only add to; this generator never changes its numbers."""
    bits = np.random.RandomState(1998).randint(0, 2, tuple(shape))
    return ops.convert_to_tensor(2.0 * bits - 1.0, dtype or keras.config.floatx())


def _positions(shape: Sequence[int | None]) -> int:
    """Return the positions of a map (batch, height, width, channels)."""
    return math.prod(int(side or 0) for side in shape[1:-1])
