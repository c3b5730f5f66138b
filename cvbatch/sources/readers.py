"""Read the encoded images of a chunk, in the manifest's order."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from cvbatch.core.ignored import Ignored
from cvbatch.core.types import Chunk, EncodedImage, SourceOptions
from cvbatch.sources.base import ReadOptions
from cvbatch.sources.formats import INPUT_FORMATS
from cvbatch.storage.store import Storage


class ChunkReader:
    """Reads chunks of one source.

    Use one reader for consecutive chunks: it continues in the Parquet row group in which the
    previous chunk ended. Pickling drops this position.

    Example:
        reader = ChunkReader(storage, plan.format, "image")
        for ref in plan.chunks:
            for image in reader.read(plan.read_chunk(ref), max_bytes=1 << 28):
                ...
    """

    def __init__(
        self,
        storage: Storage,
        format: str,
        image_column: str,
        threads: int = 8,
        options: SourceOptions | None = None,
    ) -> None:
        """Create a reader.

        Args:
            storage: Reads the files.
            format: A key of `INPUT_FORMATS`.
            image_column: Column of the images; only Parquet files have it.
            threads: Image files that are fetched at once.
            options: With which the source was planned; None: the defaults.
        """
        self.storage = storage
        self.format = INPUT_FORMATS[format].configured(options or SourceOptions())
        self._arguments = (storage, format, image_column, threads, options)
        self._read = self.format.new_reader(storage)

    def __reduce__(self) -> tuple[Any, ...]:
        return ChunkReader, self._arguments

    def read(
        self, chunk: Chunk, max_bytes: int, ignored: Ignored | None = None
    ) -> Iterator[EncodedImage]:
        """Yield every image of a chunk, in order: its bytes, or the Failure of stage "read".

        Kinds of failure: missing, denied, too_large (more than `max_bytes` bytes), short_read,
        corrupt (Parquet, zip), changed (Parquet without the column), truncated (tar), unsupported
        (raw photograph, encrypted member).

        Args:
            chunk: The chunk.
            max_bytes: Of one encoded image.
            ignored: Receives the members of tars and zips that are not read.

        Raises:
            StoreError: The store does not respond.
            CredentialsError: The store rejects the credentials.
        """
        _, _, image_column, threads, _ = self._arguments
        counted = Ignored() if ignored is None else ignored
        return self._read(chunk.items, ReadOptions(image_column, max_bytes, threads, counted))

    def read_some(
        self, chunk: Chunk, image_ids: Collection[str], max_bytes: int
    ) -> Iterator[EncodedImage]:
        """Yield some images of a chunk, in its order, and read as few others as possible.

        Args:
            chunk: The chunk.
            image_ids: Images to read; ids of other chunks are ignored.
            max_bytes: As in `read`, which raises the same errors.
        """
        missing = set(image_ids)
        selected = replace(chunk, items=self.format.select(chunk.items, missing))
        images = self.read(selected, max_bytes)
        while missing and (image := next(images, None)) is not None:
            if image.image_id in missing:
                missing.remove(image.image_id)
                yield image
