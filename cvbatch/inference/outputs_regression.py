"""Outputs of the serving graph for regression: numbers as the network gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvbatch.config.models import RegressionConfig
from cvbatch.inference.forward_pass import ForwardPass, Tensors
from cvbatch.models.outputs import select_output


def values_output(config: RegressionConfig, outputs: Mapping[str, Any]) -> Any:
    """Return the output (B, values). Raises ModelError if it is not unique."""
    expected = "one output of numbers (B, values)"
    return select_output("regression", expected, outputs, config.output, 2)


def count_values(config: RegressionConfig, outputs: Mapping[str, Any]) -> int:
    """Return the number of values of an image."""
    return int(values_output(config, outputs).shape[-1])


def compute(forward: ForwardPass) -> Tensors:
    """Return values (B, D)."""
    values = values_output(forward.config, forward.outputs)
    forward.dimension = int(values.shape[-1])
    return {"values": values}
