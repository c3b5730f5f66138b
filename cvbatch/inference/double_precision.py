"""Convert a traced graph from float64 to float32, because LiteRT has no float64 kernels.

Keras promotes a float32 tensor and a NumPy constant to float64, so that a network whose anchors or
scales are NumPy arrays computes in float64 unintentionally. Imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cvbatch.models.frameworks import tf

_FLOAT, _DOUBLE = tf.float32.as_datatype_enum, tf.float64.as_datatype_enum


def in_float32(function: Any) -> Any:
    """Return a concrete function without float64; the same one if it has none.

    The inputs and the order of the outputs are those of `function`, whose variables become
    constants.
    """
    operations = function.graph.get_operations()
    if all(tensor.dtype != tf.float64 for op in operations for tensor in op.outputs):
        return function
    from tensorflow.python.framework.convert_to_constants import (  # noqa: TID251
        convert_variables_to_constants_v2,
    )

    frozen = convert_variables_to_constants_v2(function)
    definition = frozen.graph.as_graph_def()
    for attribute in _attributes(definition):
        _replace_double(attribute)
    wrapped = tf.compat.v1.wrap_function(
        lambda: tf.graph_util.import_graph_def(definition, name=""), []
    )
    inputs, outputs = ([t.name for t in tensors] for tensors in (frozen.inputs, frozen.outputs))
    return wrapped.prune(inputs, outputs)


def _replace_double(attribute: Any) -> None:
    """Change a data type, a list of them, or a constant, in place."""
    kind = attribute.WhichOneof("value")
    if kind == "type" and attribute.type == _DOUBLE:
        attribute.type = _FLOAT
    elif kind == "list" and attribute.list.type:
        attribute.list.type[:] = [_FLOAT if t == _DOUBLE else t for t in attribute.list.type]
    elif kind == "tensor" and attribute.tensor.dtype == _DOUBLE:
        values = tf.make_ndarray(attribute.tensor).astype(np.float32)
        attribute.tensor.CopyFrom(tf.make_tensor_proto(values))


def _attributes(definition: Any) -> Iterator[Any]:
    """Yield the attributes of all nodes, those of functions that the graph calls among them."""
    for node in definition.node:
        yield from node.attr.values()
    for function in definition.library.function:
        for node in function.node_def:
            yield from node.attr.values()
