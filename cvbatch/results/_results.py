"""A prediction's sink is found and held to what an evaluation needs of it."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.config.predict import TASK_COLUMNS
from cvbatch.core.errors import SourceError
from cvbatch.results import writer
from cvbatch.results.parts import ANSWERS, Parts, describe
from cvbatch.storage import store

_THREADS = 16


class Part(NamedTuple):
    """A chunk's file, and the images in it."""

    uri: str
    image_id: pa.Array  # large_string, in the file's order


@dataclass(frozen=True)
class Result:
    """A prediction's result, as far as it is known without reading an answer."""

    uri: str
    parts: tuple[Part, ...]
    classes: dict[str, tuple[str, ...]]  # of the columns labels, boxes and mask
    models: dict[str, dict[str, Any]]  # what the files say of the model that filled the column
    num_chunks_left: int  # that are planned and not done
    identity: str  # SHA-256 of the job's fingerprint and the files' names and sizes


def find_result(uri: str) -> Result:
    """Return what a sink of `cvbatch predict` holds; of its rows only the image ids are read.

    Raises:
        SourceError: there is none, it is empty, or it was written by another schema or by two jobs.
    """
    try:
        parts = Parts.find(uri)
    except SourceError as error:
        raise SourceError(f"predictions {uri}: {error}") from None
    if not store.exists(store.join(uri, "_cvbatch/job.json")):
        raise SourceError(
            f"predictions {uri}: there is no result of a prediction; name the sink of a `cvbatch "
            "predict`"
        )
    names = [writer.part_name(ref.chunk_id) for ref in parts.done]
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(lambda ref: _read(parts.uri_of(ref)), parts.done))
    if not sum(len(part.image_id) for _, part in read):
        raise SourceError(f"predictions {uri}: the result holds no row; run its prediction first")
    said, _ = read[0]
    for name, (other, _) in zip(names, read, strict=True):
        if other["fingerprint"] != said["fingerprint"]:
            raise SourceError(f"predictions {uri}: {name} is of another job than {names[0]}")
    models = {
        column: model
        for model in said["models"]
        for column in TASK_COLUMNS[model["task"]]
        if column in ANSWERS
    }
    files = [[name, parts.sizes[name]] for name in names]
    identity = hashlib.sha256(json.dumps([said["fingerprint"], files]).encode()).hexdigest()
    return Result(
        uri,
        tuple(part for _, part in read),
        {column: tuple(model["classes"]) for column, model in models.items()},
        models,
        len(parts.missing),
        identity,
    )


def _read(uri: str) -> tuple[dict[str, Any], Part]:
    """Return what a part says of itself, and its image ids."""
    said = describe(uri).document
    try:
        with store.open_input(uri) as source:
            table = pq.ParquetFile(source).read(["image_id"])
            ids = table["image_id"].cast(pa.large_string())
    except (pa.ArrowException, OSError, LookupError) as error:
        raise SourceError(
            f"{uri} is no part of a prediction's result ({str(error)[:200]}); predict again"
        ) from None
    return said, Part(uri, ids.combine_chunks())
