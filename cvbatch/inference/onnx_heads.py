"""Cut an ONNX network before global average pooling, so that Keras layers explain its scores.

The file's part computes the feature map; pooling, the dense layer and its activation become Keras
layers of the serving graph, where Grad-CAM has a closed form (`cvbatch.inference.gradcam`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cvbatch.core.extras import require
from cvbatch.models import onnx_files
from cvbatch.models.file_graphs import RESHAPING, FileGraph, Node
from cvbatch.models.frameworks import keras

_ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}


class _Dense(NamedTuple):
    """A dense layer: its input, kernel (channels, units) and bias (units,)."""

    source: str
    kernel: np.ndarray
    bias: np.ndarray


class Head(NamedTuple):
    """The layers after a feature map.

    Attributes:
        scores: name of the output that they compute.
        features: name of the feature map (B, channels, h, w).
        layers: Keras model of (B, h, w, channels).
    """

    scores: str
    features: str
    layers: keras.Model


def cut_before_pooling(model: Any, graph: FileGraph, output: str | None) -> Head | None:
    """Make the feature map an output of a model, instead of the class scores.

    Args:
        model: onnx.ModelProto, changed in place.
        graph: of the model.
        output: name of the class scores; None: the only output.

    Returns:
        None if the scores are not one dense layer of globally averaged feature maps.
    """
    names = [value.name for value in model.graph.output]
    if output not in names and len(names) > 1:
        return None
    scores = str(output if output in names else names[0])
    node = graph.producers.get(graph.before(scores, RESHAPING))
    activation = _ACTIVATIONS.get(node.op) if node else None
    dense = _dense(model, graph, node.inputs[0] if node and activation else scores)
    if dense is None:
        return None
    pooling = graph.producers.get(graph.before(dense.source, RESHAPING))
    if pooling is None or not _is_global_average(model, pooling):
        return None
    features = pooling.inputs[0]
    if features in names:
        return None
    onnx = require("onnx", "onnx")
    del model.graph.output[names.index(scores)]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(features))
    return Head(scores, features, _layers(dense, activation, features))


def _dense(model: Any, graph: FileGraph, name: str) -> _Dense | None:
    """Return the dense layer that computes a tensor; None if it is another operation."""
    node = graph.producers.get(graph.before(name, RESHAPING))
    if node is None:
        return None
    if node.op == "Gemm":
        return _gemm(model, node)
    bias: Any = 0.0
    if node.op == "Add":
        constants = [onnx_files.constant(model, name) for name in node.inputs]
        known = [array for array in constants if array is not None]
        products = [s for s, c in zip(node.inputs, constants, strict=True) if c is None]
        if len(known) != 1 or len(products) != 1:
            return None
        bias = known[0].reshape(-1)
        node = graph.producers.get(products[0])
    if node is None or node.op != "MatMul":
        return None
    kernel = onnx_files.constant(model, node.inputs[1])
    if kernel is None or kernel.ndim != 2:
        return None
    return _Dense(node.inputs[0], kernel, np.broadcast_to(bias, kernel.shape[1:]))


def _gemm(model: Any, node: Node) -> _Dense | None:
    values = _attributes(model, node)
    kernel = onnx_files.constant(model, node.inputs[1])
    if kernel is None or values.get("alpha", 1) != 1 or values.get("beta", 1) != 1:
        return None
    if values.get("transB", 0):
        kernel = kernel.T
    bias: Any = 0.0
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = onnx_files.constant(model, node.inputs[2])
    if bias is None or values.get("transA", 0):
        return None
    return _Dense(node.inputs[0], kernel, np.broadcast_to(bias, kernel.shape[1:]))


def _is_global_average(model: Any, node: Node) -> bool:
    """Return whether an operation averages (B, C, h, w) over height and width."""
    if node.op == "GlobalAveragePool":
        return True
    if node.op != "ReduceMean":
        return False
    axes = _attributes(model, node).get("axes")
    if axes is None and len(node.inputs) > 1:
        axes = onnx_files.constant(model, node.inputs[1])
    return axes is not None and sorted(int(axis) % 4 for axis in axes) == [2, 3]


def _attributes(model: Any, node: Node) -> dict[str, Any]:
    onnx = require("onnx", "onnx")
    found = next(n for n in model.graph.node if tuple(n.output) == node.outputs)
    return {a.name: onnx.helper.get_attribute_value(a) for a in found.attribute}


def _layers(dense: _Dense, activation: str | None, features: str) -> keras.Model:
    channels, units = dense.kernel.shape
    layer = keras.layers.Dense(units, activation=activation, name="dense")
    head = keras.Sequential(
        [
            keras.Input((None, None, channels)),
            keras.layers.Activation("linear", name=features.replace("/", ".").strip(".")),
            keras.layers.GlobalAveragePooling2D(),
            layer,
        ],
        name="head",
    )
    layer.set_weights([dense.kernel, dense.bias])
    return head
