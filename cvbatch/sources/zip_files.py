"""Input format: zip archives; members are read by ranges, nothing is extracted to a disk."""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import IO, NamedTuple

import pyarrow as pa

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError, StoreError
from cvbatch.core.ignored import Ignored
from cvbatch.core.types import EncodedImage, Failure, Item, SourceOptions
from cvbatch.sources.base import InputFormat, ReadItems, ReadOptions, image_id_in, read_failure
from cvbatch.sources.file_kinds import SNIFFED_BYTES
from cvbatch.sources.members import Member, checked, choose, unique_name
from cvbatch.sources.units import Slice, units_of_slices
from cvbatch.storage.store import Storage

_MAX_DIRECTORY_BYTES = 64 << 20  # of the list of members; about a million of them
_MAX_NAME = 4096  # characters of a member's name; longer ones lose their start
_BUFFER_BYTES = 1 << 20
_THREADS = 8
# Compression → bytes that are read at once. 4 KiB of bzip2 may expand to gigabytes: it is not read.
_PIECE_BYTES = {zipfile.ZIP_STORED: 1 << 20, zipfile.ZIP_DEFLATED: 1 << 20, zipfile.ZIP_LZMA: 4096}
_IS_ENCRYPTED = 1  # in the flags of a member
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    struct.error,
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    LookupError,
    OverflowError,
)


class _Image(NamedTuple):
    """A member that is an image."""

    key: str  # its name, made unique
    info: zipfile.ZipInfo
    failure: Failure | None  # why it is not read


class _BoundedFile(io.BufferedReader):
    """A stored file of which no more is read at once than the list of members may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes.

        Raises:
            zipfile.BadZipFile: They are too many.
        """
        count = -1 if size is None else size
        if count < 0:
            start = self.tell()
            count = self.seek(0, io.SEEK_END) - start
            self.seek(start)
        if count > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(
                f"its list of members is larger than {_MAX_DIRECTORY_BYTES} bytes"
            )
        return super().read(size)


class ZipFiles(InputFormat):
    """Zip archives; an image's key is the name of its member."""

    name = "zip"
    noun = "zip file"
    suffixes = ("zip",)
    key = "member"
    is_split = True
    accepts = ("members",)

    def expand(
        self, storage: Storage, files: pa.Table, image_column: str, chunk_images: int
    ) -> pa.Table:
        """Return slices of the images of each zip, at most `chunk_images` long.

        Raises:
            SourceError: A file is not a zip, or is damaged.
        """

        def slices_of(uri: str) -> list[Slice]:
            sizes = self._sizes(storage, uri)
            parts = (
                (start, sizes[start : start + chunk_images])
                for start in range(0, len(sizes), chunk_images)
            )
            return [Slice(sum(part), 0, start, len(part), start) for start, part in parts]

        with ThreadPoolExecutor(_THREADS) as pool:
            return units_of_slices(files, pool.map(slices_of, files["uri"].to_pylist()))

    def _sizes(self, storage: Storage, uri: str) -> list[int]:
        """Return the compressed bytes of each image of a zip."""
        try:
            with _open(storage, uri) as archive:
                return [
                    image.info.compress_size for image in _images(archive, self.options, Ignored())
                ]
        except (NotFoundError, AccessDeniedError) as error:
            raise SourceError(f"the source cannot be read: {error}") from None
        except _ZIP_ERRORS as error:
            raise SourceError(
                f"{uri} is not readable as a zip ({error}); remove it from source.uri, or write it "
                "again"
            ) from None

    def new_reader(self, storage: Storage) -> ReadItems:
        """Return a function that reads slices; the last zip stays open."""
        return _Reader(storage, self.options).read

    def select(self, items: Sequence[Item], image_ids: Collection[str]) -> tuple[Item, ...]:
        """Return the slices of the zips that have one of the images."""
        files = {image_id.split("#", 1)[0] for image_id in image_ids}
        return tuple(item for item in items if item.image_id.split("#", 1)[0] in files)


