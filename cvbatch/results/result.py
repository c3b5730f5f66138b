"""Read a finished or partial result of `cvbatch predict`: its chunks, metadata, rows and images.

All readers use `Result`: export, import, report, evaluate and `cvbatch.read`. A chunk that was
planned again after its part was written counts as missing, because its rows are outdated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError
from cvbatch.core.types import ChunkRef, EncodedImage
from cvbatch.images.decode import Limits
from cvbatch.planning import manifest, part_files
from cvbatch.planning.plan import done_chunks, part_sizes
from cvbatch.results import parts
from cvbatch.results.parts import BATCH_ROWS, Footer
from cvbatch.results.row import Row
from cvbatch.sources.base import options_of
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage import store
from cvbatch.storage.store import Storage

if TYPE_CHECKING:
    import pyarrow.dataset as ds

__all__ = ["Result", "Row"]

_THREADS = 16  # most of which wait for the store
_ID_ROWS = 1 << 16
_JOB = "_cvbatch/job.json"
_COMMON = ("image_id", "uri", "width", "height", "status", "error")


class Result:
    """The result of `cvbatch predict`, a sequence of `Row`s; a few dozen are in memory at a time.

    The constructor reads the manifest and lists the folder. All parts that are read must have the
    fingerprint of the first one and this schema version.

    Attributes:
        done: chunks with a part written since they were last planned, in the manifest's order.
        missing: the other chunks of the manifest.
        sizes: size in bytes of the part of each chunk that is done.
        job: content of `_cvbatch/job.json`; {} if there is none.
        limits: the job's limits of image sizes.
        temporary_folder: deleted with this object; None: the result is not in one.
    """

    def __init__(self, storage: Storage, uri: str, *, needs_rows: bool = False) -> None:
        """Open a result.

        Args:
            storage: reads the files.
            uri: folder, local or in a store.
            needs_rows: raise an error if no chunk is done.

        Raises:
            SourceError: there is no result, it is damaged, or no chunk is done but rows are needed.
        """
        self.storage, self.uri = storage, store.absolute(uri)
        known, sizes, job = self._read_state()
        if known.reading is None and job is None:
            raise SourceError(
                store.missing_path(uri)
                or f"{self.uri} holds no result of a prediction: it has no _cvbatch/manifest; name "
                "the sink of a `cvbatch predict`"
            )
        self._reading = known.reading or {}
        self.job = job or {}
        source = (self.job.get("job") or {}).get("source") or {}
        self.limits = Limits.from_source(source)
        done = done_chunks(storage, self.uri, known.chunk_index, sizes)
        self.done = [ref for ref in known.chunks if ref.chunk_id in done]
        self.missing = [ref for ref in known.chunks if ref.chunk_id not in done]
        self.sizes = {ref.chunk_id: sizes[ref.chunk_id] for ref in self.done}
        self.temporary_folder: object = None
        if needs_rows and not self.done:
            raise SourceError(
                f"{self.uri}: no chunk of the prediction is done; run its `cvbatch predict` first"
            )

    def _read_state(self) -> tuple[manifest.StoredManifest, dict[str, int], dict[str, Any] | None]:
        """Return the manifest, the sizes of the parts by chunk id, and job.json."""
        try:
            if self.storage.exists(self.uri):
                raise SourceError(
                    f"{self.uri} is a file, not the result of a prediction; name the folder that "
                    "is the sink of a `cvbatch predict`"
                )
            known = manifest.read(self.storage, manifest.generation_uris(self.storage, self.uri))
            sizes = part_sizes(self.storage, self.uri)
            job = _read_job(self.storage, store.join(self.uri, _JOB))
        except (NotFoundError, AccessDeniedError) as error:
            raise SourceError(f"the source cannot be read: {error}") from None
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
            raise SourceError(
                f"{self.uri}: its _cvbatch/manifest is damaged ({str(error)[:200]}); predict again "
                "into an empty folder"
            ) from None
        return known, sizes, job

    @cached_property
    def footer(self) -> Footer:
        """Return the footer of the first part; an empty one if no chunk is done.

        Raises:
            SourceError: the part is damaged, or has another schema version.
        """
        if not self.done:
            return Footer({}, ())
        return parts.read_footer(self.storage, self.uri_of(self.done[0]))

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the job's metadata: models, box format, versions; {} if no chunk is done.

        Raises:
            SourceError: as `footer`.
        """
        return self.footer.document

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """Return the metadata of the model of each column with a class table."""
        return self.footer.models

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Return the class names of those of labels, boxes and mask that the result has."""
        return {column: tuple(model["classes"]) for column, model in self.models.items()}

    @property
    def is_multi_label(self) -> bool:
        """Return whether an image may have several labels, or none."""
        return bool(self.models.get("labels", {}).get("options", {}).get("multi_label"))

    @property
    def num_chunks_left(self) -> int:
        """Return the number of chunks that are planned but not done; 0 for a finished job."""
        return len(self.missing)

    @property
    def identity(self) -> str:
        """Return the SHA-256 of the job's fingerprint and the parts' names and sizes."""
        files = [[part_files.part_name(chunk_id), size] for chunk_id, size in self.sizes.items()]
        return hashlib.sha256(json.dumps([self.footer.fingerprint, files]).encode()).hexdigest()

    @cached_property
    def reader(self) -> ChunkReader:
        """Return the reader of the images, which continues where the last chunk ended."""
        image_column = self._reading.get("image_column", "image")
        options = options_of(self._reading)
        return ChunkReader(self.storage, self._reading["format"], image_column, options=options)

    def uri_of(self, ref: ChunkRef) -> str:
        """Return the URI of a chunk's part file."""
        return store.join(self.uri, part_files.part_name(ref.chunk_id))

    def batches(
        self, ref: ChunkRef, columns: Sequence[str] | None = None, num_rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a chunk that is done, as `cvbatch.results.parts.read_batches`."""
        fingerprint = self.footer.fingerprint
        return parts.read_batches(self.storage, self.uri_of(ref), columns, num_rows, fingerprint)

    def rows(
        self, ref: ChunkRef, columns: Sequence[str] | None = None, num_rows: int = BATCH_ROWS
    ) -> Iterator[Row]:
        """Yield the rows of a chunk that is done, in order.

        Args:
            columns: of predictions; None: all columns.
            num_rows: in memory, at most.

        Raises:
            SourceError: the part is damaged, of another job or another schema version.
        """
        names = None if columns is None else (*_COMMON, *columns)
        for batch in self.batches(ref, names, num_rows):
            yield from (Row.of(values, self, ref) for values in batch.to_pylist())

    def images(
        self, ref: ChunkRef, image_ids: Collection[str] | None = None
    ) -> Generator[EncodedImage, None, None]:
        """Yield the encoded images of a chunk, as `cvbatch.results.parts.read_images`."""
        return parts.read_images(ref, self.reader, self.limits.max_bytes, image_ids)

    def image_ids(self) -> list[pa.Array]:
        """Return the image ids of every chunk that is done, (n,) large_string each.

        Raises:
            SourceError: a part is damaged, of another job or another schema version.
        """
        _ = self.footer  # read once, before the threads need it
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._image_ids, self.done))

    def _image_ids(self, ref: ChunkRef) -> pa.Array:
        columns = [batch["image_id"] for batch in self.batches(ref, ["image_id"], _ID_ROWS)]
        return pa.chunked_array(columns, pa.string()).cast(pa.large_string()).combine_chunks()

    def __iter__(self) -> Iterator[Row]:
        """Yield every image in the order of the manifest, failed ones too.

        Raises:
            SourceError: a part is damaged, of another job or another schema version.
        """
        for ref in self.done:
            yield from self.rows(ref)

    def __len__(self) -> int:
        """Return the number of rows of the chunks that are done.

        Raises:
            SourceError: a part is damaged.
        """
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, key: int) -> Row: ...

    @overload
    def __getitem__(self, key: slice) -> list[Row]: ...

    def __getitem__(self, key: int | slice) -> Row | list[Row]:
        """Return one row, or a list of rows; only their chunks are read.

        Raises:
            IndexError: there is no such row.
            SourceError: a part is damaged.
        """
        if isinstance(key, slice):
            return list(self._take(range(*key.indices(len(self)))))
        return next(self._take([range(len(self))[key]]))  # negative ones count from the end

    def _take(self, numbers: Sequence[int]) -> Iterator[Row]:
        """Yield the rows of these numbers, in ascending or descending order."""
        ends = self._ends
        chunk_of = np.searchsorted(ends, numbers, side="right")
        for chunk, group in groupby(zip(chunk_of.tolist(), numbers, strict=True), itemgetter(0)):
            first = int(ends[chunk - 1]) if chunk else 0
            rows = np.array([number - first for _, number in group], np.int64)
            ref = self.done[chunk]
            table = parts.take_rows(self.storage, self.uri_of(ref), rows, None)
            yield from (Row.of(values, self, ref) for values in table.to_pylist())

    @cached_property
    def _ends(self) -> np.ndarray:  # (chunks,) int64
        """Return for each chunk that is done the number of rows up to its end."""
        with ThreadPoolExecutor(_THREADS) as pool:
            uris = map(self.uri_of, self.done)
            footers = pool.map(lambda uri: parts.read_footer(self.storage, uri), uris)
            return np.cumsum(np.array([footer.num_rows for footer in footers], np.int64))

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows as a pyarrow table, as `table`."""
        return self.table(columns)

    def to_pandas(self, columns: Sequence[str] | None = None) -> Any:  # a pandas.DataFrame
        """Return all rows as a pandas data frame, as `table`."""
        return self.table(columns).to_pandas()

    def to_polars(self, columns: Sequence[str] | None = None) -> Any:  # a polars.DataFrame
        """Return all rows as a Polars data frame, as `table`."""
        import polars

        return polars.from_arrow(self.table(columns))

    def _repr_html_(self) -> str:
        """Return a gallery of the first rows, which Jupyter shows."""
        from cvbatch.results import gallery

        return gallery.as_html(self[: gallery.NUM_ROWS], len(self), self.uri)

    def dataset(self) -> ds.Dataset:
        """Return the parts as a pyarrow dataset, for filters and projections without a copy.

        Raises:
            SourceError: a part is damaged.
        """
        import pyarrow.dataset as ds  # slow to import, and most callers do not need it

        paths = [store.Location.of(self.uri_of(ref)).path for ref in self.done]
        if not paths:
            return ds.dataset(pa.table({}))
        with parts.read_errors(self.uri):
            filesystem = self.storage.file_system(store.Location.of(self.uri))
            return ds.dataset(paths, format="parquet", filesystem=filesystem)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows as one pyarrow table in memory.

        Args:
            columns: names; None: all columns.

        Raises:
            SourceError: a part is damaged, or there is no such column.
        """
        dataset = self.dataset()
        names = dataset.schema.names
        unknown = set(columns or ()) - set(names)
        if unknown and names:
            raise SourceError(
                f"the result has no column {min(unknown)!r}; it has {', '.join(names)}"
            )
        with parts.read_errors(self.uri):
            return dataset.to_table(columns=None if unknown or columns is None else list(columns))


def _read_job(storage: Storage, uri: str) -> dict[str, Any] | None:
    """Return a job.json; None if there is none."""
    try:
        job = json.loads(storage.read_bytes(uri))
    except NotFoundError:
        return None
    except ValueError:
        job = None
    if not isinstance(job, dict):
        raise SourceError(f"{uri} is damaged; run the job again")
    return job
