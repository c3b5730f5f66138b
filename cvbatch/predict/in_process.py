"""Predict a handful of images in this process, without Ray: `cvbatch.predict` for notebooks.

The steps are those of a job, so the rows are the same.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from cvbatch.config.loader import parse_job
from cvbatch.config.predict import JobConfig
from cvbatch.core.errors import ConfigError
from cvbatch.core.progress import Listener
from cvbatch.distributed import hardware
from cvbatch.distributed.resources import Allocation, local_resources
from cvbatch.inference.builder import ProgramBuilder
from cvbatch.inference.programs import program_uri
from cvbatch.models.job_defaults import complete_model
from cvbatch.predict.job import commit, prepare, samples_of
from cvbatch.predict.memory_check import check_programs
from cvbatch.predict.steps import FusedWorker
from cvbatch.results.result import Result
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage

Images = Any  # a path or URI, an array, a PIL image, or a sequence of these
_PNG = {"compress_level": 1}
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # others are converted
_LOG = logging.getLogger("cvbatch")


class _Log(Listener):
    """Writes notes to Python's logging, and warns of what may make predictions wrong."""

    def info(self, line: str) -> None:
        if line.startswith("warning: "):
            warnings.warn(line.removeprefix("warning: "), stacklevel=5)
        else:
            _LOG.info("%s", line)


def predict(
    images: Images,
    model: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    *,
    out: str | os.PathLike[str] | None = None,
    run: Mapping[str, Any] | None = None,
    **options: Any,
) -> Result:
    """Predict images and return their rows, in the order of the images.

    Args:
        images: a folder, pattern or URI as in a job file, or paths, URIs of files, arrays (H, W, 3)
            or (H, W) uint8 in RGB, or PIL images: one, or a sequence.
        model: a network's name or model file, or its section of a job file; or several.
        out: folder or URI of the result; None: a temporary one, deleted with the returned object.
        run: the section `run` of a job file.
        **options: keys of every model's section, such as task, classes, top_k or heatmap.

    Raises:
        CvbatchError: the job is refused.
    """
    folder = tempfile.TemporaryDirectory(prefix="cvbatch-")
    sink = os.fspath(out) if out is not None else str(Path(folder.name) / "result")
    models = [model] if isinstance(model, str | Mapping) else model
    completed = [complete_model({**_section(item), **options}) for item in models]
    values = {
        "source": _source_of(images, Path(folder.name)),
        "sink": {"uri": sink},
        "models": [section for section, _ in completed],
        "run": {"max_failure_fraction": 1.0, **(run or {})},
    }
    listener = _Log()
    for note in (note for _, note in completed if note):
        listener.info(f"warning: {note}")
    run_in_process(parse_job(values, name="cvbatch.predict"), listener)
    result = Result(Storage(), sink)
    result.temporary_folder = folder
    return result


def _section(model: str | Mapping[str, Any]) -> Mapping[str, Any]:
    return {"model": model} if isinstance(model, str) else model


def run_in_process(job: JobConfig, listener: Listener) -> None:
    """Run a prediction job in this process and a child that compiles the models.

    Raises:
        CvbatchError: the job is refused.
    """
    storage = Storage(job.run.retry_policy)
    with Sink(storage, job.sink.uri, "predict", listener.info) as sink:
        ready = prepare(job, sink, listener, local_resources())
        job = ready.job
        if not ready.plan.pending:
            return
        requests = ready.requests
        uris = [program_uri(sink.uri, request) for request in requests]
        built = ProgramBuilder(storage, requests, samples_of(ready), listener.info).result()
        check_programs(job, built, Allocation("fused", 1, 1.0, 0.0), hardware.memory_bytes())
        for note in (note for program in built for note in program.notes):
            listener.info(note)
        sink.acquire()
        worker = FusedWorker()
        worker.load(commit(ready, uris, built))
        for ref in ready.plan.pending:
            worker.work(ref, is_isolated=True)


def _source_of(images: Images, folder: Path) -> dict[str, Any]:
    """Return the section `source`: a path or URI, or a Parquet file of the images in memory."""
    if isinstance(images, str | os.PathLike):
        return {"uri": os.fspath(images)}
    items = [images] if isinstance(images, np.ndarray | Image.Image) else list(images)
    if not items:
        raise ConfigError("cvbatch.predict: there are no images")
    storage, seen = Storage(), Counter[str]()
    rows = []
    for number, item in enumerate(items):
        name, data = _encoded(item, number, storage)
        seen[name] += 1
        rows.append({"id": name if seen[name] == 1 else f"{name} ({seen[name]})", "image": data})
    path = folder / "images.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=64)
    return {"uri": str(path), "format": "parquet", "image_column": "image", "id_column": "id"}


def _encoded(item: Any, number: int, storage: Storage) -> tuple[str, bytes]:
    """Return an image's name and its bytes: those of its file, or a PNG of its pixels."""
    if isinstance(item, str | os.PathLike):
        return os.fspath(item), storage.read_bytes(os.fspath(item))
    if isinstance(item, np.ndarray):
        is_image = item.dtype == np.uint8 and (item.ndim == 2 or item.shape[2:] in ((3,), (4,)))
        if not is_image:
            raise ConfigError(
                f"cvbatch.predict: image {number} has shape {item.shape} and type {item.dtype}; it "
                "must be (H, W, 3) or (H, W), uint8"
            )
        item = Image.fromarray(item)
    item = ImageOps.exif_transpose(item)
    if item.mode not in _PNG_MODES:
        item = item.convert("RGB")
    buffer = io.BytesIO()
    item.save(buffer, "PNG", **_PNG)
    return f"image {number}", buffer.getvalue()