class _Reader:
    """Reads slices of zips; the list of members of the last zip is in memory."""

    def __init__(self, storage: Storage, source: SourceOptions) -> None:
        self._storage, self._source = storage, source
        self._last: tuple[str, list[_Image], Ignored] | None = None

    def read(self, items: Sequence[Item], options: ReadOptions) -> Iterator[EncodedImage]:
        """Yield as many images as were planned, even if the file has changed since."""
        for item in items:
            yield from self._read_slice(item, options)

    def _read_slice(self, item: Item, options: ReadOptions) -> Iterator[EncodedImage]:
        num_read = 0
        failure = Failure(
            "read", "missing", f"{item.uri} has fewer images than when it was planned"
        )
        try:
            with _open(self._storage, item.uri) as archive:
                images, ignored = self._list(archive, item.uri)
                if item.row_start == 0:
                    options.ignored.merge(ignored.counts, ignored.examples)
                for image in images[item.row_start : item.row_start + item.num_rows]:
                    yield _read_image(archive, image, item, options.max_bytes)
                    num_read += 1
        except StoreError as error:
            failure = read_failure(error)
        except _ZIP_ERRORS as error:
            failure = Failure("read", "corrupt", f"{item.uri} is not readable as a zip: {error}")
        for index in range(num_read, item.num_rows):
            key = f"[{item.row_start + index}]"  # the name is not known
            yield EncodedImage(image_id_in(item, key), item.uri, b"", failure)

    def _list(self, archive: zipfile.ZipFile, uri: str) -> tuple[list[_Image], Ignored]:
        if self._last is None or self._last[0] != uri:
            ignored = Ignored()
            self._last = (uri, list(_images(archive, self._source, ignored)), ignored)
        return self._last[1:]


def _open(storage: Storage, uri: str) -> zipfile.ZipFile:
    """Return an opened zip, which closes its file."""
    raw = storage.open_input(uri)
    try:
        archive = zipfile.ZipFile(_BoundedFile(raw, _BUFFER_BYTES))
    except BaseException:
        raw.close()
        raise
    archive._filePassed = 0  # type: ignore[attr-defined]  # close the file, too
    return archive


def _images(archive: zipfile.ZipFile, options: SourceOptions, ignored: Ignored) -> Iterator[_Image]:
    """Yield the images of a zip, in its order; adds the other members to `ignored`."""
    numbers: dict[str, int] = {}
    for info in archive.infolist():
        if info.is_dir():
            continue
        name = info.filename.encode("utf-8", "replace").decode()[-_MAX_NAME:]
        choice = choose(info.filename, options)
        if choice.action == "ignore":
            ignored.add(choice.kind, [name])
            continue
        is_encrypted = bool(info.flag_bits & _IS_ENCRYPTED)
        data = b""
        if choice.action == "sniff" and not is_encrypted:
            data = _first_bytes(archive, info)
        member = checked(Member(name, data), choice, ignored)
        if member is None:
            continue
        failure = member.failure
        if is_encrypted:
            why = "the member is encrypted; decrypt the zip"
            failure = Failure("read", "unsupported", why)
        yield _Image(unique_name(name, numbers), info, failure)


def _first_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Return the first bytes of a member; b"" if it is damaged or of an unknown compression."""
    if info.compress_type not in _PIECE_BYTES:
        return b""
    try:
        with archive.open(info) as file:
            return file.read(SNIFFED_BYTES)
    except _ZIP_ERRORS:
        return b""


def _read_all(file: IO[bytes], info: zipfile.ZipInfo) -> bytes:
    """Return the bytes of a member, at most as many as its list of members says.

    zipfile would decompress all input at once.

    Raises:
        NotImplementedError: The compression has no bounds, or is not known.
    """
    step = _PIECE_BYTES.get(info.compress_type)
    if step is None:
        raise NotImplementedError("its compression is not read; write it with deflate")
    return b"".join(iter(partial(file.read, step), b""))


def _read_image(
    archive: zipfile.ZipFile, image: _Image, item: Item, max_bytes: int
) -> EncodedImage:
    """Return the bytes of a member, or why it cannot be read."""
    image_id, info = image_id_in(item, image.key), image.info
    failure = image.failure
    if failure is None and info.file_size > max_bytes:
        failure = Failure("read", "too_large", f"{info.file_size} bytes; the limit is {max_bytes}")
    if failure is None:
        try:
            with closing(archive.open(info)) as file:
                return EncodedImage(image_id, item.uri, _read_all(file, info))
        except (NotImplementedError, RuntimeError) as error:
            failure = Failure("read", "unsupported", f"the member is not read: {error}")
        except _ZIP_ERRORS as error:
            failure = Failure("read", "corrupt", f"the member is damaged: {error}")
    return EncodedImage(image_id, item.uri, b"", failure)
