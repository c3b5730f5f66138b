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
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from cvbatch.data.faults import (
    STORE_FAULTS,
    CredentialsError,
    ShortReadError,
    TooLargeError,
    persist,
    translate,
)
from cvbatch.errors import AccessDeniedError, ConfigError, NotFoundError, StoreError

__all__ = [
    "CredentialsError",
    "ShortReadError",
    "TooLargeError",
    "absolute",
    "exists",
    "fetch",
    "join",
    "list_names",
    "open_input",
    "open_stream",
    "put_bytes",
    "read_bytes",
]

T = TypeVar("T")
STREAM_BYTES = 4 << 20  # read at once where reading goes straight on
REQUEST_TRIES = 3  # of one page or part, before the whole listing or file is tried again
_COPY_BYTES = 16 << 20
_AWS_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_CA_BUNDLE",
)


class Place(NamedTuple):
    """Where a URI points: a file system, and a path in it."""

    scheme: str  # "file" | "s3" | "gs"
    path: str

    @classmethod
    def of(cls, uri: str) -> Place:
        """Return the place of a URI. Raises ConfigError for one that cannot be a place."""
        scheme, mark, rest = uri.partition("://")
        if not mark or "/" in scheme:
            return cls("file", os.path.abspath(os.path.expanduser(uri)))  # noqa: PTH100, PTH111
        if scheme == "file" and rest.startswith("/"):
            return cls("file", os.path.abspath(unquote(rest)))  # noqa: PTH100
        if scheme not in ("s3", "gs"):
            raise ConfigError(
                f"the scheme of {scheme}://... is not known; use s3://, gs://, file:/// or a path"
            )
        bucket = rest.split("/", 1)[0]
        if "@" in bucket:
            raise ConfigError(
                f"a {scheme}:// URI carries credentials; put them into the environment "
                "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) and take them out of the URI"
            )
        if not bucket:
            raise ConfigError(f"{uri!r} names no bucket; write {scheme}://bucket/folder")
        return cls(scheme, rest.rstrip("/"))

    @property
    def uri(self) -> str:
        """Return the one spelling of this place: an absolute path, or `scheme://bucket/key`."""
        return self.path if self.scheme == "file" else f"{self.scheme}://{self.path}"

    @property
    def files(self) -> Any:
        """Return the pyarrow file system it lies in."""
        if self.scheme == "s3":
            environment = tuple(os.environ.get(name) for name in _AWS_VARIABLES)
            return _s3(self.path.split("/", 1)[0], environment)
        return _gcs() if self.scheme == "gs" else _LOCAL


_LOCAL = pafs.LocalFileSystem()


@lru_cache(maxsize=16)
def _s3(bucket: str, environment: tuple[str | None, ...]) -> Any:
    variables = dict(zip(_AWS_VARIABLES, environment, strict=True))
    endpoint = variables["AWS_ENDPOINT_URL_S3"] or variables["AWS_ENDPOINT_URL"]
    region = variables["AWS_REGION"] or variables["AWS_DEFAULT_REGION"]
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=region or ("us-east-1" if endpoint else pafs.resolve_s3_region(bucket)),
        tls_ca_file_path=variables["AWS_CA_BUNDLE"],
        connect_timeout=10,
        request_timeout=60,
        allow_delayed_open=True,  # one PutObject for a small file, not three requests
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=REQUEST_TRIES),
    )


@lru_cache(maxsize=1)
def _gcs() -> Any:
    return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=15))


def attempt(place: Place, action: Callable[[Any], T]) -> T:
    """Return `action(file system)`, tried again while the store is busy.

    Raises NotFoundError, AccessDeniedError, CredentialsError, or StoreError when the waiting was
    in vain.
    """
    try:
        return persist(lambda: action(place.files), place.uri)
    except AccessDeniedError as error:
        raise _reason(place, error) from None


def _reason(place: Place, refusal: AccessDeniedError) -> StoreError:
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
    return Place.of(uri).uri


def join(uri: str, *parts: str) -> str:
    """Return the URI of something below `uri`."""
    return "/".join([uri.rstrip("/"), *parts])


def exists(uri: str) -> bool:
    """Return whether a file (not a folder) has that name."""
    place = Place.of(uri)
    info = attempt(place, lambda files: files.get_file_info(place.path))
    return bool(info.type == pafs.FileType.File)


