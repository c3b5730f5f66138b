"""Storage: list, read and write files in local folders, S3 and Google Cloud Storage.

A URI is a plain path, `file://`, `s3://bucket/key` or `gs://bucket/key`. Keys and plain paths are
taken literally, without percent escapes. Credentials come from the environment, never from a URI.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from cvbatch.core.errors import AccessDeniedError, NotFoundError, StoreError
from cvbatch.core.suggestions import hint_for_path
from cvbatch.core.types import RetryPolicy
from cvbatch.storage.atomic import replacing
from cvbatch.storage.clients import REQUEST_TRIES, Location, describe_boto_error, s3_client
from cvbatch.storage.odd_keys import KeyFile, is_odd
from cvbatch.storage.retry import (
    STORE_FAULTS,
    CredentialsError,
    ShortReadError,
    TooLargeError,
    retry,
    translate,
)

__all__ = [
    "CredentialsError",
    "Location",
    "ShortReadError",
    "Storage",
    "TooLargeError",
    "absolute",
    "join",
    "missing_path",
]

T = TypeVar("T")
STREAM_BYTES = 4 << 20  # read at once from a file that is read from front to back
_COPY_BYTES = 16 << 20
_PART_BYTES = 10_000_000  # a larger file is uploaded in parts
_MARKS = (0xA5, 0x5A)  # no byte equals both


def absolute(uri: str) -> str:
    """Return the normalized form of a URI, which does not depend on the working directory."""
    return Location.of(uri).uri


def missing_path(uri: str) -> str:
    """Return that a local file or folder does not exist, and what to do; "" for every other URI."""
    location = Location.of(uri)
    if location.scheme != "file" or Path(location.path).exists():
        return ""
    return f"{location.path} does not exist; {hint_for_path(location.path)}"


def join(uri: str, *parts: str) -> str:
    """Return the URI of a file or folder below `uri`."""
    return "/".join([uri.rstrip("/"), *parts])


@dataclass(frozen=True)
class Storage:
    """All stores, with one policy for the retries of a failed request.

    Every method raises NotFoundError, AccessDeniedError or CredentialsError at once, and StoreError
    if the store is still busy or unreachable when the retries end. Instances can be pickled.
    """

    policy: RetryPolicy = field(default_factory=RetryPolicy)

    def attempt(self, location: Location, action: Callable[[Any], T], tries: int = 1) -> T:
        """Return `action(file system)`, retried while the store is busy.

        Args:
            location: on the file system that the action gets (a pyarrow.fs.FileSystem).
            action: may be called several times.
            tries: how often the client itself makes each request of the action; use more than one
                for an action of many requests.
        """
        try:
            return retry(
                lambda: action(self.file_system(location, tries)), location.uri, self.policy
            )
        except AccessDeniedError as error:
            raise self._reason(location, error) from None

    def file_system(self, location: Location, tries: int = REQUEST_TRIES) -> Any:
        """Return the pyarrow.fs.FileSystem of a location, which makes a request `tries` times."""
        return location.client(self.policy.request_timeout_s, tries)

    def _reason(self, location: Location, refusal: AccessDeniedError) -> StoreError:
        """Return why access was refused: a HEAD response has no message, that of a listing has."""
        if location.scheme != "s3" or isinstance(refusal, CredentialsError):
            return refusal
        selector = pafs.FileSelector(location.path, allow_not_found=True)
        try:
            self.file_system(location).get_file_info(selector)
        except STORE_FAULTS as error:
            reason = translate(error, location.uri)
            return reason if isinstance(reason, (CredentialsError, NotFoundError)) else refusal
        return refusal

    def exists(self, uri: str) -> bool:
        """Return whether `uri` is a file (not a folder)."""
        location = Location.of(uri)
        info = self.attempt(location, lambda files: files.get_file_info(location.path))
        return bool(info.type == pafs.FileType.File)

    def list_names(self, uri: str) -> dict[str, int]:
        """Return name → size in bytes of the files in one folder; {} if there is no such folder.

        Raises:
            NotFoundError: the bucket does not exist.
        """
        location = Location.of(uri)

        def listed(files: Any) -> list[Any]:
            try:
                return list(files.get_file_info(pafs.FileSelector(location.path)))
            except FileNotFoundError:
                return []

        infos = self.attempt(location, listed, REQUEST_TRIES)
        return {info.base_name: info.size for info in infos if info.type == pafs.FileType.File}

    def read_bytes(self, uri: str, max_bytes: int | None = None) -> bytes:
        """Return the content of a file.

        Raises:
            TooLargeError: the file has more than `max_bytes`; nothing is read.
            ShortReadError: the store sent fewer bytes than the size of the file, at every try.
        """
        location = Location.of(uri)

        def read(files: Any) -> bytes:
            with self._open(files, location) as file:
                size = file.size()
                if max_bytes is not None and size > max_bytes:
                    raise TooLargeError(f"{uri} has {size} bytes; the limit is {max_bytes}", size)
                return _read_exactly(file, 0, size, uri)

        return self.attempt(location, read)

    def _open(self, files: Any, location: Location) -> Any:
        """Return a file of pyarrow, or one with the same methods."""
        local = Path(location.path)
        if location.scheme == "file" and local.exists() and not local.is_file():
            raise NotFoundError(f"{location.uri} is not a file")  # a pipe would block for ever
        if location.scheme == "s3" and is_odd(location):
            return KeyFile(location, self.policy.request_timeout_s)
        return files.open_input_file(location.path)

    def open_input(self, uri: str) -> io.RawIOBase:
        """Return a file for random access; each read is retried as in `read_bytes`."""
        return _Input(self, Location.of(uri))

    def open_stream(self, uri: str) -> io.BufferedReader:
        """Return a file to read from front to back; STREAM_BYTES are in memory at a time."""
        return io.BufferedReader(_Input(self, Location.of(uri)), STREAM_BYTES)

    def put_bytes(self, uri: str, data: bytes | pa.Buffer) -> None:
        """Write a file atomically: a reader sees the complete file or none.

        A local file is written as a temporary file (`.name-*.tmp`) and renamed; missing folders are
        created. An object store shows an upload when it is complete.
        """
        location = Location.of(uri)

        def put(files: Any) -> None:
            if location.scheme == "file":
                _put_local(Path(location.path), data)
                return
            # One write: a stream that is closed, also by an error, uploads all data or nothing.
            with files.open_output_stream(location.path) as stream:
                stream.write(data)

        self.attempt(location, put, REQUEST_TRIES if len(data) > _PART_BYTES else 1)

    def call_s3(self, uri: str, action: Callable[[Any], T]) -> T:
        """Return `action(boto3 client)` about an S3 URI, retried while the store is busy.

        The action handles the refusals that it expects (`botocore.exceptions.ClientError`).
        """
        from botocore.exceptions import BotoCoreError, ClientError

        def request() -> T:
            try:
                return action(s3_client(self.policy.request_timeout_s))
            except (BotoCoreError, ClientError) as error:
                raise OSError(describe_boto_error(error)) from None

        return retry(request, uri, self.policy)

    def delete(self, uri: str) -> None:
        """Remove a file; do nothing if there is none."""
        location = Location.of(uri)
        if location.scheme == "s3":  # pyarrow would create an object for the folder
            bucket, key = location.path.split("/", 1)
            self.call_s3(location.uri, lambda client: client.delete_object(Bucket=bucket, Key=key))
            return
        with suppress(NotFoundError):
            self.attempt(location, lambda files: files.delete_file(location.path))

    def fetch(self, uri: str) -> Path:
        """Return a local path of a file: itself if it is local, otherwise a cached copy.

        The name of the copy depends on size and modification time, so a file that has changed is
        downloaded again.
        """
        location = Location.of(uri)
        if location.scheme == "file":
            if not Path(location.path).is_file():
                raise NotFoundError(missing_path(uri) or f"{location.path} is not a file")
            return Path(location.path)
        info = self.attempt(location, lambda files: files.get_file_info(location.path))
        if info.type != pafs.FileType.File:
            raise NotFoundError(f"{uri} does not exist as a file; check the name")
        identity = f"{location.uri}\n{info.size}\n{info.mtime_ns}"
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        target = _cache_folder() / f"{key}-{Path(location.path).name[-100:]}"
        if not target.exists():
            self._download(uri, target)
        return target

    def _download(self, uri: str, target: Path) -> None:
        with self.open_input(uri) as source:
            try:
                with replacing(target, "") as file:
                    while piece := source.read(_COPY_BYTES):
                        file.write(piece)
            except OSError as error:  # from writing the copy: reading raises errors of its own
                raise translate(error, str(target)) from None


class _Input(io.RawIOBase):
    """A file whose reads are retried."""

    def __init__(self, storage: Storage, location: Location) -> None:
        self._storage, self._location = storage, location
        self._file = storage.attempt(location, lambda files: storage._open(files, location))
        self._size: int = self._file.size()
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        """Return the number of bytes in the file."""
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        remaining = max(0, self._size - self._position)
        count = remaining if size is None or size < 0 else min(size, remaining)
        if count == 0:
            return b""
        data = self._storage.attempt(
            self._location,
            lambda _: _read_exactly(self._file, self._position, count, self._location.uri),
        )
        self._position += count
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _read_exactly(file: Any, position: int, count: int, uri: str) -> bytes:
    """Return `count` bytes at `position`.

    An S3 file of pyarrow (26.0) reports that it has read all bytes even if the response was
    shorter, and leaves the rest of the buffer unchanged. So the last byte of the buffer is set to a
    mark before. If the mark is still there, it may be the byte of the file; a second mark decides.

    Raises:
        ShortReadError: the response was shorter.
    """
    if count == 0:
        return b""
    for mark in _MARKS:
        buffer = bytearray(count)
        buffer[-1] = mark
        file.seek(position)
        if file.readinto(buffer) == count and buffer[-1] != mark:
            return bytes(buffer)
    raise ShortReadError(
        f"{uri}: the store sent fewer than {count} bytes at offset {position}; upload it again"
    )


def _put_local(path: Path, data: bytes | pa.Buffer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, f".{path.name[:100]}-") as file:
        os.fchmod(file.fileno(), 0o666 & ~_umask())
        file.write(memoryview(data))
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@lru_cache(maxsize=1)
def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"cvbatch-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise translate(error, str(folder)) from None
    if folder.stat().st_uid != os.getuid():
        raise StoreError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
    return folder
