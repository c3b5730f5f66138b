"""Input format: WebDataset, tars of image files, plain or compressed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial

import pyarrow as pa

from cvbatch.core.errors import StoreError
from cvbatch.core.types import EncodedImage, Item, SourceOptions
from cvbatch.sources.base import InputFormat, ReadItems, ReadOptions, image_id_in, read_failure
from cvbatch.sources.members import unique_name
from cvbatch.sources.tar import read_tar
from cvbatch.sources.units import units_of_files
from cvbatch.storage.store import Storage


class WebDataset(InputFormat):
    """Tars; an image's key is the name of its member."""

    name = "webdataset"
    noun = "tar"
    suffixes = (
        "tar",
        "tar.gz",
        "tgz",
        "tar.bz2",
        "tbz",
        "tbz2",
        "tar.xz",
        "txz",
        "tar.zst",
        "tzst",
    )
    key = "member"
    is_sequential = True
    accepts = ("members",)

    def expand(
        self, storage: Storage, files: pa.Table, image_column: str, chunk_images: int
    ) -> pa.Table:
        """Return one unit for every tar; see `InputFormat.expand`."""
        return units_of_files(files, num_rows=0)

    def new_reader(self, storage: Storage) -> ReadItems:
        """Return a function that reads tars from front to back, one member in memory at a time."""
        return partial(_read_tars, storage, self.options)


def _read_tars(
    storage: Storage, source: SourceOptions, items: Sequence[Item], options: ReadOptions
) -> Iterator[EncodedImage]:
    for item in items:
        numbers: dict[str, int] = {}
        try:
            with closing(storage.open_stream(item.uri)) as stream:
                for member in read_tar(stream, options.max_bytes, source, options.ignored):
                    image_id = image_id_in(item, unique_name(member.name, numbers))
                    yield EncodedImage(image_id, item.uri, member.data, member.failure)
        except StoreError as error:
            yield EncodedImage(image_id_in(item, ""), item.uri, b"", read_failure(error))
