"""An S3 server in memory whose keys may be any strings, as those of AWS: `a//b`, `/a`, `..`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@contextmanager
def serve_keys(keys: dict[str, bytes]) -> Iterator[str]:
    """Serve the objects of a bucket named "keys"; yield the endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            bucket, _, key = unquote(url.path)[1:].partition("/")
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            if bucket != "keys":
                self._answer(404, b"")
            elif "list-type" in query:
                self._answer(200, _listing(keys, query), {"Content-Type": "application/xml"})
            elif key in keys or not key:
                self._object(keys.get(key, b""))
            else:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

        def _object(self, data: bytes) -> None:
            headers = {"ETag": f'"{md5(data).hexdigest()}"', "Last-Modified": formatdate(0)}
            if not (span := self.headers.get("Range")):
                self._answer(200, data, headers)
                return
            if not data:
                self._answer(416, b"<Error><Code>InvalidRange</Code></Error>")
                return
            first, last = span.removeprefix("bytes=").split("-")
            end = min(int(last or len(data)), len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
            self._answer(206, data[int(first) : end], headers)

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        daemon_threads, block_on_close = True, False  # clients keep their connections open

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _listing(keys: dict[str, bytes], query: dict[str, str]) -> bytes:
    """Return the response of ListObjectsV2, in one page."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    contents, prefixes = [], dict[str, None]()
    for key in sorted(keys):
        if not key.startswith(prefix):
            continue
        head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        if found:
            prefixes[prefix + head + found] = None
        else:
            contents.append(key)
    items = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(keys[key])}</Size>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key in contents
    ) + "".join(
        f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in prefixes
    )
    count = len(contents) + len(prefixes)
    return (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>keys</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{count}</KeyCount>"
        f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
    ).encode()
