"""Keras vision models over image archives, on Ray, into Parquet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cvbatch.core.version import __version__

if TYPE_CHECKING:
    from cvbatch.results.result import Result

__all__ = ["__version__", "load_model", "read"]


def load_model(path: str | os.PathLike[str]) -> Any:  # a keras.Model
    """Return the network of a .keras file, cvbatch's own layers known, nothing else run.

    Keras is imported here, not with the package. Plain `keras.saving.load_model` does the same
    once `cvbatch.models.registry` was imported.

    Raises:
        ModelError: there is no such file, it is damaged, or it needs code that safe mode refuses.
    """
    from pathlib import Path

    from cvbatch.models.registry import load_file

    return load_file(str(path), Path(path))


def read(path: str | os.PathLike[str]) -> Result:
    """Return the result of `cvbatch predict` in a folder, here or in a store, to look into.

    Iterate it for rows: labels, boxes, masks and heatmaps as arrays, pictures as PIL images.

    Raises:
        SourceError: there is no result, or it cannot be read.
    """
    from cvbatch.results.result import Result
    from cvbatch.storage.store import Storage

    return Result(Storage(), str(path))
