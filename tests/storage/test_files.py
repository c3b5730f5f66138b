from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cvbatch.core.errors import (
    AccessDeniedError,
    ConfigError,
    NotFoundError,
    SourceError,
    StoreError,
)
from cvbatch.storage import retry, store
from cvbatch.storage.listing import list_files
from tests.support.faulty_proxy import LIE, Chooser, Fault, Proxy, proxied
from tests.support.retries import change_retry_policy, retry_policy
from tests.support.s3_server import KEY, SECRET, S3Server

ODD_NAMES = ["plain.jpg", "a b.jpg", "h#sh.png", "p%20c.jpg", "é漢.png", "q?x.jpg", "st*r[1].jpg"]


@pytest.fixture
def pauses() -> Iterator[list[float]]:
    """The waits between tries, in seconds; they take no time."""
    waits: list[float] = []
    with retry_policy(sleep=waits.append):
        yield waits


@pytest.fixture(params=["local", "s3"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder in each kind of store."""
    if request.param == "local":
        return str(tmp_path / "home")
    request.getfixturevalue("s3")
    return f"s3://bucket/{tmp_path.name}"


def names(uri: str) -> list[str]:
    listing = list_files(uri)
    return sorted(u.removeprefix(listing.base) for u in listing.files["uri"].to_pylist())


# --- listing -------------------------------------------------------------------------------------


def test_a_missing_folder_has_no_names_and_cannot_be_listed(home: str) -> None:
    assert store.list_names(home) == {}
    with pytest.raises(NotFoundError, match="does not exist"):
        list_files(home)


def test_every_file_is_listed_once_whatever_its_name(home: str) -> None:
    wanted = [*ODD_NAMES, "deep/er/" + ODD_NAMES[1], "deep/x.jpg"]
    if home.startswith("/"):
        wanted.append("new\nline.jpg")
    for name in wanted:
        store.put_bytes(store.join(home, name), name.encode())
    assert names(home) == sorted(wanted)
    listing = list_files(home)
    sizes = dict(zip(*(listing.files[c].to_pylist() for c in ("uri", "size")), strict=True))
    for uri in listing.files["uri"].to_pylist():
        data = store.read_bytes(uri)
        assert store.join(home, data.decode()) == uri
        assert sizes[uri] == len(data)
        assert store.exists(uri)
    assert store.list_names(home) == {n: len(n.encode()) for n in wanted if "/" not in n}


def test_hidden_names_are_not_data(home: str) -> None:
    for name in ["a.jpg", "_b.jpg", ".c.jpg", "_cvbatch/d.jpg", "e/.f/g.jpg", "e/h_.jpg"]:
        store.put_bytes(store.join(home, name), b"x")
    assert names(home) == ["a.jpg", "e/h_.jpg"]
    assert names(store.join(home, "_b.jpg")) == ["_b.jpg"]  # said on purpose


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.jpg", ["a.jpg", "b c.jpg"]),
        ("**/*.jpg", ["2026-01/c.jpg", "2026-01/x/d.jpg", "2026-02/e.jpg", "a.jpg", "b c.jpg"]),
        ("2026-0?/*.jpg", ["2026-01/c.jpg", "2026-02/e.jpg"]),
        ("2026-0[!1]/*", ["2026-02/e.jpg"]),
        ("2026-0[1-1]/**", ["2026-01/c.jpg", "2026-01/x/d.jpg"]),
        ("*/", ["2026-01/c.jpg", "2026-01/x/d.jpg", "2026-02/e.jpg"]),
        ("b c.j*", ["b c.jpg"]),
        ("*.nope", []),
    ],
)
def test_patterns(home: str, pattern: str, wanted: list[str]) -> None:
    for name in ["a.jpg", "b c.jpg", "2026-01/c.jpg", "2026-01/x/d.jpg", "2026-02/e.jpg"]:
        store.put_bytes(store.join(home, name), b"x")
    assert names(store.join(home, pattern)) == wanted


def test_a_name_that_exists_is_no_pattern(home: str) -> None:
    for name in ["st*r[1].jpg", "star1.jpg"]:
        store.put_bytes(store.join(home, name), b"x")
    assert names(store.join(home, "st*r[1].jpg")) == ["st*r[1].jpg"]


def test_deep_and_wide_prefixes_are_listed_whole(home: str) -> None:
    wanted = sorted(f"{i:02d}/{j}/{k}.png" for i in range(20) for j in range(2) for k in "ab")
    for name in wanted:
        store.put_bytes(store.join(home, name), b"x")
    told: list[int] = []
    listing = list_files(home, told.append)
    assert sorted(u.removeprefix(listing.base) for u in listing.files["uri"].to_pylist()) == wanted
    assert told == sorted(told)
    assert told[-1] == len(wanted)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(b"x")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert names(str(tmp_path)) == ["a/x.jpg", "b/x.jpg", "gone.jpg"]


def test_a_name_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"x")
    with pytest.raises(SourceError, match=r"\\xff.jpg.*rename"):
        list_files(str(tmp_path))


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["ftp://host/x", "s3://", "s3:///x", "file://host/x"])
def test_what_is_no_place_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        store.absolute(uri)


def test_keys_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as refusal:
        store.absolute(f"s3://{KEY}:{SECRET}@bucket/x")
    assert SECRET not in str(refusal.value)
    assert KEY not in str(refusal.value)


def test_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.absolute("a b/") == f"{tmp_path}/a b"
    assert store.absolute(f"file://{tmp_path}/a%20b") == f"{tmp_path}/a b"
    assert store.absolute(f"{tmp_path}/a%20b") == f"{tmp_path}/a%20b"
    assert store.absolute("s3://b/a%20b/") == "s3://b/a%20b"


# --- reading -------------------------------------------------------------------------------------


def test_what_is_read_is_what_was_put(home: str) -> None:
    uri = store.join(home, "x.bin")
    for data in [b"", b"x", os.urandom(9_000_000)]:
        store.put_bytes(uri, data)
        assert store.read_bytes(uri) == data
        with store.open_stream(uri) as stream:
            assert b"".join(iter(lambda: stream.read(100_001), b"")) == data
        with store.open_input(uri) as file:
            assert file.seek(-min(7, len(data)), os.SEEK_END) == max(0, len(data) - 7)
            assert file.read() == data[-7:]
        assert store.fetch(uri).read_bytes() == data


def test_a_missing_file_is_named(home: str) -> None:
    uri = store.join(home, "nope.jpg")
    for read in (store.read_bytes, store.open_input, store.fetch):
        with pytest.raises(NotFoundError, match=r"nope\.jpg does not exist"):
            read(uri)
    assert not store.exists(uri)


def test_too_large_is_told_with_the_size(home: str) -> None:
    uri = store.join(home, "x.bin")
    store.put_bytes(uri, b"123456")
    assert store.read_bytes(uri, 6) == b"123456"
    with pytest.raises(store.TooLargeError) as error:
        store.read_bytes(uri, 5)
    assert error.value.size == 6


def test_what_is_no_file_is_missing(tmp_path: Path, s3: S3Server) -> None:
    os.mkfifo(tmp_path / "pipe")
    for uri in [str(tmp_path), str(tmp_path / "pipe"), "x" * 5000, "a\0b", "s3://bucket/a//b"]:
        with pytest.raises(NotFoundError):
            store.read_bytes(uri)


# --- putting -------------------------------------------------------------------------------------


def test_a_failed_put_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_bytes(b"")
    with pytest.raises(StoreError):
        store.put_bytes(str(tmp_path / "taken"), b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_no_reader_sees_a_part_of_a_put(home: str) -> None:
    uri, size = store.join(home, "part-x.parquet"), 20_000_000
    store.put_bytes(store.join(home, "first"), b"")
    writer = threading.Thread(target=store.put_bytes, args=(uri, b"x" * size))
    seen = []
    writer.start()
    while writer.is_alive():
        seen.append(store.list_names(home).get("part-x.parquet"))
    writer.join()
    assert set(seen) <= {None, size}
    assert None in seen
    assert store.list_names(home)["part-x.parquet"] == size


KILLED_WRITER = """
import os, sys, threading
from cvbatch.storage import store
data = b"x" * 400_000_000
writer = threading.Thread(target=store.put_bytes, args=(sys.argv[1], data))
writer.start()
print("writing", flush=True)
writer.join()
"""


def test_a_killed_writer_leaves_nothing_to_be_seen(home: str) -> None:
    uri = store.join(home, "part-x.parquet")
    command = [sys.executable, "-c", KILLED_WRITER, uri]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert not store.exists(uri)
    assert "part-x.parquet" not in store.list_names(home)
    store.put_bytes(uri, b"whole")
    assert names(home) == ["part-x.parquet"]


# --- refusals and faults -------------------------------------------------------------------------


def every_access(folder: str) -> list[Callable[[], Any]]:
    file = store.join(folder, "x.jpg")
    return [
        lambda: list_files(folder),
        lambda: list_files(file),
        lambda: store.list_names(folder),
        lambda: store.read_bytes(file),
        lambda: store.put_bytes(file, b"x"),
    ]


@pytest.mark.parametrize(("key", "secret"), [(KEY, "wrong"), ("AKIDOFSOMEONEELSE", SECRET)])
def test_wrong_keys_are_told_in_one_sentence(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, pauses: list[float], key: str, secret: str
) -> None:
    store.put_bytes("s3://bucket/keys/x.jpg", b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    for access in every_access("s3://bucket/keys"):
        with pytest.raises(store.CredentialsError, match="check AWS_ACCESS_KEY_ID") as error:
            access()
        assert secret not in str(error.value)
        assert key not in str(error.value)
        assert "\n" not in str(error.value)
    assert pauses == []


def test_a_missing_bucket_is_told(s3: S3Server, pauses: list[float]) -> None:
    for access in every_access("s3://nobucket/x"):
        with pytest.raises(NotFoundError, match="nobucket"):
            access()
    assert pauses == []


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxied(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        yield proxy


@pytest.mark.parametrize("fault", [(503, "SlowDown"), (429, "TooMany"), (500, "InternalError")])
def test_a_busy_store_is_asked_again(
    proxy: Proxy, pauses: list[float], fault: tuple[int, str]
) -> None:
    store.put_bytes("s3://bucket/busy/x.jpg", b"abc")
    before = len(proxy.seen)
    proxy.choose = lambda it: Fault("answer", *fault) if it.total <= before + 5 else None
    assert store.read_bytes("s3://bucket/busy/x.jpg") == b"abc"
    assert len(pauses) == 5
    assert all(0.5 * 0.5 * 2**i <= wait <= 0.5 * 2**i for i, wait in enumerate(pauses))


@pytest.mark.parametrize("fault", [(403, "AccessDenied"), (404, "NoSuchKey")])
def test_a_refusal_is_not_asked_again(
    proxy: Proxy, pauses: list[float], fault: tuple[int, str]
) -> None:
    proxy.choose = lambda it: Fault("answer", *fault)
    kind = AccessDeniedError if fault[0] == 403 else NotFoundError
    with pytest.raises(kind) as error:
        store.read_bytes("s3://bucket/x.jpg")
    assert not isinstance(error.value, store.CredentialsError)
    assert pauses == []
    assert len(proxy.seen) <= 2


def test_an_expired_token_is_not_the_files_fault(proxy: Proxy, pauses: list[float]) -> None:
    proxy.choose = lambda it: Fault("answer", 400, "ExpiredToken")
    with pytest.raises(store.CredentialsError, match="ExpiredToken"):
        store.read_bytes("s3://bucket/x.jpg")
    assert pauses == []


def test_a_put_whose_parts_fail_leaves_nothing(proxy: Proxy, pauses: list[float]) -> None:
    """By a refusal, which the AWS SDK does not try again after seconds of its own."""
    fault = Fault("answer", 403, "AccessDenied")
    proxy.choose = lambda it: fault if "partNumber=2" in it.path else None
    with pytest.raises(AccessDeniedError):
        store.put_bytes("s3://bucket/parts/x.bin", b"x" * 25_000_000)
    assert not store.exists("s3://bucket/parts/x.bin")
    assert pauses == []


@pytest.mark.parametrize("access", [store.read_bytes, store.exists, store.delete])
def test_an_unreachable_store_is_given_up_when_the_budget_is_spent(
    monkeypatch: pytest.MonkeyPatch,
    s3: S3Server,
    pauses: list[float],
    access: Callable[[str], Any],
) -> None:
    change_retry_policy(retry_budget_s=5)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"did not answer.*check") as error:
        access("s3://bucket/x.jpg")
    assert type(error.value).__mro__[1] is StoreError
    assert 4 <= sum(pauses) <= 5 + retry.LONGEST_WAIT_S


def lying(times: float) -> Chooser:
    return lambda request: LIE if request.method == "GET" and request.number <= times else None


def test_every_file_is_told_from_a_short_one(tmp_path: Path) -> None:
    for last in range(256):
        data = b"abc" + bytes([last])
        (tmp_path / "x").write_bytes(data)
        assert store.read_bytes(str(tmp_path / "x")) == data


@pytest.mark.parametrize("data", [b"abcdef", b"a\xa5", bytes(3_000_000)], ids=len)
def test_short_reads_are_tried_again_then_told(
    proxy: Proxy, pauses: list[float], data: bytes
) -> None:
    uri = f"s3://bucket/short-{len(data)}/x"
    store.put_bytes(uri, data)
    proxy.choose = lying(5)
    assert store.read_bytes(uri) == data
    assert len(pauses) >= 2
    proxy.choose = lying(math.inf)
    change_retry_policy(retry_budget_s=0)
    with pytest.raises(store.ShortReadError, match=f"fewer than the {len(data)} bytes"):
        store.read_bytes(uri)
    with (
        store.open_input(uri) as file,
        pytest.raises(store.ShortReadError, match="fewer than the 2 bytes"),
    ):
        file.seek(-2, os.SEEK_END)
        file.read()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("google::cloud::Status(NOT_FOUND: no object)", NotFoundError),
        ("google::cloud::Status(PERMISSION_DENIED: no)", AccessDeniedError),
        ("google::cloud::Status(UNAUTHENTICATED: no)", store.CredentialsError),
        ("AWS Error UNKNOWN (HTTP status 301): Unable to parse: PermanentRedirect", NotFoundError),
        ("AWS Error REQUEST_TIME_TOO_SKEWED during GetObject", store.CredentialsError),
        ("[Errno 28] No space left on device", StoreError),
    ],
)
def test_complaints_get_the_projects_names(text: str, kind: type[StoreError]) -> None:
    assert type(retry.translate(OSError(text), "gs://b/x")) is kind


def test_no_secret_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for text in [f"odd: {SECRET}", f"curlCode: 7, {SECRET}"]:
        assert SECRET not in str(retry.translate(OSError(text), "s3://b/x"))
