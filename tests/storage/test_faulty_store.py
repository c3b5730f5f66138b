"""Over a network that fails every read returns the right bytes and every put is atomic."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cvbatch.core.errors import ConfigError, NotFoundError, StoreError
from cvbatch.storage import retry, store
from cvbatch.storage.conditional_write import conditional_file
from cvbatch.storage.listing import list_files
from cvbatch.storage.store import Storage
from tests.support.faulty_proxy import (
    CUT,
    CUT_UPLOAD,
    HANG,
    HANG_IN_BODY,
    REFUSE,
    SLOW_DOWN,
    Fault,
    Proxy,
    proxied,
    unwell,
)
from tests.support.retries import fast_storage
from tests.support.s3_server import S3Server

pytestmark = pytest.mark.process

TIMEOUT_S = 1.0
CURL_SLACK_S = 6.0  # libcurl averages over some seconds before it reports a stalled transfer
NUM_FILES = 16


@pytest.fixture
def storage() -> Storage:
    return fast_storage(request_timeout_s=TIMEOUT_S, retry_budget_s=60)


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxied(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        yield proxy


def contents(home: str) -> dict[str, bytes]:
    """Return files from no byte to a few MiB by URI."""
    rng = random.Random(5)
    sizes = [0, 1, 2, *(int(10 ** rng.uniform(1, 6)) for _ in range(NUM_FILES - 3))]
    return {f"{home}/{i % 3}/file {i:02d}.bin": rng.randbytes(size) for i, size in enumerate(sizes)}


def for_all(action: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda values: action(*values), arguments))


def test_the_proxy_without_faults_changes_nothing(storage: Storage, proxy: Proxy) -> None:
    assert storage.list_names("s3://bucket/healthy") == {}
    storage.put_bytes("s3://bucket/healthy/x", b"abc")
    assert storage.read_bytes("s3://bucket/healthy/x") == b"abc"
    storage.delete("s3://bucket/healthy/x")
    assert not storage.exists("s3://bucket/healthy/x")
    assert set(proxy.done) == {"none"}


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 12))]
)
def test_nothing_is_lost_over_a_network_that_fails(
    storage: Storage, proxy: Proxy, s3: S3Server, seed: int
) -> None:
    home = f"s3://bucket/unwell-{seed}"
    files = contents(home)
    proxy.choose = unwell(seed)
    for_all(storage.put_bytes, list(files.items()))
    stored = {f"s3://bucket/{p.relative_to(s3.bucket)}": p for p in s3.bucket.rglob("*.bin")}
    assert {uri: p.read_bytes() for uri, p in stored.items() if uri.startswith(home)} == files
    listed = list_files(storage, home).files
    sizes = dict(zip(listed["uri"].to_pylist(), listed["size"].to_pylist(), strict=True))
    assert sizes == {uri: len(data) for uri, data in files.items()}
    assert for_all(storage.read_bytes, [(uri,) for uri in files]) == list(files.values())
    for_all(storage.delete, [(uri,) for uri in files])
    assert not any(p.is_file() for p in (s3.bucket / f"unwell-{seed}").rglob("*"))
    for kind in ("answer", "cut", "cut_upload", "hang"):
        assert proxy.done[kind] > 0, kind


@pytest.mark.parametrize(
    ("fault", "method"),
    [
        (HANG, "HEAD"),
        (HANG, "GET"),
        (HANG_IN_BODY, "GET"),
        (HANG, "PUT"),
        (HANG, "DELETE"),
    ],
    ids=lambda value: value.kind + str(value.share) if isinstance(value, Fault) else value,
)
def test_a_request_that_hangs_takes_its_timeout_and_no_more(
    storage: Storage, proxy: Proxy, fault: Fault, method: str
) -> None:
    uri = f"s3://bucket/hang-{method}-{fault.share}/x"
    storage.put_bytes(uri, bytes(100_000))
    storage.delete(uri)  # boto3 is loaded before the clock runs
    storage.put_bytes(uri, bytes(100_000))
    before = {(it.method, it.path): it.number for it in proxy.requests}
    proxy.choose = lambda it: (
        fault if it.method == method and it.number == before.get(it[:2], 0) + 1 else None
    )
    proxy.done.clear()
    started = time.monotonic()
    storage.put_bytes(uri, b"abc")
    assert storage.read_bytes(uri) == b"abc"
    storage.delete(uri)
    seconds = time.monotonic() - started
    assert proxy.done["hang"] == 1
    assert TIMEOUT_S <= seconds < TIMEOUT_S + CURL_SLACK_S + 3


@pytest.mark.parametrize("fault", [SLOW_DOWN, CUT, REFUSE, HANG], ids=lambda fault: fault.kind)
def test_a_request_to_a_store_that_stays_down_ends_within_its_budget(
    storage: Storage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    storage.put_bytes("s3://bucket/down/x", b"abcdef")
    storage = fast_storage(request_timeout_s=1, retry_budget_s=1)
    proxy.choose = lambda it: fault if it.method == "GET" else None
    proxy.requests.clear()
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"did not answer.*check"):
        storage.read_bytes("s3://bucket/down/x")
    tries = sum(it.method == "GET" for it in proxy.requests)
    assert retry.LEAST_TRIES <= tries <= (retry.LEAST_TRIES if fault is HANG else 10)
    assert time.monotonic() - started < 1 + (tries if fault is HANG else 1) * (TIMEOUT_S + 1)


@pytest.mark.parametrize(
    ("size", "share"), [(1_000, 0.0), (1_000, 0.5), (1_000, 0.99), (12_000_000, 0.5)]
)
def test_an_interrupted_put_leaves_no_object_or_the_complete_one(
    storage: Storage, proxy: Proxy, s3: S3Server, size: int, share: float
) -> None:
    name, data = f"cut-{size}-{share}", os.urandom(size)
    uri, path = f"s3://bucket/{name}/x", s3.bucket / name / "x"
    storage = fast_storage(request_timeout_s=1, retry_budget_s=0)
    proxy.choose = lambda it: CUT_UPLOAD._replace(share=share) if it.method == "PUT" else None
    with pytest.raises(StoreError):
        storage.put_bytes(uri, data)
    assert not path.exists() or path.read_bytes() == data
    with pytest.raises(NotFoundError):
        storage.read_bytes(uri)
    proxy.choose = lambda it: None
    storage.put_bytes(uri, data)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    "action", [Storage.delete, lambda storage, uri: conditional_file(storage, uri).read()]
)
def test_errors_of_boto3_are_translated(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, action: Callable[[Storage, str], Any]
) -> None:
    storage = fast_storage(request_timeout_s=1, retry_budget_s=0)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"did not answer.*EndpointConnectionError"):
        action(storage, "s3://bucket/x")
    monkeypatch.setenv("AWS_PROFILE", "nosuch")
    with pytest.raises(store.CredentialsError, match="ProfileNotFound"):
        action(storage, "s3://bucket/x")
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://someone:secret@127.0.0.1:9")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL_S3 carries credentials"):
        action(storage, "s3://bucket/x")
