"""Types and archives of programs that all engines share."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Protocol

import numpy as np

_EPOCH = (1980, 1, 1, 0, 0, 0)  # constant time in the zip, so that equal programs are equal bytes
Outputs = dict[str, np.ndarray]  # outputs of a program by name, each (B, ...)


class UnsupportedGraphError(Exception):
    """The engine lacks an operation of the graph; the message lists the missing operations."""


class Program(Protocol):
    """A compiled graph that is loaded in this process."""

    def __call__(self, pixels: np.ndarray) -> Outputs:  # (B, H, W, 3) uint8 RGB
        """Run the graph on a batch; B must be the batch size that it was compiled for."""


def archive_of(members: Mapping[str, str | bytes]) -> bytes:
    """Return an uncompressed zip of members by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return buffer.getvalue()
