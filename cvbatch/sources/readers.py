"""Read the encoded images of a chunk, in the manifest's order."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from cvbatch.core.types import Chunk, EncodedImage
from cvbatch.sources.base import ReadOptions
from cvbatch.sources.formats import INPUT_FORMATS
from cvbatch.storage.store import Storage


class ChunkReader:
    """Reads chunks of one source.

    Whoever reads chunk after chunk keeps one reader: a chunk that continues the last one's Parquet
    row group is read on from there. Pickled, it begins anew.

    Example:
        reader = ChunkReader(storage, plan.format, "image")
        for ref in plan.chunks:
            for image in reader.read(plan.read_chunk(ref), max_bytes=1 << 28):
                ...
    """

    def __init__(self, storage: Storage, format: str, image_column: str, threads: int = 8) -> None:
        """Make a reader.

        Args:
            storage: Reads the files.
            format: A key of `INPUT_FORMATS`.
            image_column: Column of the images; only Parquet files have it.
            threads: Image files that are fetched at once.
        """
        self.storage, self.format = storage, INPUT_FORMATS[format]
        self._arguments = (storage, format, image_column, threads)
        self._read = self.format.new_reader(storage)

    def __reduce__(self) -> tuple[Any, ...]:
        return ChunkReader, self._arguments

    def read(self, chunk: Chunk, max_bytes: int) -> Iterator[EncodedImage]:
        """Yield every image of a chunk, in order: its bytes, or the Failure of stage "read".

        Kinds of failure: missing, denied, too_large (more than `max_bytes` bytes), short_read,
        corrupt (Parquet), truncated (tar), unsupported (a tar member that is no plain file).

        Raises:
            StoreError: The store does not answer.
            CredentialsError: The store refuses the keys.
        """
        _, _, image_column, threads = self._arguments
        return self._read(chunk.items, ReadOptions(image_column, max_bytes, threads))

    def read_some(
        self, chunk: Chunk, wanted: Collection[str], max_bytes: int
    ) -> Iterator[EncodedImage]:
        """Yield the wanted images of a chunk, in its order, and read little else.

        Args:
            chunk: The chunk.
            wanted: Image ids.
            max_bytes: As in `read`, which raises the same errors.
        """
        missing = set(wanted)
        few = replace(chunk, items=self.format.select(chunk.items, missing))
        images = self.read(few, max_bytes)
        while missing and (image := next(images, None)) is not None:
            if image.image_id in missing:
                missing.remove(image.image_id)
                yield image
