"""Compile a serving graph to a program and run it: LiteRT on CPUs, TensorFlow on GPUs.

Networks of ONNX and TFLite files run in their own runtime on CPUs (`cvbatch.inference.chain`).

An engine is two functions: `compile`, which needs TensorFlow, and `load`, which every worker calls.
Another engine is one more row of `ENGINES`. Loading and running a LiteRT program does not import
TensorFlow, so that a worker starts in about a second and needs little memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvbatch.inference.chain import load_chain
from cvbatch.inference.litert import compile_litert, load_function
from cvbatch.inference.program_types import Outputs, Program, UnsupportedGraphError
from cvbatch.inference.tracing import output_names, trace

__all__ = ["ENGINES", "LOADERS", "Engine", "Outputs", "Program", "UnsupportedGraphError"]


@dataclass(frozen=True)
class Engine:
    """How to compile a graph to a program, and how to load the program.

    Attributes:
        compile: function of (graph, batch, height, width) that returns the payload (bytes of the
            program) and the names of its outputs in the order of the payload; raises
            UnsupportedGraphError.
        load: function of (payload, names, threads) that returns a Program.
        packages: of extras that `load` imports.
    """

    compile: Callable[[Any, int, int, int], tuple[bytes, tuple[str, ...]]]
    load: Callable[[bytes, tuple[str, ...], int], Program]
    packages: tuple[str, ...] = ()


# ---------------------------------------------------------------- TensorFlow


def _compile_tensorflow(
    graph: Any, batch: int, height: int, width: int
) -> tuple[bytes, tuple[str, ...]]:
    from tensorflow.python.framework.convert_to_constants import (  # noqa: TID251
        convert_variables_to_constants_v2,
    )

    function = trace(graph, [((batch, height, width, 3), "uint8")], {})
    frozen = convert_variables_to_constants_v2(function)
    definition = frozen.graph.as_graph_def()
    # The payload starts with the names of the tensors, because `prune` selects tensors by name.
    tensors = "\n".join([frozen.inputs[0].name, *(tensor.name for tensor in frozen.outputs)])
    header = tensors.encode()
    serialized = definition.SerializeToString(deterministic=True)
    payload = len(header).to_bytes(4, "big") + header + serialized
    return payload, output_names(function)


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
    "litert": Engine(compile_litert, load_function),
    "tensorflow": Engine(_compile_tensorflow, _load_tensorflow, ("tensorflow", "keras")),
}
# Engine of a program → function that loads it. Chains are compiled from model files only.
LOADERS = {name: engine.load for name, engine in ENGINES.items()} | {"chain": load_chain}
