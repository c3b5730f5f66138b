"""Parse URIs, and create the clients of the stores with their timeouts."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow.fs as pafs

from cvbatch.core.errors import ConfigError
from cvbatch.core.redaction import has_user_info
from cvbatch.core.suggestions import closest_names, did_you_mean

CONNECT_TIMEOUT_S = 10.0
REQUEST_TRIES = 3  # of one page or part, before the complete listing or file is retried
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
_Environment = tuple[str | None, ...]  # the values of _AWS_VARIABLES


class Location(NamedTuple):
    """Where a URI points: a file system, and a path in it."""

    scheme: str  # "file" | "s3" | "gs"
    path: str

    @classmethod
    def of(cls, uri: str) -> Location:
        """Return the location of a URI. Raises ConfigError for an invalid one."""
        scheme, mark, rest = uri.partition("://")
        if not mark or "/" in scheme:
            return cls("file", os.path.abspath(os.path.expanduser(uri)))  # noqa: PTH100, PTH111
        if scheme == "file" and rest.startswith("/"):
            return cls("file", os.path.abspath(unquote(rest)))  # noqa: PTH100
        if scheme in ("http", "https"):
            raise ConfigError(
                f"{uri} is a web address, which cvbatch does not read; download it, such as with "
                f"`curl -LO {uri}`, and name the copy"
            )
        if scheme not in ("s3", "gs"):
            names = [f"{name}://" for name in closest_names(scheme, ("s3", "gs"))]
            raise ConfigError(
                f"the scheme of {scheme}://... is not known; "
                f"{did_you_mean(names) or 'use s3://, gs://, file:/// or a path'}"
            )
        if has_user_info(uri):
            raise ConfigError(
                f"a {scheme}:// URI carries credentials; put them into the environment "
                "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) and take them out of the URI"
            )
        if not rest.split("/", 1)[0]:
            raise ConfigError(f"{uri!r} names no bucket; write {scheme}://bucket/folder")
        return cls(scheme, rest.rstrip("/"))

    @property
    def uri(self) -> str:
        """Return the normal form of the URI: an absolute path, or `scheme://bucket/key`."""
        return self.path if self.scheme == "file" else f"{self.scheme}://{self.path}"

    def client(self, timeout_s: float, tries: int) -> Any:
        """Return the pyarrow file system of this location.

        Args:
            timeout_s: seconds without a byte after which a request to S3 fails.
            tries: how often the client itself makes a request.
        """
        if self.scheme == "s3":
            return _s3(self.path.split("/", 1)[0], _environment(), timeout_s, tries)
        return _gcs() if self.scheme == "gs" else _LOCAL


_LOCAL = pafs.LocalFileSystem()


def _environment() -> _Environment:
    return tuple(os.environ.get(name) for name in _AWS_VARIABLES)


def _endpoint(variables: dict[str, str | None]) -> str | None:
    """Return the S3 endpoint, None for AWS. Raises ConfigError if it contains a password."""
    name = "AWS_ENDPOINT_URL_S3" if variables["AWS_ENDPOINT_URL_S3"] else "AWS_ENDPOINT_URL"
    endpoint = variables[name] or None
    if endpoint and ("@" in endpoint or has_user_info(endpoint)):
        raise ConfigError(
            f"{name} carries credentials; put them into AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, and set {name}=https://host:port"
        )
    return endpoint


@lru_cache(maxsize=16)
def _s3(bucket: str, environment: _Environment, timeout_s: float, tries: int) -> Any:
    variables = dict(zip(_AWS_VARIABLES, environment, strict=True))
    endpoint = _endpoint(variables)
    region = variables["AWS_REGION"] or variables["AWS_DEFAULT_REGION"]
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=region or ("us-east-1" if endpoint else pafs.resolve_s3_region(bucket)),
        tls_ca_file_path=variables["AWS_CA_BUNDLE"],
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=timeout_s,  # without a byte; in a body libcurl notices it 6 s later
        allow_delayed_open=True,  # one PutObject for a small file, not three requests
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=tries),
    )


@lru_cache(maxsize=1)
def _gcs() -> Any:
    return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=15))


def s3_client(timeout_s: float) -> Any:
    """Return the boto3 client, for operations that pyarrow lacks: delete one key, conditional put.

    It makes a request once; `Storage.call_s3` retries it.

    Args:
        timeout_s: seconds without a byte after which a request fails.

    Raises:
        botocore.exceptions.BotoCoreError: no profile has the name in AWS_PROFILE.
    """
    return _s3_requests(_environment(), timeout_s)


@lru_cache(maxsize=4)
def _s3_requests(environment: _Environment, timeout_s: float) -> Any:
    import boto3
    from botocore.config import Config

    variables = dict(zip(_AWS_VARIABLES, environment, strict=True))
    endpoint = _endpoint(variables)
    region = variables["AWS_REGION"] or variables["AWS_DEFAULT_REGION"]
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=timeout_s,
        retries={"mode": "standard", "total_max_attempts": 1},
    )
    # A new session: the shared session of boto3 keeps the first credentials that it got.
    return boto3.session.Session().client(
        "s3", region_name=region or ("us-east-1" if endpoint else None), config=config
    )


def describe_boto_error(error: Exception) -> str:
    """Return the name and status of a boto3 error in the form of a pyarrow error message."""
    from botocore.exceptions import (
        ClientError,
        ConnectionError,
        HTTPClientError,
        IncompleteReadError,
    )

    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return f"ExceptionName: {error.response['Error']['Code']} (HTTP status {status})"
    is_network = isinstance(error, (ConnectionError, HTTPClientError, IncompleteReadError))
    return f"{'NETWORK_CONNECTION ' if is_network else ''}ExceptionName: {type(error).__name__}"
