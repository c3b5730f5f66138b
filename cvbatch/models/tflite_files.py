"""Check and read an untrusted TFLite file.

Source: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
"""

from __future__ import annotations

import math
import struct
from typing import Any

from cvbatch.core.errors import ModelError
from cvbatch.models.file_graphs import FileGraph, Node

_IDENTIFIER = b"TFL3"  # bytes 4..8 of a file
_CUSTOM = 32  # BuiltinOperator.CUSTOM
_KNOWN_CUSTOM = frozenset({"TFLite_Detection_PostProcess"})  # custom operations that LiteRT has
_DAMAGE = (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError)


def graph_of(content: bytes, name: str) -> FileGraph:
    """Return the operations of a TFLite file.

    Args:
        content: of the file.
        name: file as the user named it, for messages.

    Raises:
        ModelError: it is not a TFLite file, is damaged, refers to other files, or needs operations
            that LiteRT lacks.
    """
    from ai_edge_litert import schema_py_generated as schema

    if content[4:8] != _IDENTIFIER:
        raise ModelError(f"{name} is not a TFLite file; convert the model with LiteRT's converter")
    try:
        model = schema.Model.GetRootAsModel(content, 0)
        _check(model, name, len(content))
        return _graph(model, schema.BuiltinOperator, len(content))
    except _DAMAGE:
        raise ModelError(f"{name} is damaged or truncated; copy it again") from None


def _check(model: Any, name: str, size: int) -> None:
    if model.ExternalBuffersLength() or model.ExternalBufferGroupsLength():
        raise ModelError(f"{name} is refused: its weights are in other files")
    custom = set()
    for i in range(_length(model.OperatorCodesLength(), size)):
        code = model.OperatorCodes(i)
        if _builtin_code(code) == _CUSTOM:
            custom.add((code.CustomCode() or b"").decode(errors="replace"))
    if unknown := sorted(custom - _KNOWN_CUSTOM):
        raise ModelError(
            f"{name} needs operations that LiteRT lacks: {', '.join(unknown)[:200]}; convert the "
            "model with built-in operations only (target_spec.supported_ops = "
            "[tf.lite.OpsSet.TFLITE_BUILTINS]), or to ONNX"
        )


def _graph(model: Any, operators: Any, size: int) -> FileGraph:
    names = {code: name for name, code in vars(operators).items() if isinstance(code, int)}
    graph = model.Subgraphs(0)
    tensors = [graph.Tensors(i) for i in range(_length(graph.TensorsLength(), size))]
    labels = [tensor.Name().decode(errors="replace") for tensor in tensors]
    nodes = []
    for i in range(_length(graph.OperatorsLength(), size)):
        op = graph.Operators(i)
        code = _builtin_code(model.OperatorCodes(op.OpcodeIndex()))
        inputs, outputs = (
            tuple(labels[k] if k >= 0 else "" for k in (op_tensor(j) for j in range(count)))
            for op_tensor, count in (
                (op.Inputs, _length(op.InputsLength(), size)),
                (op.Outputs, _length(op.OutputsLength(), size)),
            )
        )
        nodes.append(Node(names.get(code, str(code)), inputs, outputs))
    num_parameters = sum(
        math.prod(tensor.Shape(k) for k in range(_length(tensor.ShapeLength(), size)))
        for tensor in tensors
        if model.Buffers(tensor.Buffer()).DataLength()
    )
    return FileGraph(tuple(nodes), num_parameters)


def _length(claimed: int, size: int) -> int:
    """Return the length of a vector; raise ValueError if the file is too small for it."""
    if claimed > size:
        raise ValueError("a vector is longer than the file")
    return claimed


def _builtin_code(code: Any) -> int:
    """Return the operation; old files have it in a field of one byte."""
    return max(int(code.BuiltinCode()), int(code.DeprecatedBuiltinCode()))
