"""Programs of networks of model files: pixels → input, the file in its runtime, outputs → task.

The input is an affine function of the pixels, computed in NumPy, which is ten times faster than in
LiteRT. The outputs of the task are a LiteRT program of the serving graph after the network.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cvbatch.core.errors import ModelError
from cvbatch.inference.litert import compile_function, load_function
from cvbatch.inference.program_types import Outputs, Program, archive_of
from cvbatch.inference.runtimes import RUNTIMES

if TYPE_CHECKING:
    from cvbatch.inference.foreign import ForeignNetwork
    from cvbatch.inference.graph import ServingGraph, SharedGraph

_TOLERANCE = 1e-4  # of the network's input, relative to its largest number


class InputFunction(NamedTuple):
    """The network's input as an affine function of the pixels of each position.

    Attributes:
        matrix: (3, C) input channels from RGB.
        offset: (C,).
        is_channels_first: whether the input is (B, C, H, W) instead of (B, H, W, C).
    """

    matrix: np.ndarray
    offset: np.ndarray
    is_channels_first: bool

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return the input (float32) of pixels (B, H, W, 3) uint8."""
        batch, *size, _ = pixels.shape
        channels = len(self.offset)
        shape = (batch, channels, *size) if self.is_channels_first else (batch, *size, channels)
        images = np.empty(shape, np.float32)
        for c in range(channels):
            plane = images[:, c] if self.is_channels_first else images[..., c]
            plane[...] = self.offset[c]
            for k in np.flatnonzero(self.matrix[:, c]):
                plane += pixels[..., k] * self.matrix[k, c]
        return images


def compile_chain(
    graph: SharedGraph, network: ForeignNetwork, size: tuple[int, int, int]
) -> tuple[bytes, tuple[str, ...]]:
    """Return the payload and the names of the outputs of a network of a model file.

    Args:
        graph: of the network.
        network: of the file.
        size: batch, height and width of the input.
    """
    from cvbatch.inference.graph import record

    batch, height, width = size
    function = input_function(graph.graphs[0], is_channels_first=network.is_channels_first)

    def after(*raw: Any) -> dict[str, Any]:
        tensors = dict(zip(network.names, raw, strict=True))
        return graph.compute(*record(network, lambda: network.read(tensors, (height, width))))

    outputs = network.raw_outputs((height, width))
    inputs = [((batch, *shape), dtype) for shape, dtype in outputs]
    program, names = compile_function(after, inputs)
    facts = {
        "runtime": network.format,
        "names": network.names,
        "matrix": function.matrix.tolist(),
        "offset": function.offset.tolist(),
        "is_channels_first": function.is_channels_first,
    }
    payload = archive_of(
        {"chain.json": json.dumps(facts), "network": network.content, "after": program}
    )
    return payload, names


def input_function(graph: ServingGraph, *, is_channels_first: bool) -> InputFunction:
    """Return the affine function that the graph's preprocessing is.

    Raises:
        ModelError: it is not affine.
    """
    random = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8)
    corners = np.concatenate([np.zeros((1, 3), np.uint8), np.eye(3, dtype=np.uint8) * 255])
    values = graph.preprocessed(corners[None, None])[0, 0].astype(np.float64)
    matrix = ((values[1:] - values[0]) / 255).astype(np.float32)
    function = InputFunction(matrix, values[0].astype(np.float32), is_channels_first)
    expected = graph.preprocessed(random)
    found = function._replace(is_channels_first=False)(random)
    if np.abs(found - expected).max() > _TOLERANCE * np.abs(expected).max():
        raise ModelError("the preprocessing is not an affine function of the pixels")
    return function


def load_chain(payload: bytes, names: tuple[str, ...], threads: int) -> Program:
    """Load a payload of `compile_chain`."""
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        facts = json.loads(archive.read("chain.json"))
        network = RUNTIMES[facts["runtime"]](archive.read("network"), threads)
        after = load_function(archive.read("after"), names, threads)
    function = InputFunction(
        np.array(facts["matrix"], np.float32),
        np.array(facts["offset"], np.float32),
        facts["is_channels_first"],
    )

    def run(pixels: np.ndarray) -> Outputs:
        return after(*network(function(pixels), facts["names"]))

    return run
