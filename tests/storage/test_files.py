from __future__ import annotations

import math
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
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
from cvbatch.core.types import RetryPolicy
from cvbatch.storage import retry, store
from cvbatch.storage.listing import list_files
from cvbatch.storage.store import Storage
from tests.support.faulty_proxy import LIE, Chooser, Fault, Proxy, proxied
from tests.support.retries import fast_storage
from tests.support.s3_server import KEY, SECRET, S3Server

ODD_NAMES = ["plain.jpg", "a b.jpg", "h#sh.png", "p%20c.jpg", "é漢.png", "q?x.jpg", "st*r[1].jpg"]


@pytest.fixture
def waits() -> list[float]:
    """The waits between tries, in seconds; they take no time."""
    return []


@pytest.fixture
def storage(waits: list[float]) -> Storage:
    return fast_storage(waits)


@pytest.fixture(params=["local", "s3"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder in each kind of store."""
    if request.param == "local":
        return str(tmp_path / "home")
    request.getfixturevalue("s3")
    return f"s3://bucket/{tmp_path.name}"


def names(storage: Storage, uri: str) -> list[str]:
    listing = list_files(storage, uri)
    return sorted(u.removeprefix(listing.base) for u in listing.files["uri"].to_pylist())


# --- listing -------------------------------------------------------------------------------------


def test_a_missing_folder_has_no_names_and_cannot_be_listed(storage: Storage, home: str) -> None:
    assert storage.list_names(home) == {}
    with pytest.raises(NotFoundError, match="does not exist"):
        list_files(storage, home)


def test_every_file_is_listed_once(storage: Storage, home: str) -> None:
    expected = [*ODD_NAMES, "deep/er/" + ODD_NAMES[1], "deep/x.jpg"]
    if home.startswith("/"):
        expected.append("new\nline.jpg")
    for name in expected:
        storage.put_bytes(store.join(home, name), name.encode())
    assert names(storage, home) == sorted(expected)
    listing = list_files(storage, home)
    sizes = dict(zip(*(listing.files[c].to_pylist() for c in ("uri", "size")), strict=True))
    for uri in listing.files["uri"].to_pylist():
        data = storage.read_bytes(uri)
        assert store.join(home, data.decode()) == uri
        assert sizes[uri] == len(data)
        assert storage.exists(uri)
    assert storage.list_names(home) == {n: len(n.encode()) for n in expected if "/" not in n}


def skipped(storage: Storage, uri: str) -> dict[str, str]:
    """Return what is not listed: name → kind."""
    listing = list_files(storage, uri)
    uris, kinds = (listing.skipped[name].to_pylist() for name in ("uri", "kind"))
    return dict(zip((u.removeprefix(listing.base) for u in uris), kinds, strict=True))


JUNK = ["._a.jpg", "x/Thumbs.db", "x/.DS_Store", "x/.a.jpg-k3.tmp", "_SUCCESS", "x/DESKTOP.INI"]
JUNK_FOLDERS = ["_cvbatch/", "__MACOSX/", "x/.git/", "y/.ipynb_checkpoints/", "@eaDir/"]


def test_only_junk_is_skipped_and_it_is_named(storage: Storage, home: str) -> None:
    kept = [
        "a.jpg",
        "_DSC0001.JPG",
        ".c.jpg",
        "_background_/x/_MG_1.JPG",
        "e/.f/g.jpg",
        "git/x.jpg",
    ]
    below = [f"{folder}{name}" for folder in JUNK_FOLDERS for name in ("a.jpg", "b/c.jpg")]
    for name in [*kept, *JUNK, *below]:
        storage.put_bytes(store.join(home, name), b"x")
    assert names(storage, home) == sorted(kept)
    assert skipped(storage, home) == dict.fromkeys([*JUNK, *JUNK_FOLDERS], "junk")
    assert names(storage, store.join(home, "._a.jpg")) == ["._a.jpg"]  # named explicitly
    glob = store.join(home, "**/*.jpg")
    assert names(storage, glob) == sorted(name for name in kept if name.endswith(".jpg"))
    assert skipped(storage, glob) == dict.fromkeys(["._a.jpg", *JUNK_FOLDERS], "junk")


def test_braces_stand_for_several_names(storage: Storage, home: str) -> None:
    expected = [f"shard-{i:03d}.tar" for i in range(8, 12)]
    for name in [*expected, "shard-007.tar", "a/x.jpg", "b/y.jpg", "c/z.jpg", "{a,b}.jpg"]:
        storage.put_bytes(store.join(home, name), b"x")
    assert names(storage, store.join(home, "shard-{008..011}.tar")) == expected
    assert names(storage, store.join(home, "{a,b}/*.jpg")) == ["a/x.jpg", "b/y.jpg"]
    assert names(storage, store.join(home, "{a,{b,c}}/?.jpg")) == ["a/x.jpg", "b/y.jpg", "c/z.jpg"]
    assert names(storage, store.join(home, "{a,b}.jpg")) == ["{a,b}.jpg"]  # it exists
    for pattern, missing in [("shard-{010..013}.tar", "2 of"), ("{a,d}/*", "d/*")]:
        with pytest.raises(NotFoundError, match=re.escape(missing)):
            list_files(storage, store.join(home, pattern))
    with pytest.raises(SourceError, match="more than 100,000 names"):
        list_files(storage, store.join(home, "{000000..999999}.jpg"))


@pytest.mark.parametrize(
    ("pattern", "expected"),
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
def test_a_pattern_lists_the_matching_files(
    storage: Storage, home: str, pattern: str, expected: list[str]
) -> None:
    for name in ["a.jpg", "b c.jpg", "2026-01/c.jpg", "2026-01/x/d.jpg", "2026-02/e.jpg"]:
        storage.put_bytes(store.join(home, name), b"x")
    assert names(storage, store.join(home, pattern)) == expected


def test_an_existing_name_is_not_a_pattern(storage: Storage, home: str) -> None:
    for name in ["st*r[1].jpg", "star1.jpg"]:
        storage.put_bytes(store.join(home, name), b"x")
    assert names(storage, store.join(home, "st*r[1].jpg")) == ["st*r[1].jpg"]


def test_deep_and_wide_prefixes_are_listed_completely(storage: Storage, home: str) -> None:
    expected = sorted(f"{i:02d}/{j}/{k}.png" for i in range(20) for j in range(2) for k in "ab")
    for name in expected:
        storage.put_bytes(store.join(home, name), b"x")
    progress: list[int] = []
    listing = list_files(storage, home, progress.append)
    assert (
        sorted(u.removeprefix(listing.base) for u in listing.files["uri"].to_pylist()) == expected
    )
    assert progress == sorted(progress)
    assert progress[-1] == len(expected)


def test_a_real_folder_is_listed_once(storage: Storage, tmp_path: Path) -> None:
    """By its own path, or, outside the source, by the first of the links that lead to it."""
    home, outside = tmp_path / "home", tmp_path / "outside"
    for name in ("home/a/x.jpg", "home/b/y.jpg", "outside/z.jpg"):
        storage.put_bytes(str(tmp_path / name), b"x")
    for folder in "ab":
        for other in "ab":
            (home / folder / f"to-{other}").symlink_to(home / other)
    (home / "a" / "up").symlink_to(home)
    (home / "b" / "k").symlink_to(outside)
    (home / "a" / "m").symlink_to(outside)
    assert names(storage, str(home)) == ["a/m/z.jpg", "a/x.jpg", "b/y.jpg"]
    links = ["a/to-a/", "a/to-b/", "a/up/", "b/k/", "b/to-a/", "b/to-b/"]
    assert skipped(storage, str(home)) == dict.fromkeys(links, "repeated_folder")


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that other users can read: those above pytest's are private."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_what_cannot_be_read_does_not_end_the_listing(
    storage: Storage, public_folder: Path
) -> None:
    """Files are listed, so that they become failed rows; folders and pipes are counted."""
    storage.put_bytes(str(public_folder / "x.jpg"), b"x")
    (public_folder / "gone.jpg").symlink_to(public_folder / "nowhere")
    (public_folder / "circle.jpg").symlink_to(public_folder / "circle.jpg")
    os.mkfifo(public_folder / "pipe.jpg")
    (public_folder / "secret").mkdir(mode=0)
    program = """if True:
        import os, sys
        from cvbatch.storage.listing import list_files
        from cvbatch.storage.store import Storage
        if os.getuid() == 0:  # root may read every folder
            os.setgid(65534); os.setuid(65534)
        listing = list_files(Storage(), sys.argv[1])
        print(sorted(u[len(listing.base):] for u in listing.files["uri"].to_pylist()))
        print([(u[len(listing.base):], k) for u, k in zip(*listing.skipped.to_pydict().values())])
    """
    done = subprocess.run(
        [sys.executable, "-c", program, public_folder], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "['circle.jpg', 'gone.jpg', 'x.jpg']",
        "[('pipe.jpg', 'special_file'), ('secret/', 'unreadable_folder')]",
    ]
    for name in ("gone.jpg", "circle.jpg"):
        with pytest.raises(NotFoundError):
            storage.read_bytes(str(public_folder / name))


def test_a_folder_or_file_deleted_while_listing_does_not_end_it(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "b.jpg", "c/d.jpg"):
        storage.put_bytes(str(tmp_path / name), b"x")
    scandir = os.scandir

    class Deleting:
        """Entries of a folder, whose files and folders are deleted after it was read."""

        def __init__(self, folder: str) -> None:
            with scandir(folder) as entries:
                self._entries = list(entries)
            for entry in self._entries:
                subprocess.run(["rm", "-r", entry.path], check=True)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self._entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Deleting)
    listing = list_files(storage, str(tmp_path))
    assert sorted(Path(u).name for u in listing.files["uri"].to_pylist()) == ["a.jpg", "b.jpg"]
    assert listing.skipped["kind"].to_pylist() == ["unreadable_folder"]


def test_a_name_that_is_not_unicode_is_refused(storage: Storage, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"x")
    with pytest.raises(SourceError, match=r"\\xff.jpg.*rename"):
        list_files(storage, str(tmp_path))


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["ftp://host/x", "s3://", "s3:///x", "file://host/x"])
def test_an_invalid_uri_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        store.absolute(uri)


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as refusal:
        store.absolute(f"s3://{KEY}:{SECRET}@bucket/x")
    assert SECRET not in str(refusal.value)
    assert KEY not in str(refusal.value)


def test_absolute_returns_one_form_of_a_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.absolute("a b/") == f"{tmp_path}/a b"
    assert store.absolute(f"file://{tmp_path}/a%20b") == f"{tmp_path}/a b"
    assert store.absolute(f"{tmp_path}/a%20b") == f"{tmp_path}/a%20b"
    assert store.absolute("s3://b/a%20b/") == "s3://b/a%20b"


# --- reading -------------------------------------------------------------------------------------


def test_every_read_returns_the_bytes_that_were_put(storage: Storage, home: str) -> None:
    uri = store.join(home, "x.bin")
    for data in [b"", b"x", os.urandom(9_000_000)]:
        storage.put_bytes(uri, data)
        assert storage.read_bytes(uri) == data
        with storage.open_stream(uri) as stream:
            assert b"".join(iter(lambda: stream.read(100_001), b"")) == data
        with storage.open_input(uri) as file:
            assert file.seek(-min(7, len(data)), os.SEEK_END) == max(0, len(data) - 7)
            assert file.read() == data[-7:]
        assert storage.fetch(uri).read_bytes() == data


def test_a_missing_file_is_named(storage: Storage, home: str) -> None:
    uri = store.join(home, "nope.jpg")
    for read in (storage.read_bytes, storage.open_input, storage.fetch):
        with pytest.raises(NotFoundError, match=r"nope\.jpg does not exist"):
            read(uri)
    assert not storage.exists(uri)


def test_a_too_large_file_is_refused_with_its_size(storage: Storage, home: str) -> None:
    uri = store.join(home, "x.bin")
    storage.put_bytes(uri, b"123456")
    assert storage.read_bytes(uri, 6) == b"123456"
    with pytest.raises(store.TooLargeError) as error:
        storage.read_bytes(uri, 5)
    assert error.value.size == 6


def test_a_path_that_is_not_a_file_is_missing(
    storage: Storage, tmp_path: Path, s3: S3Server
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for uri in [str(tmp_path), str(tmp_path / "pipe"), "x" * 5000, "a\0b", "s3://bucket/a//b"]:
        with pytest.raises(NotFoundError):
            storage.read_bytes(uri)


# --- putting -------------------------------------------------------------------------------------


def test_a_failed_put_leaves_nothing(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_bytes(b"")
    with pytest.raises(StoreError):
        storage.put_bytes(str(tmp_path / "taken"), b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_no_reader_sees_a_part_of_a_put(storage: Storage, home: str) -> None:
    uri, size = store.join(home, "part-x.parquet"), 20_000_000
    storage.put_bytes(store.join(home, "first"), b"")
    writer = threading.Thread(target=storage.put_bytes, args=(uri, b"x" * size))
    sizes = []
    writer.start()
    while writer.is_alive():
        sizes.append(storage.list_names(home).get("part-x.parquet"))
    writer.join()
    assert set(sizes) <= {None, size}
    assert None in sizes
    assert storage.list_names(home)["part-x.parquet"] == size


KILLED_WRITER = """
import os, sys, threading
from cvbatch.storage.store import Storage
data = b"x" * 400_000_000
writer = threading.Thread(target=Storage().put_bytes, args=(sys.argv[1], data))
writer.start()
print("writing", flush=True)
writer.join()
"""


def test_a_killed_writer_leaves_no_file(storage: Storage, home: str) -> None:
    uri = store.join(home, "part-x.parquet")
    command = [sys.executable, "-c", KILLED_WRITER, uri]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert not storage.exists(uri)
    assert "part-x.parquet" not in storage.list_names(home)
    storage.put_bytes(uri, b"complete")
    assert names(storage, home) == ["part-x.parquet"]


# --- refusals and faults -------------------------------------------------------------------------


def every_access(storage: Storage, folder: str) -> list[Callable[[], Any]]:
    file = store.join(folder, "x.jpg")
    return [
        lambda: list_files(storage, folder),
        lambda: list_files(storage, file),
        lambda: storage.list_names(folder),
        lambda: storage.read_bytes(file),
        lambda: storage.put_bytes(file, b"x"),
    ]


@pytest.mark.parametrize(("key", "secret"), [(KEY, "wrong"), ("AKIDOFSOMEONEELSE", SECRET)])
def test_wrong_credentials_are_reported_in_one_line(
    storage: Storage,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],
    key: str,
    secret: str,
) -> None:
    storage.put_bytes("s3://bucket/keys/x.jpg", b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    for access in every_access(storage, "s3://bucket/keys"):
        with pytest.raises(store.CredentialsError, match="check AWS_ACCESS_KEY_ID") as error:
            access()
        assert secret not in str(error.value)
        assert key not in str(error.value)
        assert "\n" not in str(error.value)
    assert waits == []


def test_a_missing_bucket_is_reported(storage: Storage, s3: S3Server, waits: list[float]) -> None:
    for access in every_access(storage, "s3://nobucket/x"):
        with pytest.raises(NotFoundError, match="nobucket"):
            access()
    assert waits == []


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxied(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        yield proxy


@pytest.mark.parametrize("fault", [(503, "SlowDown"), (429, "TooMany"), (500, "InternalError")])
def test_a_request_to_a_busy_store_is_retried(
    storage: Storage, proxy: Proxy, waits: list[float], fault: tuple[int, str]
) -> None:
    storage.put_bytes("s3://bucket/busy/x.jpg", b"abc")
    before = len(proxy.requests)
    proxy.choose = lambda it: Fault("answer", *fault) if it.total <= before + 5 else None
    assert storage.read_bytes("s3://bucket/busy/x.jpg") == b"abc"
    assert len(waits) == 5
    assert all(0.5 * 0.5 * 2**i <= wait <= 0.5 * 2**i for i, wait in enumerate(waits))


@pytest.mark.parametrize("fault", [(403, "AccessDenied"), (404, "NoSuchKey")])
def test_a_refusal_is_not_retried(
    storage: Storage, proxy: Proxy, waits: list[float], fault: tuple[int, str]
) -> None:
    proxy.choose = lambda it: Fault("answer", *fault)
    kind = AccessDeniedError if fault[0] == 403 else NotFoundError
    with pytest.raises(kind) as error:
        storage.read_bytes("s3://bucket/x.jpg")
    assert not isinstance(error.value, store.CredentialsError)
    assert waits == []
    assert len(proxy.requests) <= 2


def test_an_expired_token_is_a_credentials_error(
    storage: Storage, proxy: Proxy, waits: list[float]
) -> None:
    proxy.choose = lambda it: Fault("answer", 400, "ExpiredToken")
    with pytest.raises(store.CredentialsError, match="ExpiredToken"):
        storage.read_bytes("s3://bucket/x.jpg")
    assert waits == []


def test_a_put_whose_parts_fail_leaves_nothing(
    storage: Storage, proxy: Proxy, waits: list[float]
) -> None:
    """The fault is a refusal, because the AWS SDK itself retries a busy store for seconds."""
    fault = Fault("answer", 403, "AccessDenied")
    proxy.choose = lambda it: fault if "partNumber=2" in it.path else None
    with pytest.raises(AccessDeniedError):
        storage.put_bytes("s3://bucket/parts/x.bin", b"x" * 25_000_000)
    assert not storage.exists("s3://bucket/parts/x.bin")
    assert waits == []


@pytest.mark.parametrize("access", [Storage.read_bytes, Storage.exists, Storage.delete])
def test_an_unreachable_store_is_an_error_once_the_budget_is_spent(
    monkeypatch: pytest.MonkeyPatch,
    s3: S3Server,
    waits: list[float],
    access: Callable[[Storage, str], Any],
) -> None:
    storage = fast_storage(waits, retry_budget_s=5)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"did not answer.*check") as error:
        access(storage, "s3://bucket/x.jpg")
    assert type(error.value).__mro__[1] is StoreError
    assert 4 <= sum(waits) <= 5 + retry.LONGEST_WAIT_S


def test_a_busy_store_gets_the_least_number_of_requests_without_a_budget(
    proxy: Proxy, waits: list[float]
) -> None:
    storage = fast_storage(waits, retry_budget_s=0)
    proxy.choose = lambda it: Fault("answer", 503, "SlowDown")
    with pytest.raises(StoreError, match=r"did not answer.*check"):
        storage.exists("s3://bucket/busy/x.jpg")
    assert len(proxy.requests) == retry.LEAST_TRIES == 3
    assert len(waits) == 2


def test_each_storage_has_its_own_policy(proxy: Proxy) -> None:
    waits: list[list[float]] = [[], []]
    storages = [fast_storage(waits[0], retry_budget_s=0), fast_storage(waits[1], retry_budget_s=20)]
    proxy.choose = lambda it: Fault("answer", 503, "SlowDown")
    for storage in (storages[1], storages[0]):
        with pytest.raises(StoreError):
            storage.read_bytes("s3://bucket/busy/x.jpg")
    assert len(waits[0]) == retry.LEAST_TRIES - 1
    assert sum(waits[1]) >= 19


def test_a_storage_is_equal_to_its_pickled_copy() -> None:
    for storage in (Storage(), Storage(RetryPolicy(request_timeout_s=1, retry_budget_s=2))):
        copy = pickle.loads(pickle.dumps(storage))  # noqa: S301
        assert copy == storage
        assert hash(copy) == hash(storage)
    assert Storage() != Storage(RetryPolicy(retry_budget_s=2))


def short_gets(times: float) -> Chooser:
    return lambda request: LIE if request.method == "GET" and request.number <= times else None


def test_a_complete_file_is_never_mistaken_for_a_short_one(
    storage: Storage, tmp_path: Path
) -> None:
    for last in range(256):
        data = b"abc" + bytes([last])
        (tmp_path / "x").write_bytes(data)
        assert storage.read_bytes(str(tmp_path / "x")) == data


@pytest.mark.parametrize("data", [b"abcdef", b"a\xa5", bytes(3_000_000)], ids=len)
def test_short_reads_are_retried_and_then_an_error(
    storage: Storage, proxy: Proxy, waits: list[float], data: bytes
) -> None:
    uri = f"s3://bucket/short-{len(data)}/x"
    storage.put_bytes(uri, data)
    proxy.choose = short_gets(5)
    assert storage.read_bytes(uri) == data
    assert len(waits) >= 2
    proxy.choose = short_gets(math.inf)
    storage = fast_storage(retry_budget_s=0)
    with pytest.raises(store.ShortReadError, match=f"fewer than {len(data)} bytes"):
        storage.read_bytes(uri)
    with (
        storage.open_input(uri) as file,
        pytest.raises(store.ShortReadError, match="fewer than 2 bytes"),
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
def test_errors_are_translated(text: str, kind: type[StoreError]) -> None:
    assert type(retry.translate(OSError(text), "gs://b/x")) is kind


def test_no_error_message_contains_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for text in [f"odd: {SECRET}", f"curlCode: 7, {SECRET}"]:
        assert SECRET not in str(retry.translate(OSError(text), "s3://b/x"))
