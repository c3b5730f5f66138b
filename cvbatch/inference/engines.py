"""Compile a serving graph to a program and run it: LiteRT on CPUs, TensorFlow on GPUs.

An engine is two functions: `compile`, which needs TensorFlow, and `load`, which every worker calls.
Another engine is one more row of `ENGINES`. Loading and running a LiteRT program does not import
TensorFlow, so that a worker starts in about a second and needs little memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from cvbatch.models.frameworks import tf


Outputs = dict[str, np.ndarray]  # outputs of a program by name, each (B, ...)


class UnsupportedGraphError(Exception):
    """The engine lacks an operation of the graph; the message lists the missing operations."""


class Program(Protocol):
    """A compiled graph that is loaded in this process."""

    def __call__(self, pixels: np.ndarray) -> Outputs:  # (B, H, W, 3) uint8 RGB
        """Run the graph on a batch; B must be the batch size that it was compiled for."""


@dataclass(frozen=True)
class Engine:
    """How to compile a graph to a program, and how to load the program.

    Attributes:
        compile: function of (graph, batch, height, width) that returns the payload (bytes of the
            program) and the names of its outputs in the order of the payload; raises
            UnsupportedGraphError.
        load: function of (payload, names, threads) that returns a Program.
    """

    compile: Callable[[Any, int, int, int], tuple[bytes, tuple[str, ...]]]
    load: Callable[[bytes, tuple[str, ...], int], Program]


def _trace(graph: Any, batch: int, height: int, width: int, overrides: dict[str, str]) -> Any:
    """Trace the graph to a concrete function that returns a dict; overrides: gradients by op."""
    from cvbatch.models.frameworks import tf

    signature = [tf.TensorSpec((batch, height, width, 3), tf.uint8, name="pixels")]

    @tf.function(input_signature=signature, autograph=False)
    def traced(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.compat.v1.get_default_graph().gradient_override_map(overrides):
            return dict(graph(pixels))

    return traced.get_concrete_function()


def _output_names(function: Any) -> tuple[str, ...]:
    """Return the names of the outputs, sorted: the order in which TensorFlow flattens a dict."""
    return tuple(sorted(function.structured_outputs))


# ---------------------------------------------------------------- LiteRT


def _compile_litert(
    graph: Any, batch: int, height: int, width: int
) -> tuple[bytes, tuple[str, ...]]:
    from tensorflow.lite.python.convert_phase import ConverterError  # noqa: TID251 - tf is imported

    from cvbatch.inference.double_precision import in_float32
    from cvbatch.inference.litert_gradients import OVERRIDES
    from cvbatch.models.frameworks import tf

    function = _trace(graph, batch, height, width, OVERRIDES)
    names = _output_names(function)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([in_float32(function)])
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


def _load_litert(payload: bytes, names: tuple[str, ...], threads: int) -> Program:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=payload, num_threads=threads)
    interpreter.allocate_tensors()
    (input_details,) = interpreter.get_input_details()
    indices = [details["index"] for details in interpreter.get_output_details()]

    def run(pixels: np.ndarray) -> Outputs:
        interpreter.set_tensor(input_details["index"], pixels)
        interpreter.invoke()
        return {name: interpreter.get_tensor(i) for name, i in zip(names, indices, strict=True)}

    return run


# ---------------------------------------------------------------- TensorFlow


def _compile_tensorflow(
    graph: Any, batch: int, height: int, width: int
) -> tuple[bytes, tuple[str, ...]]:
    from tensorflow.python.framework.convert_to_constants import (  # noqa: TID251
        convert_variables_to_constants_v2,
    )

    function = _trace(graph, batch, height, width, {})
    frozen = convert_variables_to_constants_v2(function)
    definition = frozen.graph.as_graph_def()
    # The payload starts with the names of the tensors, because `prune` selects tensors by name.
    tensors = "\n".join([frozen.inputs[0].name, *(tensor.name for tensor in frozen.outputs)])
    header = tensors.encode()
    serialized = definition.SerializeToString(deterministic=True)
    payload = len(header).to_bytes(4, "big") + header + serialized
    return payload, _output_names(function)


def _load_tensorflow(payload: bytes, names: tuple[str, ...], threads: int) -> Program:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from cvbatch.models.frameworks import tf

    _set_devices(tf, threads)
    size = int.from_bytes(payload[:4], "big")
    input_name, *output_names = payload[4 : 4 + size].decode().split("\n")
    definition = tf.compat.v1.GraphDef.FromString(payload[4 + size :])
    wrapped = tf.compat.v1.wrap_function(
        lambda: tf.graph_util.import_graph_def(definition, name=""), []
    )
    function = wrapped.prune(input_name, output_names)

    def run(pixels: np.ndarray) -> Outputs:
        tensors = function(tf.constant(pixels))
        return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}

    return run


def _set_devices(tf: Any, threads: int) -> None:
    """Limit threads, and allocate GPU memory on demand so that actors can share a GPU.

    TensorFlow accepts these settings only before its first operation.
    """
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:  # TensorFlow already runs: the first program of this process set them
        return


ENGINES: dict[str, Engine] = {
    "litert": Engine(_compile_litert, _load_litert),
    "tensorflow": Engine(_compile_tensorflow, _load_tensorflow),
}
