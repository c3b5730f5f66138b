"""Where an export goes: an empty folder, files put there side by side, and a mark when it is whole.

The mark, `_cvbatch/export.json`, says from the first moment that an export is under way; half a one
is never taken for the whole, and the same command clears it away and begins again.
"""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any

from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.errors import SinkError
from cvbatch.storage import store
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage

_THREADS = 8
_PIECE_BYTES = 4 << 20
_SPOOLED_BYTES = 1 << 20  # of a temporary file that stays in memory
_WAITING = 32  # files held in memory until they are written


class Folder:
    """The folder of one export. As a context it waits for its files, and lets go of its threads."""

    def __init__(self, sink: Sink) -> None:
        self.uri = sink.uri
        self._sink = sink
        self._pool = ThreadPoolExecutor(_THREADS)
        self._waiting: deque[Future[None]] = deque()
        self._scratch = ExitStack()

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        self._scratch.close()

    @property
    def is_local(self) -> bool:
        """Return whether it lies on this machine."""
        return store.Location.of(self.uri).scheme == "file"

    def scratch(self) -> IO[bytes]:
        """Return a temporary file on this machine that is gone with the context."""
        return self._scratch.enter_context(tempfile.SpooledTemporaryFile(_SPOOLED_BYTES))

    def put(self, name: str, data: bytes) -> None:
        """Write a file, soon."""
        self._soon(
            self._pool.submit(self._sink.storage.put_bytes, store.join(self.uri, name), data)
        )

    def link(self, name: str, target: str) -> None:
        """Make a symbolic link to a file on this machine, soon."""
        self._soon(self._pool.submit(_link, Path(self.uri, name), target))

    def _soon(self, one: Future[None]) -> None:
        self._waiting.append(one)
        while len(self._waiting) > _WAITING:
            self._waiting.popleft().result()

    def wait(self) -> None:
        """Return once all files are written."""
        while self._waiting:
            self._waiting.popleft().result()

    def put_long(self, name: str, file: IO[bytes]) -> None:
        """Write what a temporary file on this machine holds, a piece held at a time."""
        path = PurePosixPath(store.Location.of(store.join(self.uri, name)).path)
        written = path.with_name(f".{path.name}-.tmp") if self.is_local else path

        def put(files: Any) -> None:
            file.seek(0)
            with files.open_output_stream(str(written)) as stream:
                shutil.copyfileobj(file, stream, _PIECE_BYTES)
            if written != path:  # a store shows what was closed alone
                files.move(str(written), str(path))

        if self.is_local:
            Path(path.parent).mkdir(parents=True, exist_ok=True)
        self._sink.storage.attempt(store.Location.of(self.uri), put)

    def mark(self, said: dict[str, Any]) -> None:
        """Say how far the export is."""
        self._sink.write_state({"kind": "export", "schema_version": SCHEMA_VERSION, **said})


def begin(
    storage: Storage, uri: str, source: str, format_: str, tops: Iterable[str], *, overwrite: bool
) -> Folder:
    """Return the folder of an export, cleared of an earlier one, and marked as under way.

    tops: names of the files and folders in it that the export writes.

    Raises:
        SinkError: it holds something, or lies in the result.
    """
    if f"{uri}/".startswith(f"{source}/"):
        raise SinkError(f"the export would be inside the result {source}; use another folder")
    sink = Sink(storage, uri, "export")
    found = set(sink.names())
    earlier = sink.read_state(_parse_mark)
    if found and earlier is None:
        raise SinkError(
            f"{uri} contains {min(found)!r}, which no export wrote; use an empty folder"
        )
    if earlier is not None and earlier.get("is_complete") and not overwrite:
        raise SinkError(f"{uri} contains an export; use another folder or --overwrite")
    folder = Folder(sink)
    said = {"is_complete": False, "format": format_}
    if earlier is not None:
        sink.remove_leftovers()
        folder.mark({**said, "tops": sorted({*tops, *earlier["tops"]})})
        sink.remove(*map(glob.escape, found.intersection(earlier["tops"])))
    folder.mark({**said, "tops": sorted(tops)})
    return folder


def _parse_mark(mark: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(mark["tops"], list) or not all(isinstance(top, str) for top in mark["tops"]):
        raise TypeError
    return mark


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
