"""What a network needs, found before it runs: weights, multiply-adds, memory of feature maps."""

from __future__ import annotations

import math
from typing import NamedTuple

from cvbatch.core.errors import ModelError
from cvbatch.inference.foreign import ForeignNetwork
from cvbatch.inference.programs import BuildRequest
from cvbatch.models.cost import FLOAT32_BYTES, compute_cost
from cvbatch.models.frameworks import keras, tf

# TensorFlow's operations without own memory, or whose result may be part of the next operation.
_VIEWS = {
    "BroadcastTo", "Cast", "Const", "ExpandDims", "Fill", "Identity", "MirrorPad", "Pad", "PadV2",
    "Placeholder", "ReadVariableOp", "Reshape", "SpaceToBatchND", "Squeeze", "StopGradient",
}  # fmt: skip


class NetworkCost(NamedTuple):
    """What a network needs.

    Attributes:
        parameters: number of weights; None: not known.
        multiply_adds: for one image; None: not known.
        weight_bytes: memory of the weights.
        map_bytes: lower bound of the memory for the feature maps of one image, as float32.
        largest_layer: path of the layer that needs `map_bytes`; "": not known.
    """

    parameters: int | None
    multiply_adds: int | None
    weight_bytes: int
    map_bytes: int = 0
    largest_layer: str = ""


def cost_of(model: keras.Model | ForeignNetwork, image_size: tuple[int, int]) -> NetworkCost:
    """Return what a network needs; nothing is computed.

    A model that is not a graph of layers is traced, and its memory is that of its largest tensor.
    """
    if isinstance(model, ForeignNetwork):  # its layers are known to its own runtime only
        return NetworkCost(model.graph.num_parameters, None, len(model.content))
    weight_bytes = FLOAT32_BYTES * sum(math.prod(weight.shape) for weight in model.weights)
    try:
        layers = compute_cost(model, image_size)
    except ModelError:
        return NetworkCost(None, None, weight_bytes, *_traced_memory(model, image_size))
    multiply_adds = None if layers.is_at_least else layers.multiply_adds
    memory = layers.working_bytes, layers.working_layer
    return NetworkCost(layers.parameters, multiply_adds, weight_bytes, *memory)


def _traced_memory(model: keras.Model, image_size: tuple[int, int]) -> tuple[int, str]:
    batch = model.input_shape[0] or 1
    spec = tf.TensorSpec((batch, *image_size, model.input_shape[3]), tf.float32)
    traced = tf.function(lambda images: model(images, training=False), autograph=False)
    num_bytes, layer = _largest_tensor(traced.get_concrete_function(spec))
    return num_bytes // batch, layer


def _largest_tensor(function: tf.types.experimental.ConcreteFunction) -> tuple[int, str]:
    """Return size and operation of the largest tensor that the outputs of a function need."""
    pending = [tensor.op for tensor in function.outputs]
    visited = {op.name for op in pending}
    largest = (0, "")
    while pending:
        op = pending.pop()
        if op.type not in _VIEWS:
            shapes = [tensor.shape for tensor in op.outputs if tensor.dtype.is_floating]
            known = [shape for shape in shapes if shape.is_fully_defined()]
            size = FLOAT32_BYTES * sum(math.prod(shape) for shape in known)
            largest = max(largest, (size, op.name))
        for tensor in op.inputs:
            if tensor.op.name not in visited:
                visited.add(tensor.op.name)
                pending.append(tensor.op)
    return largest


def images_that_fit(request: BuildRequest, cost: NetworkCost) -> int | None:
    """Return how many images the network can process at once on this machine; None: unknown.

    Args:
        request: has the free memory of this machine before the model was loaded.
        cost: of the network, whose loaded weights are part of the memory.

    Raises:
        ModelError: not even one image fits.
    """
    memory = request.memory_bytes
    if memory is None:
        return None
    count = max(0, memory - cost.weight_bytes) // max(1, cost.map_bytes)
    if count:
        return count
    batch = request.batch_size
    raise ModelError(
        f"model {request.config.model!r} does not fit in memory: its layer {cost.largest_layer!r} "
        f"needs at least {cost.map_bytes:,} bytes for one image ({cost.map_bytes * batch:,} for "
        f"run.batch_size {batch}), its weights {cost.weight_bytes:,}, and this machine has "
        f"{memory:,} bytes free; choose a smaller image_size or model, or a larger machine"
    )
