"""Read S3 objects whose keys are no paths: `a//b.jpg`, `/a.jpg`, `a/../b.jpg`.

pyarrow lists such keys but cannot open them; boto3 takes a key literally.
"""

from __future__ import annotations

import re
from typing import Any

from cvbatch.storage.clients import Location, describe_boto_error, s3_client

UNREADABLE_KEY = "unreadable_key"  # of a store other than S3
_ODD = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")
_INVALID_NAME = ("NoSuchKey", "KeyTooLongError", "InvalidURI", "InvalidArgument", "BadRequest")
ODD_NAMES = ("", ".", "..")


def is_odd(location: Location) -> bool:
    """Return whether a location is an object whose key has a part that is empty, `.` or `..`."""
    _, found, key = location.path.partition("/")
    return location.scheme != "file" and bool(found) and _ODD.search(key) is not None


class KeyFile:
    """An S3 object, with the methods of a pyarrow file that `Storage` uses.

    Raises:
        OSError: The store refuses a request; the message is in the form of pyarrow's.
    """

    def __init__(self, location: Location, timeout_s: float) -> None:
        bucket, _, key = location.path.partition("/")
        self._client = s3_client(timeout_s)
        self._object = {"Bucket": bucket, "Key": key}
        self._position = 0
        # Not head_object: the response to it has no reason for a refusal.
        first = self._request("get_object", Range="bytes=0-0")
        self._size = int(first.get("ContentRange", "/0").rpartition("/")[2])
        self.version = str(round(first["LastModified"].timestamp() * 1e9))

    def _request(self, name: str, **options: str) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, name)(**self._object, **options)
        except (BotoCoreError, ClientError) as error:
            code = error.response["Error"]["Code"] if isinstance(error, ClientError) else ""
            if code == "InvalidRange":  # the object is empty
                return self._request("head_object")
            if code in _INVALID_NAME:
                raise FileNotFoundError(self._object["Key"]) from None
            raise OSError(describe_boto_error(error)) from None

    def __enter__(self) -> KeyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: no connection is open between reads."""

    def size(self) -> int:
        """Return the bytes of the object."""
        return self._size

    def seek(self, position: int) -> None:
        """Set where the next read begins."""
        self._position = position

    def readinto(self, buffer: bytearray) -> int:
        """Read bytes until the buffer is full or the object ends."""
        from botocore.exceptions import BotoCoreError

        span = f"bytes={self._position}-{self._position + len(buffer) - 1}"
        try:
            data = self._request("get_object", Range=span)["Body"].read(len(buffer))
        except BotoCoreError as error:
            raise OSError(describe_boto_error(error)) from None
        buffer[: len(data)] = data
        return len(data)
