"""Range of the outputs of a model file, derived from its last operations."""

from __future__ import annotations

from dataclasses import replace

from cvbatch.inference.value_ranges import Values
from cvbatch.models.file_graphs import KEEPING, FileGraph, Node

_LINEAR_TEXT = """Gemm MatMul Conv ConvTranspose LogSoftmax BatchNormalization QLinearConv
    QLinearMatMul QGemm ConvInteger MatMulInteger FULLY_CONNECTED CONV_2D DEPTHWISE_CONV_2D
    TRANSPOSE_CONV BATCH_MATMUL LOG_SOFTMAX"""
_LINEAR = frozenset(_LINEAR_TEXT.split())
_BIASED = frozenset(("Add", "ADD"))  # of a linear operation and a constant, or of two linear ones
_RESIZING = frozenset(("Resize", "Upsample", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"))
_JOINING = frozenset(("Concat", "CONCATENATION"))
_ACTIVATIONS = {
    "Softmax": Values(0.0, 1.0, 1.0, frozenset({"softmax"})),
    "SOFTMAX": Values(0.0, 1.0, 1.0, frozenset({"softmax"})),
    "Sigmoid": Values(0.0, 1.0, None, frozenset({"sigmoid"})),
    "LOGISTIC": Values(0.0, 1.0, None, frozenset({"sigmoid"})),
}
_MAX_STEPS = 20


def values_of_output(graph: FileGraph, name: str, steps: int = 0) -> Values:
    """Return what the last operations say about the values of a tensor.

    Args:
        graph: of the model file.
        name: of the tensor.
        steps: operations that were followed before.
    """
    name = graph.before(name, KEEPING)
    node = graph.producers.get(name)
    unknown = Values(source=name, is_known=False)
    if node is None or steps > _MAX_STEPS:
        return unknown
    if node.op in _ACTIVATIONS:
        return replace(_ACTIVATIONS[node.op], source=name)
    if node.op in _LINEAR:
        return Values(source=name)
    inputs = [values_of_output(graph, source, steps + 1) for source in node.inputs if source]
    return _combined(node, inputs, unknown)


def _combined(node: Node, inputs: list[Values], unknown: Values) -> Values:
    if node.op in _RESIZING:  # of probabilities it may be bicubic; the scores show that
        return replace(inputs[0], row_sum=None)
    if node.op in _BIASED and any(values.are_logits for values in inputs):
        return Values(source=unknown.source)
    is_uniform = len({replace(values, source="") for values in inputs}) == 1
    if node.op in _JOINING and is_uniform:
        return replace(inputs[0], row_sum=None)
    return unknown
