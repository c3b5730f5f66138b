"""Compile functions of tensors to LiteRT programs and run them; running imports no TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cvbatch.inference.program_types import Outputs, Program, UnsupportedGraphError
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


def load_litert(payload: bytes, names: tuple[str, ...], threads: int) -> Program:
    """Load the program of a serving graph."""
    return load_function(payload, names, threads)


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
