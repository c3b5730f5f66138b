"""Types of programs that all engines share."""

from __future__ import annotations

from typing import Protocol

import numpy as np

Outputs = dict[str, np.ndarray]  # outputs of a program by name, each (B, ...)


class UnsupportedGraphError(Exception):
    """The engine lacks an operation of the graph; the message lists the missing operations."""


class Program(Protocol):
    """A compiled graph that is loaded in this process."""

    def __call__(self, pixels: np.ndarray) -> Outputs:  # (B, H, W, 3) uint8 RGB
        """Run the graph on a batch; B must be the batch size that it was compiled for."""
