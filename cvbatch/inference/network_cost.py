"""Refuse a network whose feature maps do not fit in memory, before it runs on any image."""

from __future__ import annotations

import math
from typing import NamedTuple

from cvbatch.core.errors import ModelError
from cvbatch.inference.foreign import ForeignNetwork
from cvbatch.inference.programs import BuildRequest
from cvbatch.models import cost
from cvbatch.models.frameworks import keras, tf

# TensorFlow's operations without own memory, or whose result may be part of the next operation.
_VIEWS = {
    "BroadcastTo", "Cast", "Const", "ExpandDims", "Fill", "Identity", "MirrorPad", "Pad", "PadV2",
    "Placeholder", "ReadVariableOp", "Reshape", "SpaceToBatchND", "Squeeze", "StopGradient",
}  # fmt: skip


class WorkingMemory(NamedTuple):
    """Lower bound of the memory for the feature maps of one image, and the layer that needs it."""

    num_bytes: int  # as float32
    layer: str


def working_memory(
    model: keras.Model | ForeignNetwork, costs: cost.Cost | None, image_size: tuple[int, int]
) -> WorkingMemory:
    """Return the memory that the network needs for one image; nothing is computed.

    Args:
        costs: of the model; None: it is not a graph of layers, so that it is traced, and its memory
            is that of its largest tensor.
    """
    if isinstance(model, ForeignNetwork):  # its layers are known to its own runtime only
        return WorkingMemory(0, "")
    if costs is not None:
        return WorkingMemory(costs.working_bytes, costs.working_layer)
    batch = model.input_shape[0] or 1
    spec = tf.TensorSpec((batch, *image_size, model.input_shape[3]), tf.float32)
    traced = tf.function(lambda images: model(images, training=False), autograph=False)
    num_bytes, layer = _largest_tensor(traced.get_concrete_function(spec))
    return WorkingMemory(num_bytes // batch, layer)


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
            size = cost.FLOAT32_BYTES * sum(math.prod(shape) for shape in known)
            largest = max(largest, (size, op.name))
        for tensor in op.inputs:
            if tensor.op.name not in visited:
                visited.add(tensor.op.name)
                pending.append(tensor.op)
    return largest


def images_that_fit(
    request: BuildRequest, model: keras.Model | ForeignNetwork, working: WorkingMemory
) -> int | None:
    """Return how many images the network can process at once on this machine; None: unknown.

    Args:
        request: has the free memory of this machine before the model was loaded.
        model: loaded; its weights are part of the memory.
        working: memory of the feature maps of one image.

    Raises:
        ModelError: not even one image fits.
    """
    memory = request.memory_bytes
    if memory is None:
        return None
    weight_bytes = (
        len(model.content)
        if isinstance(model, ForeignNetwork)
        else cost.FLOAT32_BYTES * sum(math.prod(weight.shape) for weight in model.weights)
    )
    count = max(0, memory - weight_bytes) // max(1, working.num_bytes)
    if count:
        return int(count)
    batch = request.batch_size
    raise ModelError(
        f"model {request.config.model!r} does not fit in memory: its layer {working.layer!r} needs "
        f"at least {working.num_bytes:,} bytes for one image ({working.num_bytes * batch:,} for "
        f"run.batch_size {batch}), its weights {weight_bytes:,}, and this machine has {memory:,} "
        "bytes free; choose a smaller image_size or model, or a larger machine"
    )
