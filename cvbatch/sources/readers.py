"""Read the images of a chunk, still encoded, in the manifest's order, one way for each format.

Whatever is wrong with one file is that image's `Failure`; a store that does not answer, or refuses
the credentials, is the job's error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvbatch.core.errors import AccessDeniedError, NotFoundError, StoreError
from cvbatch.core.types import Chunk, EncodedImage, Failure, Item
from cvbatch.sources.tar import read_tar
from cvbatch.sources.units import is_struct_of_bytes
from cvbatch.storage import store

_PARQUET_BUFFER_BYTES = 4 << 20
_PARQUET_BATCH_ROWS = 16
_FAULTS: tuple[tuple[type[StoreError], str], ...] = (
    (store.TooLargeError, "too_large"),
    (store.ShortReadError, "short_read"),
    (NotFoundError, "missing"),
    (AccessDeniedError, "denied"),
)


class Reading(NamedTuple):
    """How the items of a chunk are read."""

    image_column: str
    max_bytes: int  # of one encoded image
    threads: int


def read_chunk_images(
    chunk: Chunk, format: str, image_column: str, *, max_bytes: int, threads: int = 8
) -> Iterator[EncodedImage]:
    """Yield every image of a chunk, in order: its bytes, or the Failure of stage "read".

    format: a key of SOURCES. Kinds of failure: missing, denied, too_large (more than `max_bytes`),
    short_read, corrupt (Parquet), truncated (tar), unsupported (a tar member that is no file).

    Raises StoreError when the store does not answer, CredentialsError when it refuses the keys.
    """
    return SOURCES[format](chunk.items, Reading(image_column, max_bytes, threads))


def _read_files(items: Sequence[Item], reading: Reading) -> Iterator[EncodedImage]:
    """Yield image files; a few are fetched ahead, so the memory needed does not depend on N."""

    def fetch(item: Item) -> EncodedImage:
        try:
            data = store.read_bytes(item.uri, reading.max_bytes)
        except StoreError as error:
            return EncodedImage(item.image_id, item.uri, b"", _failure(error))
        return EncodedImage(item.image_id, item.uri, data)

    waiting = iter(items)
    ahead: deque[Future[EncodedImage]] = deque()
    pool = ThreadPoolExecutor(reading.threads)
    try:
        for item in islice(waiting, 2 * reading.threads):
            ahead.append(pool.submit(fetch, item))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(pool.submit(fetch, item) for item in islice(waiting, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _failure(error: StoreError) -> Failure:
    """Return an image's failure; raises the error where it is not the image's."""
    if not isinstance(error, store.CredentialsError):
        for kind, word in _FAULTS:
            if isinstance(error, kind):
                return Failure("read", word, str(error))
    raise error


def _read_parquet(items: Sequence[Item], reading: Reading) -> Iterator[EncodedImage]:
    for item in items:
        yield from _read_slice(item, reading)


def _read_slice(item: Item, reading: Reading) -> Iterator[EncodedImage]:
    """Yield the rows of one slice: as many as were planned, whatever became of the file."""
    num_read = 0
    why = Failure("read", "missing", f"{item.uri} has fewer rows than when it was planned")
    try:
        cursor = _take_cursor(item, reading.image_column)
        for value in islice(cursor.values, item.num_rows):
            yield _row(item, num_read, value.as_py(), reading.max_bytes)
            num_read += 1
        _spare.append(cursor._replace(position=item.row_start + num_read))
    except StoreError as error:
        why = _failure(error)
    except (pa.ArrowException, OSError, LookupError) as error:
        why = Failure("read", "corrupt", f"{item.uri} is not readable as Parquet: {error}")
    for index in range(num_read, item.num_rows):
        yield EncodedImage(_row_id(item, index), item.uri, b"", why)


def _row_id(item: Item, index: int) -> str:
    return f"{item.image_id}#{item.first_row + index}"


def _row(item: Item, index: int, data: bytes | None, max_bytes: int) -> EncodedImage:
    failure = None
    if data is None:
        failure = Failure("read", "missing", "the image column is null")
    elif len(data) > max_bytes:
        failure = Failure("read", "too_large", f"{len(data)} bytes; the limit is {max_bytes}")
    return EncodedImage(
        _row_id(item, index), item.uri, b"" if data is None or failure else data, failure
    )


class _Cursor(NamedTuple):
    """A place in a row group; the next slice of it is mostly read by the same worker."""

    uri: str
    row_group: int
    column: str
    position: int
    values: Iterator[Any]  # binary scalars, null where there is no image


_spare: deque[_Cursor] = deque(maxlen=1)  # where the last slice ended


def _take_cursor(item: Item, column: str) -> _Cursor:
    """Return a cursor that stands at the item's first row."""
    key = (item.uri, item.row_group, column)
    try:
        cursor = _spare.pop()
    except IndexError:
        cursor = None
    if cursor is None or cursor[:3] != key or cursor.position > item.row_start:
        cursor = _Cursor(*key, 0, _values(*key))
    deque(islice(cursor.values, item.row_start - cursor.position), maxlen=0)
    return cursor


def _values(uri: str, row_group: int, column: str) -> Iterator[Any]:
    """Yield the image scalars of a row group, a page in memory at a time."""
    with closing(store.open_input(uri)) as source:
        file = pq.ParquetFile(source, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False)
        in_struct = is_struct_of_bytes(file.schema_arrow.field(column).type)
        leaf = f"{column}.bytes" if in_struct else column
        batches = file.iter_batches(_PARQUET_BATCH_ROWS, [row_group], [leaf])
        for batch in batches:
            array = batch.column(0)
            yield from pc.struct_field(array, "bytes") if in_struct else array


def _read_tars(items: Sequence[Item], reading: Reading) -> Iterator[EncodedImage]:
    for item in items:
        yield from _read_tar(item, reading)


def _read_tar(item: Item, reading: Reading) -> Iterator[EncodedImage]:
    names: dict[str, int] = {}
    try:
        with closing(store.open_stream(item.uri)) as stream:
            for member in read_tar(stream, reading.max_bytes):
                name = _unique(member.name, names)
                image_id = f"{item.image_id}#{name}"
                yield EncodedImage(image_id, item.uri, member.data, member.failure)
    except StoreError as error:
        yield EncodedImage(f"{item.image_id}#", item.uri, b"", _failure(error))


def _unique(name: str, taken: dict[str, int]) -> str:
    """Return the name, with ~2, ~3, ... added where the tar has it again.

    taken: the names given out, with the last number that was added to each.
    """
    unique, count = name, taken.get(name, 1)
    while unique in taken:
        count += 1
        unique = f"{name}~{count}"
    if unique != name:
        taken[name] = count
    taken[unique] = 1
    return unique


SOURCES: dict[str, Callable[[Sequence[Item], Reading], Iterator[EncodedImage]]] = {
    "images": _read_files,
    "parquet": _read_parquet,
    "webdataset": _read_tars,
}
