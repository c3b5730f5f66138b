"""A conditional write is done, refused or repeated, depending on the HTTP status."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cvbatch.core.errors import AccessDeniedError, StoreError
from cvbatch.storage.conditional_write import Content, conditional_file
from cvbatch.storage.store import Storage
from tests.support.s3_server import s3_env


class Store(ThreadingHTTPServer):
    """A store that responds to conditional PUTs with `status`, and to other PUTs with 200."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.puts: list[tuple[str | None, str | None, bytes]] = []  # both conditions, body


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # a client waits for "100 Continue"
    server: Store

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        conditions = self.headers.get("If-None-Match"), self.headers.get("If-Match")
        self.server.puts.append((*conditions, body))
        self.send_response(self.server.status if any(conditions) else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with Store() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def store(server: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store with the status of the test's parameter."""
    for name, value in s3_env(f"http://127.0.0.1:{server.server_port}").items():
        monkeypatch.setenv(name, value)
    server.status, server.puts = request.param, []
    return server


CONDITIONS = [(None, ("*", None)), (Content(b"old", '"tag"'), (None, '"tag"'))]
each_condition = pytest.mark.parametrize(
    ("expected", "headers"), CONDITIONS, ids=["new", "replaced"]
)


def statuses(*values: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("store", values, indirect=True)


@statuses(200)
@each_condition
def test_a_condition_that_holds_writes_once(store, expected, headers):
    assert conditional_file(Storage(), "s3://bucket/key").put(b"new", expected)
    assert store.puts == [(*headers, b"new")]


@statuses(404, 409, 412)
@each_condition
def test_a_condition_that_does_not_hold_writes_nothing(store, expected, headers):
    assert not conditional_file(Storage(), "s3://bucket/key").put(b"new", expected)
    assert store.puts == [(*headers, b"new")]


@statuses(400, 501)
@each_condition
def test_a_store_without_conditional_writes_gets_an_unconditional_put(store, expected, headers):
    assert conditional_file(Storage(), "s3://bucket/key").put(b"new", expected)
    assert store.puts == [(*headers, b"new"), (None, None, b"new")]


@statuses(401, 403, 405)
@each_condition
def test_any_other_refusal_is_an_error(store, expected, headers):
    with pytest.raises(StoreError) as error:
        conditional_file(Storage(), "s3://bucket/key").put(b"new", expected)
    assert store.puts == [(*headers, b"new")]
    assert isinstance(error.value, AccessDeniedError) == (store.status == 403)
