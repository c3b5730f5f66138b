"""Build the program of a user's model as a job does, and run it on images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cvbatch.config.loader import parse_job
from cvbatch.inference import programs
from cvbatch.storage.store import Storage


def built(model: str | Path, batch: int = 2, engine: str = "litert", **keys: Any) -> Any:
    """Return the program of a model's section; the task is classification by default."""
    from cvbatch.inference.compile import build

    section = {"task": "classification", "model": str(model), **keys}
    job = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": [section]})
    identity = programs.identify(Storage(), job.models[0])
    request = programs.BuildRequest(job.models[0], identity, engine, "float32", batch)
    return build(Storage(), request)


def outputs(model: str | Path, pixels: np.ndarray, **keys: Any) -> dict[str, np.ndarray]:
    """Return the outputs of the program for images (B, H, W, 3) uint8 of the input size."""
    return built(model, len(pixels), **keys).load(1)(pixels)
