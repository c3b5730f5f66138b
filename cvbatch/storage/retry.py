"""Retry requests to a store, and translate the errors of pyarrow and boto3."""

from __future__ import annotations

import errno
import logging
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

from cvbatch.core.errors import AccessDeniedError, NotFoundError, StoreError
from cvbatch.core.redaction import redact
from cvbatch.core.types import RetryPolicy

T = TypeVar("T")
log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 16.0
LEAST_TRIES = 3  # of a request, also if they exceed the retry budget

# Errors of pyarrow and the AWS SDK; a wrong path raises ArrowInvalid, which is a ValueError.
STORE_FAULTS = (OSError, pa.ArrowException, UnicodeError)


class CredentialsError(AccessDeniedError):
    """The store does not accept these credentials for any file."""


class TooLargeError(StoreError):
    """The file is larger than the reader allows; `size` is its size in bytes."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class ShortReadError(StoreError):
    """The store sent fewer bytes than it announced, at every try."""


class _BusyError(StoreError):
    """The store is busy, throttles or is unreachable; the request is retried."""


# Names of errors in the messages of the AWS SDK and of Google's client.
_BAD_CREDENTIALS = (
    "SIGNATURE_DOES_NOT_MATCH|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|INVALID_SIGNATURE|"
    "MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|REQUEST_EXPIRED|REQUEST_TIME_TOO_SKEWED|"
    "ExpiredToken|InvalidToken|InvalidAccessKeyId|SignatureDoesNotMatch|UNAUTHENTICATED|"
    "NoCredentialsError|PartialCredentialsError|CredentialRetrievalError|ProfileNotFound"
)
_DENIED = (
    r"ACCESS_DENIED|AccessDenied|NOT_AUTHORIZED|OPT_IN_REQUIRED|PERMISSION_DENIED|status 403|"
    r"status 400\) during HeadObject"
)
_NO_BUCKET = r"NO_SUCH_BUCKET|NoSuchBucket"
_MISSING = (
    r"NO_SUCH_KEY|RESOURCE_NOT_FOUND|NOT_FOUND|Path does not exist|status 404|is a directory|"
    r"Not a regular file"
)
_ELSEWHERE = r"PermanentRedirect|AuthorizationHeaderMalformed|status 301"
_TRANSIENT = (
    r"SLOW_DOWN|THROTTLING|TOO_MANY_REQUESTS|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|INTERNAL_ERROR|"
    r"NETWORK_CONNECTION|REQUEST_TIMEOUT|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|"
    r"SlowDown|Throttl|TooManyRequests|ServiceUnavailable|InternalError|RequestTimeout|"
    r"curlCode|HTTP status (?:429|500|502|503|504)"
)
_FULL = {
    errno.ENOSPC: "no space is left on its device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this process may write (ulimit -f)",
}
_NOT_A_NAME = {
    errno.ENAMETOOLONG: "is longer than a name of this file system may be; rename the file",
    errno.EINVAL: "is not a name of this file system; rename the file",
    errno.ELOOP: "is a symbolic link that leads back to itself; remove the link",
    errno.ENOTDIR: "is a file or below a file; name a folder",
    errno.EISDIR: "is a folder, not a file; name a file",
}


def is_full(error: OSError) -> bool:
    """Return whether a write failed for lack of space, which a retry does not change."""
    return error.errno in _FULL


def translate(error: Exception, uri: str) -> StoreError:
    """Return the StoreError for an error that pyarrow or the system raised about `uri`."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{uri} does not exist; check the name")
    if isinstance(error, PermissionError):
        return AccessDeniedError(f"{uri} may not be accessed by this user; check its permissions")
    if isinstance(error, OSError) and error.errno in _FULL:
        return StoreError(f"{uri} cannot be written: {_FULL[error.errno]}; make room")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return AccessDeniedError(f"{uri} cannot be written: its file system is read-only")
    if isinstance(error, (pa.ArrowInvalid, UnicodeError)):
        return NotFoundError(f"{uri!r} is not a valid name in this store; rename the file")
    if isinstance(error, OSError) and error.errno in _NOT_A_NAME:
        return NotFoundError(f"{uri!r} {_NOT_A_NAME[error.errno]}")
    for pattern, kind, sentence in _COMPLAINTS:
        if re.search(pattern, text):
            return kind(sentence.format(uri=uri, detail=_detail(text)))
    return StoreError(f"{uri} could not be accessed: {_detail(text)}")


_COMPLAINTS: tuple[tuple[str, type[StoreError], str], ...] = (
    (
        _BAD_CREDENTIALS,
        CredentialsError,
        "the store refused the credentials for {uri} ({detail}); check AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and this machine's clock",
    ),
    (
        _NO_BUCKET,
        NotFoundError,
        "the bucket of {uri} does not exist; check its name and AWS_ENDPOINT_URL_S3",
    ),
    (
        _ELSEWHERE,
        NotFoundError,
        "the bucket of {uri} lies in another region; set AWS_REGION to its region",
    ),
    (
        _DENIED,
        AccessDeniedError,
        "access to {uri} was denied; check the credentials and what they may read and write",
    ),
    (
        _TRANSIENT,
        _BusyError,
        "the store of {uri} did not answer ({detail}); check AWS_ENDPOINT_URL_S3 and the network",
    ),
    (_MISSING, NotFoundError, "{uri} does not exist as a file; check the name"),
)


def retry(action: Callable[[], T], uri: str, policy: RetryPolicy) -> T:
    """Return the result of `action`, which is retried while the store is busy or unreachable.

    Waits grow from 0.5 s to 16 s, each shortened by up to a half at random. They end when waits and
    failed tries have used up the retry budget, but not before LEAST_TRIES tries.

    Args:
        action: Makes the request; called once for each try.
        uri: Names the file in error messages.
        policy: Sets the retry budget and the function that waits.

    Raises:
        StoreError: The error of the last try. NotFoundError and AccessDeniedError are raised at
            once.
    """
    lost_s, longest_wait_s, tries = 0.0, FIRST_WAIT_S, 0
    while True:
        started, tries = time.monotonic(), tries + 1
        try:
            return action()
        except STORE_FAULTS as error:
            fault = translate(error, uri)
        except ShortReadError as error:
            fault = error
        lost_s += time.monotonic() - started
        is_transient = isinstance(fault, (_BusyError, ShortReadError))
        if not is_transient or (tries >= LEAST_TRIES and lost_s >= policy.retry_budget_s):
            raise fault from None  # the original may contain the request with its credentials
        wait_s = longest_wait_s * random.uniform(0.5, 1.0)
        log.warning("trying again in %.1f s: %s", wait_s, fault)
        policy.sleep(wait_s)
        lost_s += wait_s
        longest_wait_s = min(2 * longest_wait_s, LONGEST_WAIT_S)


_NAMES = (
    r"ExceptionName: (\w+)",
    r"curlCode: \d+, ([^;\n]+)",
    r"AWS Error ([A-Z_]+(?: \(HTTP status \d+\))?)",
)


def _detail(text: str) -> str:
    """Return the name of the error; the rest of its message may contain the request."""
    matches = (re.search(pattern, text) for pattern in _NAMES)
    name = next((match[1] for match in matches if match), None)
    return redact(name or next(iter(text.splitlines()), "no reason given"))[:200]
