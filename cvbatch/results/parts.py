"""A prediction's sink is opened here, for all who read it: which chunks are done, what they say.

A chunk that was planned again since its file was written counts as missing: its rows are stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.config.models import TASK_COLUMNS
from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError
from cvbatch.core.types import ChunkRef, InputKey
from cvbatch.geometry.resize import make_placement
from cvbatch.images.decode import Limits
from cvbatch.planning import part_files
from cvbatch.storage import store

if TYPE_CHECKING:
    pass
from collections.abc import Collection

from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.types import EncodedImage
from cvbatch.geometry.resize import mask_to_original
from cvbatch.images.masks import decode_png
from cvbatch.planning import manifest
from cvbatch.sources.readers import ChunkReader

ANSWERS = ("labels", "boxes", "mask")  # columns with a class table
_BUFFER_BYTES = 1 << 20  # of a column: a row group's masks are not held at once


class PartFooter(NamedTuple):
    """What a part's footer says."""

    document: dict[str, Any]  # under the metadata key `cvbatch`
    columns: tuple[str, ...]
    num_rows: int

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Return the class table of each column that a model of the job filled."""
        return {
            column: tuple(model["classes"])
            for model in self.document["models"]
            for column in TASK_COLUMNS[model["task"]]
            if column in ANSWERS and column in self.columns
        }


@dataclass(frozen=True)
class Parts:
    """The files of a prediction's sink, as its manifest and its listing tell them."""

    uri: str
    done: tuple[ChunkRef, ...]
    missing: tuple[ChunkRef, ...]  # planned, and not done as they were planned last
    revisions: dict[str, int]  # chunk id → how often it was planned again
    reading: dict[str, str] | None  # how the source was read; None: nothing was planned
    sizes: dict[str, int]  # bytes of every file in the folder

    @classmethod
    def find(cls, uri: str) -> Parts:
        """Return what lies in a folder; no row is read, a footer only of what was planned again.

        Raises:
            SourceError: the folder cannot be read, or its manifest is damaged.
        """
        uri = store.absolute(uri)
        try:
            known = manifest.read(manifest.generations(uri))
            sizes = store.list_names(uri)
        except (NotFoundError, AccessDeniedError) as error:
            raise SourceError(f"the source cannot be read: {error}") from None
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
            raise SourceError(
                f"{uri}: its _cvbatch/manifest is damaged ({str(error)[:200]}); predict again into "
                "an empty folder"
            ) from None
        revisions = {key: entry.revision for key, entry in known.book.items()}
        done: list[ChunkRef] = []
        missing: list[ChunkRef] = []
        for ref in known.chunks:
            name, revision = part_files.part_name(ref.chunk_id), revisions[ref.chunk_id]
            is_done = name in sizes and (
                not revision or part_files.revision_of(store.join(uri, name)) == revision
            )
            (done if is_done else missing).append(ref)
        return cls(uri, tuple(done), tuple(missing), revisions, known.reading, sizes)

    def uri_of(self, ref: ChunkRef) -> str:
        """Return where a chunk's rows are."""
        return store.join(self.uri, part_files.part_name(ref.chunk_id))

    @cached_property
    def reader(self) -> ChunkReader:
        """Return what reads the images of the chunks; it goes on where the last chunk ended."""
        reading = self.reading or {}
        return ChunkReader(reading["format"], reading.get("image_column", "image"))

    def encoded(
        self, ref: ChunkRef, wanted: Collection[str], max_bytes: int
    ) -> Iterator[EncodedImage]:
        """Yield some images of a chunk, in its order; of the others as little as can be is read."""
        return self.reader.read_some(manifest.read_chunk(ref), wanted, max_bytes)


def describe(uri: str) -> PartFooter:
    """Return what a part says of itself, from its footer.

    Raises:
        SourceError: it is no part of a result, or of another schema version.
    """
    try:
        with store.open_input(uri) as file:
            footer = pq.ParquetFile(file)
            document = json.loads(footer.metadata.metadata[b"cvbatch"])
            said = PartFooter(document, tuple(footer.schema_arrow.names), footer.metadata.num_rows)
        version = document["schema_version"]
        if not document["fingerprint"] or not isinstance(document["models"], list):
            raise ValueError("its metadata is not whole")
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise SourceError(
            f"{uri} is no part of a prediction's result ({str(error)[:200]}); predict again"
        ) from None
    if version != SCHEMA_VERSION:
        raise SourceError(
            f"{uri} has schema version {version!r}, and this cvbatch reads {SCHEMA_VERSION}; use "
            "the cvbatch that wrote it, or predict again"
        )
    return said


def read_rows(uri: str, columns: Sequence[str] | None, count: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part as plain values, `count` held at a time; None: all columns."""
    for batch in read_batches(uri, columns, count):
        yield from batch.to_pylist()


def read_batches(
    uri: str, columns: Sequence[str] | None, count: int
) -> Iterator[Any]:  # RecordBatches
    """Yield the rows of a part, `count` at a time.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        with store.open_input(uri) as file:
            reader = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            wanted = None if columns is None else list(columns)
            yield from reader.iter_batches(count, columns=wanted)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{uri} cannot be read as Parquet ({str(error)[:200]})") from None


def mask_of(row: dict[str, Any], models: Sequence[dict[str, Any]]) -> np.ndarray | None:  # (h, w)
    """Return a row's mask as class ids, uint8, at the size of its image; None where there is none.

    models: of the parts' metadata.

    Raises:
        SourceError: the PNG is broken.
    """
    data = (row.get("mask") or {}).get("bytes")
    if data is None:
        return None
    try:
        mask = decode_png(data)
    except ValueError as error:
        raise SourceError(f"the mask of {row['image_id']!r}: {error}") from None
    model = next(one for one in models if "mask" in TASK_COLUMNS[one["task"]])
    if model["options"].get("mask_size") != "model":
        return mask
    height, width = model["input_size"]
    key = InputKey(height, width, model["resize"])
    return mask_to_original(mask, make_placement(row["height"], row["width"], key))


def read_job(uri: str) -> dict[str, Any] | None:
    """Return what `_cvbatch/job.json` of a sink says; None where there is none.

    Raises:
        SourceError: it cannot be read, or is damaged.
    """
    try:
        held = json.loads(store.read_bytes(store.join(uri, "_cvbatch/job.json")))
    except NotFoundError:
        return None
    except AccessDeniedError as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    except ValueError:
        held = None
    if not isinstance(held, dict):
        raise SourceError(f"{uri}: _cvbatch/job.json is damaged; run the job again")
    return held


def limits_of(held: dict[str, Any] | None) -> Limits:
    """Return within which limits a job read its images, as its job.json says."""
    source = ((held or {}).get("job") or {}).get("source") or {}
    known = {key: source[key] for key in ("max_bytes", "max_pixels") if key in source}
    return Limits(**known)


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
    names = [part_files.part_name(ref.chunk_id) for ref in parts.done]
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
