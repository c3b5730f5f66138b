"""One way to list, read and put files, wherever they lie: local folders, S3, Google Cloud Storage.

A URI is a plain path, `file://`, `s3://bucket/key` or `gs://bucket/key`. Keys and plain paths stand
as they are, without percent escapes. Credentials come from the environment, never from a URI.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from cvbatch.core.errors import AccessDeniedError, NotFoundError, StoreError
from cvbatch.storage.atomic import replacing
from cvbatch.storage.clients import REQUEST_TRIES, Location, describe_boto_error, s3_client
from cvbatch.storage.retry import (
    STORE_FAULTS,
    CredentialsError,
    ShortReadError,
    TooLargeError,
    retry,
    set_retry_policy,
    translate,
)

__all__ = [
    "CredentialsError",
    "Location",
    "ShortReadError",
    "TooLargeError",
    "absolute",
    "attempt",
    "call_s3",
    "delete",
    "exists",
    "fetch",
    "join",
    "list_names",
    "open_input",
    "open_stream",
    "put_bytes",
    "read_bytes",
    "set_retry_policy",
]

T = TypeVar("T")
STREAM_BYTES = 4 << 20  # read at once where reading goes straight on
_COPY_BYTES = 16 << 20
_PART_BYTES = 10_000_000  # more than that goes up in parts
_MARKS = (0xA5, 0x5A)  # no byte is both


def attempt(place: Location, action: Callable[[Any], T], tries: int = 1) -> T:
    """Return `action(file system)`, tried again while the store is busy.

    tries: of a single request inside the action; more than one where it makes many.

    Raises NotFoundError, AccessDeniedError, CredentialsError, or StoreError when the waiting was
    in vain.
    """
    try:
        return retry(lambda: action(place.client(tries)), place.uri)
    except AccessDeniedError as error:
        raise _reason(place, error) from None


def _reason(place: Location, refusal: AccessDeniedError) -> StoreError:
    """Return why access was refused: the answer to HEAD has no words, the one to a listing has."""
    if place.scheme != "s3" or isinstance(refusal, CredentialsError):
        return refusal
    try:
        place.files.get_file_info(pafs.FileSelector(place.path, allow_not_found=True))
    except STORE_FAULTS as error:
        reason = translate(error, place.uri)
        return reason if isinstance(reason, (CredentialsError, NotFoundError)) else refusal
    return refusal


def absolute(uri: str) -> str:
    """Return the one spelling of a URI, the same in whatever folder a process works."""
    return Location.of(uri).uri


def join(uri: str, *parts: str) -> str:
    """Return the URI of something below `uri`."""
    return "/".join([uri.rstrip("/"), *parts])


def exists(uri: str) -> bool:
    """Return whether a file (not a folder) has that name."""
    place = Location.of(uri)
    info = attempt(place, lambda files: files.get_file_info(place.path))
    return bool(info.type == pafs.FileType.File)


def list_names(uri: str) -> dict[str, int]:
    """Return the files of one folder, name → size in bytes; {} where there is no such folder.

    Raises NotFoundError where there is no such bucket.
    """
    place = Location.of(uri)

    def listed(files: Any) -> list[Any]:
        try:
            return list(files.get_file_info(pafs.FileSelector(place.path)))
        except FileNotFoundError:
            return []

    infos = attempt(place, listed, REQUEST_TRIES)
    return {info.base_name: info.size for info in infos if info.type == pafs.FileType.File}


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """Return a file's bytes.

    Raises NotFoundError, AccessDeniedError, TooLargeError (before reading, above `max_bytes`),
    ShortReadError, or StoreError when the store does not answer.
    """
    place = Location.of(uri)

    def read(files: Any) -> bytes:
        with _open(files, place) as file:
            size = file.size()
            if max_bytes is not None and size > max_bytes:
                raise TooLargeError(f"{uri} has {size} bytes; the limit is {max_bytes}", size)
            return _exactly(file, 0, size, uri)

    return attempt(place, read)


def open_input(uri: str) -> io.RawIOBase:
    """Return a file to read from anywhere in it; each read is tried again as `read_bytes` is."""
    return _Input(Location.of(uri))


def open_stream(uri: str) -> io.BufferedReader:
    """Return a file to read from front to back, a few MiB held at a time."""
    return io.BufferedReader(_Input(Location.of(uri)), STREAM_BYTES)


class _Input(io.RawIOBase):
    """A file in any store whose reads survive the store's bad moments."""

    def __init__(self, place: Location) -> None:
        self._place = place
        self._file = attempt(place, lambda files: _open(files, place))
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
        rest = max(0, self._size - self._position)
        wanted = rest if size is None or size < 0 else min(size, rest)
        if wanted == 0:
            return b""
        data = attempt(
            self._place, lambda _: _exactly(self._file, self._position, wanted, self._place.uri)
        )
        self._position += wanted
        return data

    def readinto(self, buffer: Any, /) -> int:  # filled as far as the file goes
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _exactly(file: Any, position: int, wanted: int, uri: str) -> bytes:
    """Return the bytes at `position`, all that are wanted.

    An S3 file of pyarrow (26.0) says it gave all, however few came, and leaves the rest of the
    buffer as it was. So the last byte is marked before; where the mark is still there it may be the
    file's own byte, and another mark tells.

    Raises:
        ShortReadError: fewer came.
    """
    if wanted == 0:
        return b""
    for mark in _MARKS:
        buffer = bytearray(wanted)
        buffer[-1] = mark
        file.seek(position)
        if file.readinto(buffer) == wanted and buffer[-1] != mark:
            return bytes(buffer)
    raise ShortReadError(
        f"{uri} gave fewer than the {wanted} bytes it promised at {position}; put it there again"
    )


