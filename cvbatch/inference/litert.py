"""Compile functions of tensors to LiteRT programs, run and measure them.

Only compiling imports TensorFlow.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from cvbatch.inference.program_types import Outputs, UnsupportedGraphError
from cvbatch.inference.tracing import Input, output_names, trace


def compile_litert(
    graph: Any, batch: int, height: int, width: int
) -> tuple[bytes, tuple[str, ...]]:
    """Return the program of a serving graph, and the names of its outputs."""
    return compile_function(graph, [((batch, height, width, 3), "uint8")])


def compile_function(
    function: Callable[..., Any], inputs: Sequence[Input]
) -> tuple[bytes, tuple[str, ...]]:
    """Return the program of a function of tensors, and the names of its outputs.

    Args:
        function: takes tensors in the order of `inputs`, and returns tensors by name.
        inputs: shape and dtype of each.

    Raises:
        UnsupportedGraphError: LiteRT lacks an operation.
    """
    from tensorflow.lite.python.convert_phase import ConverterError  # noqa: TID251 - tf is imported

    from cvbatch.inference.double_precision import in_float32
    from cvbatch.inference.litert_gradients import OVERRIDES
    from cvbatch.models.frameworks import tf

    traced = trace(function, inputs, OVERRIDES)
    names = output_names(traced)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([in_float32(traced)])
    try:
        return converter.convert(), names
    except ConverterError as error:
        raise UnsupportedGraphError(_missing_operations(str(error))) from None


# In the converter's message: an error, or a line of its list of operations with their operands.
_MISSING = re.compile(r"error: 'tf\.(\w+)' op|^\s+tf\.(\w+)\((tensor<.*)", re.MULTILINE)
_MAX_DIMENSIONS = 6  # of the operands of LiteRT's kernels


def _missing_operations(message: str) -> str:
    """Return the operations that LiteRT lacks, from the many lines of its converter's message."""
    dimensions: dict[str, int] = {}
    for named, listed, operands in _MISSING.findall(message):
        name = named or listed
        found = [shape.count("x") for shape in re.findall(r"tensor<([^>]*)>", operands)]
        dimensions[name] = max([dimensions.get(name, 0), *found])
    texts = [
        f"{name} of {count} dimensions" if count > _MAX_DIMENSIONS else name
        for name, count in sorted(dimensions.items())
    ]
    first_error = re.search(r"error: (.*)", message)
    return ", ".join(texts) or (first_error[1] if first_error else " ".join(message.split()))[:200]


def load_function(payload: bytes, names: tuple[str, ...], threads: int) -> Callable[..., Outputs]:
    """Load a program; the function that is returned takes its inputs as arrays, in their order."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=payload, num_threads=threads)
    interpreter.allocate_tensors()
    # LiteRT does not keep the order of the inputs, but their names, which end in a number
    inputs = sorted(interpreter.get_input_details(), key=lambda details: _number(details["name"]))
    indices = [details["index"] for details in interpreter.get_output_details()]

    def run(*arrays: np.ndarray) -> Outputs:
        for details, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(details["index"], array)
        interpreter.invoke()
        return {name: interpreter.get_tensor(i) for name, i in zip(names, indices, strict=True)}

    return run


def _number(name: str) -> int:
    """Return the number at the end of the name of an input; 0 without one (old programs)."""
    digits = name.rpartition("_")[2].split(":")[0]
    return int(digits) if digits.isdecimal() else 0


# Operations that cannot write their result over their input.
_OUT_OF_PLACE = {
    "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED", "MAX_POOL_2D", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR",
    "TRANSPOSE_CONV",
}  # fmt: skip


def live_bytes(payload: bytes) -> int:
    """Return the largest sum of the tensors that are needed at the same time, without weights.

    A tensor is needed from the operation that computes it until the last one that reads it. Nothing
    is allocated, so that a program that does not fit in memory can be measured.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # whose operations would be hidden
    interpreter = Interpreter(model_content=payload, experimental_op_resolver_type=resolver)
    operations = interpreter._get_ops_details()  # not public, but the only list of operations
    written = {details["index"]: 0 for details in interpreter.get_input_details()}
    read: dict[int, int] = defaultdict(int)
    for step, operation in enumerate(operations, 1):
        written |= dict.fromkeys(map(int, operation["outputs"]), step)
        # Between its steps a program needs only what later steps read.
        is_needed = operation["op_name"] in _OUT_OF_PLACE
        for index in map(int, operation["inputs"]):
            read[index] = max(read[index], step if is_needed else step - 1)
    read |= dict.fromkeys((x["index"] for x in interpreter.get_output_details()), len(operations))
    changes = [0] * (len(operations) + 2)
    for tensor in interpreter.get_tensor_details():
        first = written.get(tensor["index"])
        if first is not None:  # else it is a constant
            size = math.prod(map(int, tensor["shape"])) * np.dtype(tensor["dtype"]).itemsize
            changes[first] += size
            changes[max(first, read[tensor["index"]]) + 1] -= size
    return max(accumulate(changes))
