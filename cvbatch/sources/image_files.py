"""Input format: image files, each one image."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice

import pyarrow as pa

from cvbatch.core.errors import StoreError
from cvbatch.core.types import EncodedImage, Item
from cvbatch.images.signatures import IMAGE_SUFFIXES
from cvbatch.sources.base import InputFormat, ReadItems, ReadOptions, read_failure
from cvbatch.sources.file_kinds import NEVER_DECODED, kind_of, not_decoded
from cvbatch.sources.units import units_of_files
from cvbatch.storage.store import Storage


class ImageFiles(InputFormat):
    """Image files."""

    name = "images"
    noun = "image"
    suffixes = IMAGE_SUFFIXES

    def expand(
        self, storage: Storage, files: pa.Table, image_column: str, chunk_images: int
    ) -> pa.Table:
        """Return one unit for every file; see `InputFormat.expand`."""
        return units_of_files(files, num_rows=1)

    def new_reader(self, storage: Storage) -> ReadItems:
        """Return a function that reads files, a few of them at once."""
        return partial(_read_files, storage)


def _read_files(
    storage: Storage, items: Sequence[Item], options: ReadOptions
) -> Iterator[EncodedImage]:
    """Yield image files; a fixed number is fetched ahead, so memory does not depend on N."""

    def fetch(item: Item) -> EncodedImage:
        if (kind := kind_of(item.uri)) in NEVER_DECODED:
            return EncodedImage(item.image_id, item.uri, b"", not_decoded(kind))
        try:
            data = storage.read_bytes(item.uri, options.max_bytes)
        except StoreError as error:
            return EncodedImage(item.image_id, item.uri, b"", read_failure(error))
        return EncodedImage(item.image_id, item.uri, data)

    remaining = iter(items)
    fetched: deque[Future[EncodedImage]] = deque()
    pool = ThreadPoolExecutor(options.threads)
    try:
        for item in islice(remaining, 2 * options.threads):
            fetched.append(pool.submit(fetch, item))
        while fetched:
            yield fetched.popleft().result()
            fetched.extend(pool.submit(fetch, item) for item in islice(remaining, 1))
    finally:
        pool.shutdown(cancel_futures=True)
