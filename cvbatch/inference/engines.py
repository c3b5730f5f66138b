"""Makes a program of a graph, once for a job, and runs it: LiteRT on CPU, TensorFlow on GPU.

An engine is two functions: `compile` (where TensorFlow is) and `load` (in every worker). A third
engine is one more row of `ENGINES`. Loading and running a LiteRT program never imports
TensorFlow: a worker is ready in a second and stays small.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf


Outputs = dict[str, np.ndarray]  # of a program, by name; the first axis is the image


class UnsupportedGraphError(Exception):
    """The engine has no operation for something in the graph; another engine must run it."""


class Program(Protocol):
    """A compiled graph, loaded."""

    def __call__(self, pixels: np.ndarray) -> Outputs:  # (B, H, W, 3) uint8 →
        """Return the graph's results for exactly the batch size it was compiled for."""


@dataclass(frozen=True)
class Engine:
    """How to make a program and how to load it.

    compile(graph, batch, height, width) → (payload, output names in the payload's order).
    load(payload, names, threads) → Program.
    """

    compile: Callable[[Any, int, int, int], tuple[bytes, tuple[str, ...]]]
    load: Callable[[bytes, tuple[str, ...], int], Program]


def _trace(graph: Any, batch: int, height: int, width: int, overrides: dict[str, str]) -> Any:
    """Return the graph as a concrete function whose results are a dict."""
    import tensorflow as tf

    signature = [tf.TensorSpec((batch, height, width, 3), tf.uint8, name="pixels")]

    @tf.function(input_signature=signature, autograph=False)
    def traced(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.compat.v1.get_default_graph().gradient_override_map(overrides):
            return dict(graph(pixels))

    return traced.get_concrete_function()


def _output_names(function: Any) -> tuple[str, ...]:
    """Return the results' names in the order in which TensorFlow flattens a dict: sorted."""
    return tuple(sorted(function.structured_outputs))


# ---------------------------------------------------------------- LiteRT


def _compile_litert(
    graph: Any, batch: int, height: int, width: int
) -> tuple[bytes, tuple[str, ...]]:
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    from cvbatch.inference.litert_gradients import OVERRIDES

    function = _trace(graph, batch, height, width, OVERRIDES)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    try:
        return converter.convert(), _output_names(function)
    except ConverterError as error:
        raise UnsupportedGraphError(_missing_operations(str(error))) from None


def _missing_operations(message: str) -> str:
    """Return the operations LiteRT lacks, as its converter names them in many lines."""
    names = sorted(
        {
            line.split("tf.")[1].split(" ")[0].split("(")[0].strip("'\"")
            for line in message.splitlines()
            if line.strip().startswith("tf.")
        }
    )
    return ", ".join(names) or " ".join(message.split())[:200]


def _load_litert(payload: bytes, names: tuple[str, ...], threads: int) -> Program:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=payload, num_threads=threads)
    interpreter.allocate_tensors()
    (pixels_in,) = interpreter.get_input_details()
    out = [details["index"] for details in interpreter.get_output_details()]

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        interpreter.set_tensor(pixels_in["index"], pixels)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in zip(names, out, strict=True)}

    return run


# ---------------------------------------------------------------- TensorFlow


def _compile_tensorflow(
    graph: Any, batch: int, height: int, width: int
) -> tuple[bytes, tuple[str, ...]]:
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    function = _trace(graph, batch, height, width, {})
    frozen = convert_variables_to_constants_v2(function)
    definition = frozen.graph.as_graph_def()
    # The tensors' own names lead the payload: they are what `prune` asks for.
    tensors = "\n".join([frozen.inputs[0].name, *(tensor.name for tensor in frozen.outputs)])
    head = tensors.encode()
    payload = len(head).to_bytes(4, "big") + head + definition.SerializeToString(deterministic=True)
    return payload, _output_names(function)


def _load_tensorflow(payload: bytes, names: tuple[str, ...], threads: int) -> Program:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    _set_devices(tf, threads)
    size = int.from_bytes(payload[:4], "big")
    pixels_in, *out = payload[4 : 4 + size].decode().split("\n")
    definition = tf.compat.v1.GraphDef.FromString(payload[4 + size :])
    wrapped = tf.compat.v1.wrap_function(
        lambda: tf.graph_util.import_graph_def(definition, name=""), []
    )
    function = wrapped.prune(pixels_in, out)

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        results = function(tf.constant(pixels))
        return {name: tensor.numpy() for name, tensor in zip(names, results, strict=True)}

    return run


def _set_devices(tf: Any, threads: int) -> None:
    """Bound threads, and let actors share a GPU by taking its memory as they need it.

    TensorFlow takes this only before its first operation.
    """
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:  # already running: the process' first program set them
        return


ENGINES: dict[str, Engine] = {
    "litert": Engine(_compile_litert, _load_litert),
    "tensorflow": Engine(_compile_tensorflow, _load_tensorflow),
}
