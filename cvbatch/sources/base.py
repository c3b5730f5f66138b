"""Input format: how files of one kind become units of work, and units become encoded images.

A new input format is one module with a subclass of `InputFormat`, one row of
`cvbatch.sources.formats.INPUT_FORMATS` and one value of `source.format` in the job file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from typing import ClassVar, Literal, NamedTuple, Self

import pyarrow as pa

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError, StoreError
from cvbatch.core.ignored import Ignored
from cvbatch.core.types import EncodedImage, Failure, Item, SourceOptions
from cvbatch.storage import listing, store
from cvbatch.storage.listing import Listing, Progress
from cvbatch.storage.store import Storage

_FAILURE_KINDS: tuple[tuple[type[StoreError], str], ...] = (
    (store.TooLargeError, "too_large"),
    (store.ShortReadError, "short_read"),
    (NotFoundError, "missing"),
    (AccessDeniedError, "denied"),
)


class ReadOptions(NamedTuple):
    """Options of reading items."""

    image_column: str  # of Parquet files
    max_bytes: int  # of one encoded image; a larger one is a Failure
    threads: int  # image files that are fetched at once
    ignored: Ignored  # receives the members of tars and zips that are not read


ReadItems = Callable[[Sequence[Item], ReadOptions], Iterator[EncodedImage]]


class InputFormat(ABC):
    """One input format. It has no state but its options; a reader may have.

    Attributes:
        name: Format as a sink's manifest stores it; a key of `INPUT_FORMATS` with which the sink's
            images are read again.
        noun: One file of the format, in messages; its plural ends in "s".
        suffixes: Suffixes of its files, lower case, without the leading dot, the most common one
            first, by which `source.format: auto` recognises files. Empty: auto never chooses it.
        key: What follows "#" in an image's id: the number of its row, or the name of a member of
            the file. "" where every file is one image, whose id is the file's.
        is_split: Whether a file may be several units, each with a part of the file's bytes.
        is_sequential: Whether a file can only be read from front to back. The number of its images
            is then known after reading only (`num_rows` of its unit is 0), so the file is a chunk
            of its own, and a job over it is never streamed.
        accepts: Fields of `SourceOptions` that the format has a use for.
        options: As set by `configured`.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    key: ClassVar[Literal["", "row", "member"]] = ""
    is_split: ClassVar[bool] = False
    is_sequential: ClassVar[bool] = False
    accepts: ClassVar[tuple[str, ...]] = ()
    options: SourceOptions = SourceOptions()

    def configured(self, options: SourceOptions) -> Self:
        """Return the format with options.

        Raises:
            SourceError: An option is set that the format has no use for.
        """
        for name in ("members", "id_column", "keep_columns"):
            if getattr(options, name) and name not in self.accepts:
                raise SourceError(
                    f"source.{name} is set, but the source is of format {self.name}, which has no "
                    f"{'members' if name == 'members' else 'columns'}; remove it"
                )
        configured = copy(self)
        configured.options = options
        return configured

    def list_files(self, storage: Storage, uri: str, on_progress: Progress | None) -> Listing:
        """Return the files of one entry of `source.uri`.

        Args:
            storage: Lists and reads the files.
            uri: File, folder or pattern.
            on_progress: Called with the number of files listed so far.

        Raises:
            NotFoundError: There is no such file or folder.
            AccessDeniedError: It may not be read.
            SourceError: It cannot be a source of this format.
        """
        return listing.list_files(storage, uri, on_progress)

    @abstractmethod
    def expand(
        self, storage: Storage, files: pa.Table, image_column: str, chunk_images: int
    ) -> pa.Table:
        """Return the units of files, in the order of the files.


        Args:
            storage: Reads the files, if that is necessary.
            files: The first columns of `UNITS`, F rows: image_id, uri, size_bytes, version.
            image_column: `source.image_column`.
            chunk_images: Most images of one unit, unless only reading can count them.

        Returns:
            Columns of `UNITS`, N rows. `image_id` is the file's. `num_rows` is the number of
            images of the unit, 0 where only reading can count them. `row_group` and `row_start`
            tell apart the units of one file.

        Raises:
            SourceError: A file is damaged, or is not of this format.
        """

    @abstractmethod
    def new_reader(self, storage: Storage) -> ReadItems:
        """Return a function that yields every image of the items, in order.

        The function may store where the last item ended. An error of one file becomes a Failure
        (stage "read") of its images. The function raises StoreError if the store does not respond,
        CredentialsError if it rejects the credentials.
        """

    def select(self, items: Sequence[Item], image_ids: Collection[str]) -> tuple[Item, ...]:
        """Return the items to read for some images, in order, with as few others as possible.

        Args:
            items: Items of a chunk.
            image_ids: Images to read; ids of other chunks are ignored.
        """
        if self.key:
            return tuple(items)
        return tuple(item for item in items if item.image_id in image_ids)

    def reading(self, image_column: str) -> dict[str, str]:
        """Return the part of a sink's manifest that states how its source is read."""
        options = {"members": ",".join(self.options.members), "id_column": self.options.id_column}
        if self.key == "member" and self.options.unreadable != "skip":
            options["unreadable"] = self.options.unreadable
        return {"format": self.name, **{key: value for key, value in options.items() if value}}

    def kept_columns(self, storage: Storage, uri: str) -> list[pa.Field]:
        """Return the columns of `source.keep_columns`, with the types of one file."""
        return []

    def read_kept(self, storage: Storage, items: Sequence[Item]) -> Iterator[pa.Table]:
        """Yield the values of `source.keep_columns`, and `image_id`, without the index of a list.

        Rows of a file that cannot be read are left out.
        """
        return iter(())


def image_id_in(item: Item, key: int | str) -> str:
    """Return the id of an image in a file of many: key is a row number or a member's name."""
    return f"{item.image_id}#{key}"


def read_failure(error: StoreError) -> Failure:
    """Return the Failure of an image that could not be read.

    Raises:
        StoreError: The error itself, if it is not about one file.
    """
    if not isinstance(error, store.CredentialsError):
        for error_type, kind in _FAILURE_KINDS:
            if isinstance(error, error_type):
                return Failure("read", kind, str(error))
    raise error


def options_of(reading: Mapping[str, str]) -> SourceOptions:
    """Return the options that `InputFormat.reading` has stored in a sink's manifest."""
    return SourceOptions(
        members=tuple(filter(None, reading.get("members", "").split(","))),
        id_column=reading.get("id_column"),
        unreadable="fail" if reading.get("unreadable") == "fail" else "skip",
    )
