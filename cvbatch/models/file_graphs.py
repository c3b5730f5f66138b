"""Graph of operations of a model file that is no Keras network: what can be read from it."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

# Operations that leave values as they are, under their names in ONNX and TFLite.
_KEEPING_TEXT = """Identity Reshape Flatten Squeeze Unsqueeze Transpose Cast Dropout Slice Gather
    Split Expand QuantizeLinear DequantizeLinear RESHAPE SQUEEZE EXPAND_DIMS TRANSPOSE CAST SLICE
    STRIDED_SLICE GATHER SPLIT QUANTIZE DEQUANTIZE"""
KEEPING = frozenset(_KEEPING_TEXT.split())
RESHAPING = frozenset(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout"))
_PADDING = frozenset(("Pad", "PAD", "PADV2", "MIRROR_PAD"))
_ARITHMETIC = frozenset(("Add", "Sub", "Mul", "Div", "ADD", "SUB", "MUL", "DIV"))


class Node(NamedTuple):
    """One operation, with the names of its tensors; an input that is left out is ""."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class FileGraph:
    """Operations of a model file in the order of execution.

    Attributes:
        nodes: of the main graph, without those of nested graphs.
        num_parameters: numbers of all constants.
    """

    nodes: tuple[Node, ...]
    num_parameters: int

    @cached_property
    def producers(self) -> dict[str, Node]:
        """Return the operation that computes each tensor."""
        return {name: node for node in self.nodes for name in node.outputs}

    def before(self, name: str, operations: Set[str]) -> str:
        """Return the tensor from which a tensor is computed with these operations only."""
        while (node := self.producers.get(name)) is not None and node.op in operations:
            name = node.inputs[0]
        return name

    def scales(self, input_name: str) -> bool:
        """Return whether every path from an input begins with arithmetic, after keeping values."""
        first = list(self._first_operations(input_name))
        return bool(first) and all(node.op in _ARITHMETIC for node in first)

    def _first_operations(self, input_name: str) -> Iterator[Node]:
        reached = {input_name}
        for node in self.nodes:
            if reached & set(node.inputs):
                if node.op in KEEPING | _PADDING:
                    reached |= set(node.outputs)
                elif node.op != "Shape":
                    yield node