def _open(files: Any, place: Location) -> Any:
    local = Path(place.path)
    if place.scheme == "file" and local.exists() and not local.is_file():
        raise NotFoundError(f"{place.uri} is not a file")  # a pipe would block for ever
    return files.open_input_file(place.path)


def put_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a file whole or not at all: no reader ever sees a part of it.

    Locally by a temporary file (`.name-*.tmp`) and a rename; in an object store by one upload,
    which counts when it is complete. A local folder that is missing is made.
    """
    place = Location.of(uri)

    def put(files: Any) -> None:
        if place.scheme == "file":
            _put_local(Path(place.path), data)
            return
        # One write: what is closed, by us or by the stream's own end, is the whole or an error.
        with files.open_output_stream(place.path) as stream:
            stream.write(data)

    attempt(place, put, REQUEST_TRIES if len(data) > _PART_BYTES else 1)


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


def call_s3(uri: str, action: Callable[[Any], T]) -> T:
    """Return `action(boto3 client)` about a URI in S3, tried again while the store is busy.

    What the action itself expects of a refusal it catches (`botocore.exceptions.ClientError`).

    Raises:
        StoreError: as `attempt`.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    def asked() -> T:
        try:
            return action(s3_client())
        except (BotoCoreError, ClientError) as error:
            raise OSError(describe_boto_error(error)) from None

    return retry(asked, uri)


def delete(uri: str) -> None:
    """Remove a file; nothing where there is none.

    Raises:
        StoreError: the store does not let us, or does not answer.
    """
    place = Location.of(uri)
    if place.scheme == "s3":  # pyarrow would leave an object for the folder in its place
        bucket, key = place.path.split("/", 1)
        call_s3(place.uri, lambda client: client.delete_object(Bucket=bucket, Key=key))
        return
    with suppress(NotFoundError):
        attempt(place, lambda files: files.delete_file(place.path))


def fetch(uri: str) -> Path:
    """Return a local path that holds the file: itself when local, otherwise a cached copy.

    The copy's name holds size and modification time, so a file that changed is fetched again.
    """
    place = Location.of(uri)
    if place.scheme == "file":
        if not Path(place.path).is_file():
            raise NotFoundError(f"{uri} does not exist as a file; check the name")
        return Path(place.path)
    info = attempt(place, lambda files: files.get_file_info(place.path))
    if info.type != pafs.FileType.File:
        raise NotFoundError(f"{uri} does not exist as a file; check the name")
    identity = f"{place.uri}\n{info.size}\n{info.mtime_ns}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    target = _cache_folder() / f"{key}-{Path(place.path).name[-100:]}"
    if not target.exists():
        _download(uri, target)
    return target


def _download(uri: str, target: Path) -> None:
    with open_input(uri) as source:
        try:
            with replacing(target, "") as file:
                while piece := source.read(_COPY_BYTES):
                    file.write(piece)
        except OSError as error:  # of the copy: the source has errors of its own
            raise translate(error, str(target)) from None


def _cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"cvbatch-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise translate(error, str(folder)) from None
    if folder.stat().st_uid != os.getuid():
        raise StoreError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
    return folder
