"""A small file that several processes write in turn: each only over what it has seen there."""

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
_LIMIT_S = 5.0  # of one request: who asks has little patience
_IS_OTHERS = {404, 409, 412}  # the answers to a condition that does not hold
_IS_BUSY = {429, 500, 502, 503, 504}
_NO_CONDITIONS = {400, 501}  # the answers of a store that does not know conditions


class Content(NamedTuple):
    """What a slot held when it was read."""

    data: bytes
    tag: str  # the store's own word for this content


class ConditionalFile(Protocol):
    """One file that is read and replaced."""

    def read(self) -> Content | None:
        """Return what is there; None where nothing is."""

    def put(self, data: bytes, seen: Content | None) -> bool:
        """Write over what was seen (None: nothing); say False where something else is there.

        A store that does not know conditions is written to anyhow: read back who came last.
        """

    def remove(self) -> None:
        """Remove the file, and the folders that were made for it if they are empty."""


def conditional_file(storage: Storage, uri: str) -> ConditionalFile | None:
    """Return the slot at a URI; None where the store has no way to write on a condition."""
    place = Location.of(uri)
    if place.scheme == "gs":
        return None  # pyarrow's client cannot
    return _LocalSlot(storage, place.uri) if place.scheme == "file" else _ObjectSlot(storage, place)


class _LocalSlot:
    def __init__(self, storage: Storage, uri: str) -> None:
        self._storage, self._uri = storage, uri
        self._folders: list[Path] = []  # made for the file; the deepest one first

    def read(self) -> Content | None:
        try:
            return Content(self._storage.read_bytes(self._uri), "")
        except NotFoundError:
            return None

    def put(self, data: bytes, seen: Content | None) -> bool:
        if seen is None:
            return self._create(data)
        if self.read() != seen:
            return False
        self._storage.put_bytes(self._uri, data)
        return True

    def _create(self, data: bytes) -> bool:
        try:
            folders = [one for one in Path(self._uri).parents if not one.exists()]
            Path(self._uri).parent.mkdir(parents=True, exist_ok=True)
            self._folders += folders
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
        with suppress(OSError):  # something else is in it by now
            for folder in self._folders:
                folder.rmdir()


class _ObjectSlot:
    """An S3 object, by boto3: pyarrow cannot put on a condition."""

    def __init__(self, storage: Storage, place: Location) -> None:
        self._storage, self._uri = storage, place.uri
        bucket, key = place.path.split("/", 1)
        self._name = {"Bucket": bucket, "Key": key}

    @property
    def _client(self) -> Any:
        return s3_client(_LIMIT_S)

    def read(self) -> Content | None:
        def get() -> Content:
            answer = self._client.get_object(**self._name)
            return Content(answer["Body"].read(), answer["ETag"])

        try:
            return self._ask(get)
        except _RefusedError as refusal:
            if refusal.status == 404:
                return None
            raise translate(refusal, self._uri) from None

    def put(self, data: bytes, seen: Content | None) -> bool:
        condition = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen.tag}
        try:
            self._put(data, **condition)
        except _RefusedError as refusal:
            if refusal.status in _IS_OTHERS:
                return False
            if refusal.status not in _NO_CONDITIONS:
                raise translate(refusal, self._uri) from None
            self._put_anyhow(data)
        return True

    def _put_anyhow(self, data: bytes) -> None:
        try:
            self._put(data)
        except _RefusedError as refusal:
            raise translate(refusal, self._uri) from None

    def _put(self, data: bytes, **condition: str) -> None:
        self._ask(lambda: self._client.put_object(Body=data, **self._name, **condition))

    def _ask(self, request: Callable[[], T]) -> T:
        """Return the answer, asked for again while the store is busy or away."""
        from botocore.exceptions import BotoCoreError, ClientError

        def asked() -> T:
            try:
                return request()
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                told = f"{error.response['Error']['Code']} (HTTP status {status})"
                if status in _IS_BUSY:
                    raise OSError(told) from None
                raise _RefusedError(status, told) from None
            except BotoCoreError as error:  # its words hold the URL
                raise OSError(describe_boto_error(error)) from None

        return retry(asked, self._uri, self._storage.policy)

    def remove(self) -> None:
        self._storage.delete(self._uri)


class _RefusedError(Exception):
    """An answer of the store that trying again would not change."""

    def __init__(self, status: int, told: str) -> None:
        super().__init__(told)
        self.status = status
