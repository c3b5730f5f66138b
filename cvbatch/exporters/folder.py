"""Target folder of an export: empty-folder check, parallel writes, completion state.

`_cvbatch/export.json` is written before the first file and says that the export is not complete. If
the export is interrupted, the same command removes its files and starts again.
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
from typing import IO, Any

from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.errors import SinkError
from cvbatch.storage import store
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage

_THREADS = 8
_COPY_BYTES = 4 << 20
_SPOOLED_BYTES = 1 << 20  # a larger temporary file is on disk, not in memory
_MAX_PENDING = 32  # writes; their files are in memory


class ExportFolder:
    """The folder of one export.

    Use as a context manager: on exit it waits for pending writes (or cancels them after an error),
    stops its threads and deletes its temporary files.
    """

    def __init__(self, sink: Sink) -> None:
        self.uri = sink.uri
        self._sink = sink
        self._pool = ThreadPoolExecutor(_THREADS)
        self._pending: deque[Future[None]] = deque()
        self._temporary_files = ExitStack()

    def __enter__(self) -> ExportFolder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        self._temporary_files.close()

    @property
    def is_local(self) -> bool:
        """Return whether it is a local folder."""
        return store.Location.of(self.uri).scheme == "file"

    def temporary_file(self) -> IO[bytes]:
        """Return a local temporary file, which is deleted when the context exits."""
        return self._temporary_files.enter_context(tempfile.SpooledTemporaryFile(_SPOOLED_BYTES))

    def put(self, name: str, data: bytes) -> None:
        """Write a file in the background."""
        uri = store.join(self.uri, name)
        self._submit(self._pool.submit(self._sink.storage.put_bytes, uri, data))

    def link(self, name: str, target: str) -> None:
        """Make a symbolic link to a local file in the background."""
        self._submit(self._pool.submit(_link, Path(self.uri, name), target))

    def _submit(self, write: Future[None]) -> None:
        self._pending.append(write)
        while len(self._pending) > _MAX_PENDING:
            self._pending.popleft().result()

    def wait(self) -> None:
        """Wait until all files are written; raise the error of a failed write."""
        while self._pending:
            self._pending.popleft().result()

    def put_file(self, name: str, file: IO[bytes]) -> None:
        """Upload a local temporary file without loading it into memory."""
        path = PurePosixPath(store.Location.of(store.join(self.uri, name)).path)
        written = path.with_name(f".{path.name}-.tmp") if self.is_local else path

        def put(files: Any) -> None:
            file.seek(0)
            with files.open_output_stream(str(written)) as stream:
                shutil.copyfileobj(file, stream, _COPY_BYTES)
            if written != path:  # an object store shows only complete objects
                files.move(str(written), str(path))

        if self.is_local:
            Path(path.parent).mkdir(parents=True, exist_ok=True)
        self._sink.storage.attempt(store.Location.of(self.uri), put)

    def write_state(self, state: dict[str, Any]) -> None:
        """Write `_cvbatch/export.json`."""
        self._sink.write_state({"kind": "export", "schema_version": SCHEMA_VERSION, **state})


def open_folder(
    storage: Storage,
    uri: str,
    source: str,
    format_: str,
    output_names: Iterable[str],
    *,
    overwrite: bool,
) -> ExportFolder:
    """Prepare the folder of an export: remove an earlier export, write the state "not complete".

    Args:
        storage: reads and writes the folder.
        source: URI of the result.
        format_: a key of `EXPORTS`.
        output_names: files and folders that the export writes, below the folder.
        overwrite: replace a complete export.

    Raises:
        SinkError: the folder contains other files or a complete export, or is inside the result.
    """
    if f"{uri}/".startswith(f"{source}/"):
        raise SinkError(f"the export would be inside the result {source}; use another folder")
    sink = Sink(storage, uri, "export")
    names = set(sink.names())
    earlier = sink.read_state(_parse_state)
    if names and earlier is None:
        raise SinkError(
            f"{uri} contains {min(names)!r}, which is not part of an export; use an empty folder"
        )
    if earlier is not None and earlier.get("is_complete") and not overwrite:
        raise SinkError(f"{uri} contains an export; use another folder or --overwrite")
    folder = ExportFolder(sink)
    state = {"is_complete": False, "format": format_}
    if earlier is not None:
        sink.remove_leftovers()
        folder.write_state({**state, "tops": sorted({*output_names, *earlier["tops"]})})
        sink.remove(*map(glob.escape, names.intersection(earlier["tops"])))
    folder.write_state({**state, "tops": sorted(output_names)})
    return folder


def _parse_state(state: dict[str, Any]) -> dict[str, Any]:
    names = state["tops"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError
    return state


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
