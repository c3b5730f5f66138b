"""A prediction's sink is found and held to what an evaluation needs of it."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.config import SCHEMA_VERSION, TASK_COLUMNS
from cvbatch.data import manifest, sink, store
from cvbatch.errors import AccessDeniedError, NotFoundError, SourceError

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
        names = store.list_names(uri)
        book = manifest.read(manifest.generations(uri)).book
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"predictions {uri} cannot be read: {error}") from None
    if not store.exists(store.join(uri, "_cvbatch/job.json")):
        raise SourceError(
            f"predictions {uri}: there is no result of a prediction; name the sink of a `cvbatch "
            "predict`"
        )
    entries = {sink.part_name(key): entry for key, entry in book.items() if entry.ref}
    there = [name for name in entries if name in names]
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(lambda name: _read(store.join(uri, name)), there))
    done = [
        (name, said, part)
        for name, (said, part) in zip(there, read, strict=True)
        if said.get("revision", 0) == entries[name].revision
    ]
    if not sum(len(part.image_id) for _, _, part in done):
        raise SourceError(f"predictions {uri}: the result holds no row; run its prediction first")
    _, said, _ = done[0]
    for name, other, _ in done:
        if other["fingerprint"] != said["fingerprint"]:
            raise SourceError(f"predictions {uri}: {name} is of another job than {done[0][0]}")
    models = {
        column: model
        for model in said["models"]
        for column in TASK_COLUMNS[model["task"]]
        if column in ("labels", "boxes", "mask")
    }
    files = [[name, names[name]] for name, _, _ in done]
    identity = hashlib.sha256(json.dumps([said["fingerprint"], files]).encode()).hexdigest()
    return Result(
        uri,
        tuple(part for _, _, part in done),
        {column: tuple(model["classes"]) for column, model in models.items()},
        models,
        len(entries) - len(done),
        identity,
    )


def _read(uri: str) -> tuple[dict[str, Any], Part]:
    """Return what a part says of itself, and its image ids."""
    try:
        with store.open_input(uri) as source:
            file = pq.ParquetFile(source)
            said = json.loads(file.metadata.metadata[b"cvbatch"])
            version = said["schema_version"]
            if version != SCHEMA_VERSION:
                raise SourceError(
                    f"{uri} has schema version {version}, and this cvbatch reads "
                    f"{SCHEMA_VERSION}; predict again, or use the cvbatch that wrote it"
                )
            ids = file.read(["image_id"])["image_id"].cast(pa.large_string())
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise SourceError(
            f"{uri} is no part of a prediction's result ({str(error)[:200]}); predict again"
        ) from None
    return said, Part(uri, ids.combine_chunks())
