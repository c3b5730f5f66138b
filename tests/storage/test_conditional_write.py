"""What the answers of a store to a write on a condition mean, status by status."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cvbatch.core.errors import AccessDeniedError, StoreError
from cvbatch.storage.conditional_write import Content, conditional_file
from tests.support.s3_server import s3_env


class Store(ThreadingHTTPServer):
    """A store that answers every PUT on a condition with `status`, and every other with 200."""

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
    """The store, which gives the answer of the test's parameter."""
    for name, value in s3_env(f"http://127.0.0.1:{server.server_port}").items():
        monkeypatch.setenv(name, value)
    server.status, server.puts = request.param, []
    return server


CONDITIONS = [(None, ("*", None)), (Content(b"old", '"tag"'), (None, '"tag"'))]
each_condition = pytest.mark.parametrize(("seen", "sent"), CONDITIONS, ids=["new", "replaced"])


def statuses(*values: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("store", values, indirect=True)


@statuses(200)
@each_condition
def test_a_condition_that_holds_writes_once(store, seen, sent):
    assert conditional_file("s3://bucket/key").put(b"new", seen)
    assert store.puts == [(*sent, b"new")]


@statuses(404, 409, 412)
@each_condition
def test_a_condition_that_does_not_hold_writes_nothing(store, seen, sent):
    assert not conditional_file("s3://bucket/key").put(b"new", seen)
    assert store.puts == [(*sent, b"new")]


@statuses(400, 501)
@each_condition
def test_a_store_without_conditions_is_written_to_without_one(store, seen, sent):
    assert conditional_file("s3://bucket/key").put(b"new", seen)
    assert store.puts == [(*sent, b"new"), (None, None, b"new")]


@statuses(401, 403, 405)
@each_condition
def test_any_other_refusal_is_an_error(store, seen, sent):
    with pytest.raises(StoreError) as error:
        conditional_file("s3://bucket/key").put(b"new", seen)
    assert store.puts == [(*sent, b"new")]
    assert isinstance(error.value, AccessDeniedError) == (store.status == 403)