def list_names(uri: str) -> dict[str, int]:
    """Return the files of one folder, name → size in bytes; {} where there is no such folder.

    Raises NotFoundError where there is no such bucket.
    """
    place = Place.of(uri)

    def listed(files: Any) -> list[Any]:
        try:
            return list(files.get_file_info(pafs.FileSelector(place.path)))
        except FileNotFoundError:
            return []

    infos = attempt(place, listed)
    return {info.base_name: info.size for info in infos if info.type == pafs.FileType.File}


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """Return a file's bytes.

    Raises NotFoundError, AccessDeniedError, TooLargeError (before reading, above `max_bytes`),
    ShortReadError, or StoreError when the store does not answer.
    """
    place = Place.of(uri)

    def read(files: Any) -> bytes:
        with _open(files, place) as file:
            size = file.size()
            if max_bytes is not None and size > max_bytes:
                raise TooLargeError(f"{uri} has {size} bytes; the limit is {max_bytes}", size)
            data: bytes = file.read()
        if len(data) < size:
            raise ShortReadError(f"{uri} gave {len(data)} of its {size} bytes; put it there again")
        return data

    return attempt(place, read)


def open_input(uri: str) -> io.RawIOBase:
    """Return a file to read from anywhere in it; each read is tried again as `read_bytes` is."""
    return _Input(Place.of(uri))


def open_stream(uri: str) -> io.BufferedReader:
    """Return a file to read from front to back, a few MiB held at a time."""
    return io.BufferedReader(_Input(Place.of(uri)), STREAM_BYTES)


class _Input(io.RawIOBase):
    """A file in any store whose reads survive the store's bad moments."""

    def __init__(self, place: Place) -> None:
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
        data = attempt(self._place, lambda _: self._read(wanted))
        self._position += wanted
        return data

    def readinto(self, buffer: Any, /) -> int:  # filled as far as the file goes
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read(self, wanted: int) -> bytes:
        data: bytes = self._file.read_at(wanted, self._position)
        if len(data) < wanted:
            raise ShortReadError(
                f"{self._place.uri} gave {len(data)} of {wanted} bytes at {self._position}; "
                "put it there again"
            )
        return data

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _open(files: Any, place: Place) -> Any:
    local = Path(place.path)
    if place.scheme == "file" and local.exists() and not local.is_file():
        raise NotFoundError(f"{place.uri} is not a file")  # a pipe would block for ever
    return files.open_input_file(place.path)


def put_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a file whole or not at all: no reader ever sees a part of it.

    Locally by a temporary file (`.name-*.tmp`) and a rename; in an object store by one upload,
    which counts when it is complete. A local folder that is missing is made.
    """
    place = Place.of(uri)

    def put(files: Any) -> None:
        if place.scheme == "file":
            _put_local(Path(place.path), data)
            return
        # One write: what is closed, by us or by the stream's own end, is the whole or an error.
        with files.open_output_stream(place.path) as stream:
            stream.write(data)

    attempt(place, put)


def _put_local(path: Path, data: bytes | pa.Buffer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(".tmp", f".{path.name[:100]}-", path.parent)
    try:
        with open(handle, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            os.fchmod(handle, 0o666 & ~_umask())
            file.write(memoryview(data))
            file.flush()
            os.fsync(handle)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
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


def delete(uri: str) -> None:
    """Remove a file; nothing where there is none.

    Raises:
        StoreError: the store does not let us, or does not answer.
    """
    place = Place.of(uri)
    if place.scheme == "file":
        Path(place.path).unlink(missing_ok=True)
    elif place.scheme == "gs":
        attempt(place, lambda files: files.delete_file(place.path))
    else:
        _delete_object(*place.path.split("/", 1))


def _delete_object(bucket: str, key: str) -> None:
    """Remove an S3 object by boto3: pyarrow would leave an object for the folder in its place."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        boto3.client("s3").delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError) as error:
        raise StoreError(f"s3://{bucket}/{key} cannot be removed: {str(error)[:200]}") from None


def fetch(uri: str) -> Path:
    """Return a local path that holds the file: itself when local, otherwise a cached copy.

    The copy's name holds size and modification time, so a file that changed is fetched again.
    """
    place = Place.of(uri)
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
    handle, temporary = tempfile.mkstemp(".tmp", dir=target.parent)
    try:
        with open(handle, "wb") as file, open_input(uri) as source:  # noqa: PTH123
            while piece := source.read(_COPY_BYTES):
                file.write(piece)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"cvbatch-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise StoreError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
    return folder
