"""Write a small file on condition that it has not changed: compare-and-swap for several processes.

A local file is created exclusively; S3 has conditional puts. Google Cloud Storage has conditions
too, but pyarrow's client cannot use them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from cvbatch.core.errors import NotFoundError
from cvbatch.storage.clients import Location, describe_boto_error, s3_client
from cvbatch.storage.retry import retry, translate
from cvbatch.storage.store import Storage

T = TypeVar("T")
_TIMEOUT_S = 5.0  # of one request; shorter than the job's, because heartbeats must not be late
_CONDITION_FAILED = {404, 409, 412}  # HTTP statuses if the condition does not hold
_BUSY = {429, 500, 502, 503, 504}
_CONDITIONS_UNSUPPORTED = {400, 501}


class Content(NamedTuple):
    """Content of a conditional file at the time of a read."""

    data: bytes
    tag: str  # ETag in S3; "" for a local file


class ConditionalFile(Protocol):
    """One file that is read, and replaced if it has not changed."""

    def read(self) -> Content | None:
        """Return the content, None if the file does not exist."""

    def put(self, data: bytes, expected: Content | None) -> bool:
        """Write the file if its content is `expected`; return whether it was written.

        A store without conditional writes writes in any case: read back which process was last.

        Args:
            data: New content.
            expected: Result of the last `read`; None: the file must not exist.
        """

    def remove(self) -> None:
        """Remove the file, and the folders that were created for it if they are empty."""


def conditional_file(storage: Storage, uri: str) -> ConditionalFile | None:
    """Return the conditional file at a URI, None if the store has no conditional writes."""
    location = Location.of(uri)
    if location.scheme == "gs":
        return None
    if location.scheme == "file":
        return _LocalFile(storage, location.uri)
    return _S3Object(storage, location)


class _LocalFile:
    def __init__(self, storage: Storage, uri: str) -> None:
        self._storage, self._uri = storage, uri
        self._created_folders: list[Path] = []  # the deepest one first

    def read(self) -> Content | None:
        try:
            return Content(self._storage.read_bytes(self._uri), "")
        except NotFoundError:
            return None

    def put(self, data: bytes, expected: Content | None) -> bool:
        if expected is None:
            return self._create(data)
        if self.read() != expected:
            return False
        self._storage.put_bytes(self._uri, data)
        return True

    def _create(self, data: bytes) -> bool:
        try:
            folders = [folder for folder in Path(self._uri).parents if not folder.exists()]
            Path(self._uri).parent.mkdir(parents=True, exist_ok=True)
            self._created_folders += folders
            handle = os.open(self._uri, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            with open(handle, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
                file.write(data)
        except FileExistsError:
            return False
        except OSError as error:
            raise translate(error, self._uri) from None
        return True

    def remove(self) -> None:
        self._storage.delete(self._uri)
        with suppress(OSError):  # a folder with other files stays
            for folder in self._created_folders:
                folder.rmdir()


class _S3Object:
    """An S3 object, written by boto3: pyarrow has no conditional puts."""

    def __init__(self, storage: Storage, location: Location) -> None:
        self._storage, self._uri = storage, location.uri
        bucket, key = location.path.split("/", 1)
        self._name = {"Bucket": bucket, "Key": key}

    @property
    def _client(self) -> Any:
        return s3_client(_TIMEOUT_S)

    def read(self) -> Content | None:
        def get() -> Content:
            response = self._client.get_object(**self._name)
            return Content(response["Body"].read(), response["ETag"])

        try:
            return self._request(get)
        except _RefusedError as refusal:
            if refusal.status == 404:
                return None
            raise translate(refusal, self._uri) from None

    def put(self, data: bytes, expected: Content | None) -> bool:
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected.tag}
        try:
            self._put(data, **condition)
        except _RefusedError as refusal:
            if refusal.status in _CONDITION_FAILED:
                return False
            if refusal.status not in _CONDITIONS_UNSUPPORTED:
                raise translate(refusal, self._uri) from None
            self._put_unconditionally(data)
        return True

    def _put_unconditionally(self, data: bytes) -> None:
        try:
            self._put(data)
        except _RefusedError as refusal:
            raise translate(refusal, self._uri) from None

    def _put(self, data: bytes, **condition: str) -> None:
        self._request(lambda: self._client.put_object(Body=data, **self._name, **condition))

    def _request(self, send: Callable[[], T]) -> T:
        """Return the response, retried while the store is busy or unreachable."""
        from botocore.exceptions import BotoCoreError, ClientError

        def attempt() -> T:
            try:
                return send()
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                message = f"{error.response['Error']['Code']} (HTTP status {status})"
                if status in _BUSY:
                    raise OSError(message) from None
                raise _RefusedError(status, message) from None
            except BotoCoreError as error:  # its message contains the URL
                raise OSError(describe_boto_error(error)) from None

        return retry(attempt, self._uri, self._storage.policy)

    def remove(self) -> None:
        self._storage.delete(self._uri)


class _RefusedError(Exception):
    """A response of the store that a retry would not change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
