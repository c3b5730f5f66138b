"""Where an export goes: an empty folder, files put there side by side, and a mark when it is whole.

The mark, `_cvbatch/export.json`, says from the first moment that an export is under way; half a one
is never taken for the whole, and the same command clears it away and begins again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any

import pyarrow.fs as pafs

from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.errors import AccessDeniedError, NotFoundError, SinkError
from cvbatch.storage import store
from cvbatch.storage.atomic import remove_leftovers

MARK = "_cvbatch/export.json"
_THREADS = 8
_PIECE_BYTES = 4 << 20
_SPOOLED_BYTES = 1 << 20  # of a temporary file that stays in memory
_WAITING = 32  # files held in memory until they are written


class Folder:
    """The folder of one export. As a context it waits for its files, and lets go of its threads."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
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
        self._soon(self._pool.submit(store.put_bytes, store.join(self.uri, name), data))

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
        store.attempt(store.Location.of(self.uri), put)

    def mark(self, said: dict[str, Any]) -> None:
        """Say how far the export is."""
        document = {"kind": "export", "schema_version": SCHEMA_VERSION, **said}
        data = json.dumps(document, indent=1, ensure_ascii=False).encode()
        store.put_bytes(store.join(self.uri, MARK), data)


def begin(uri: str, source: str, format_: str, tops: Iterable[str], *, overwrite: bool) -> Folder:
    """Return the folder of an export, cleared of an earlier one, and marked as under way.

    tops: names of the files and folders in it that the export writes.

    Raises:
        SinkError: it holds something, or lies in the result.
    """
    if f"{uri}/".startswith(f"{source}/"):
        raise SinkError(f"the export would lie in the result {source}; name a folder of its own")
    try:
        found = set(_names(uri))
        earlier = _mark_of(uri)
    except (NotFoundError, AccessDeniedError) as error:
        raise SinkError(f"the sink cannot be used: {error}") from None
    if found and earlier is None:
        raise SinkError(f"{uri} holds {min(found)!r}, which no export wrote; name an empty folder")
    if earlier is not None and earlier.get("is_complete") and not overwrite:
        raise SinkError(f"{uri} holds an export; name another folder, or --overwrite")
    folder = Folder(uri)
    said = {"is_complete": False, "format": format_}
    if earlier is not None:
        if folder.is_local:
            remove_leftovers(Path(uri), ".")
        folder.mark({**said, "tops": sorted({*tops, *earlier["tops"]})})
        for name in earlier["tops"]:
            if name in found and "/" not in name:
                _clear(store.join(uri, name))
    folder.mark({**said, "tops": sorted(tops)})
    return folder


def _names(uri: str) -> list[str]:
    """Return the names of the files and folders in a folder; [] where there is none."""
    place = store.Location.of(uri)
    selector = pafs.FileSelector(place.path, allow_not_found=True)
    infos = store.attempt(place, lambda files: files.get_file_info(selector))
    return [info.base_name for info in infos]


def _mark_of(uri: str) -> dict[str, Any] | None:
    try:
        found = json.loads(store.read_bytes(store.join(uri, MARK)))
    except NotFoundError:
        return None
    except ValueError:
        found = None
    is_one = isinstance(found, dict) and isinstance(found.get("tops"), list)
    if not is_one or not all(isinstance(name, str) for name in found["tops"]):
        raise SinkError(f"{uri}: {MARK} is damaged; name another folder")
    return dict(found)


def _clear(uri: str) -> None:
    """Remove a file or a folder with all in it; links go, what they lead to stays."""
    place = store.Location.of(uri)
    if place.scheme != "file":
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(store.delete, _objects(place)))
        return
    path = Path(place.path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _objects(place: store.Location) -> list[str]:
    """Return the URIs of what a store has under a name: the object, or all below the folder."""
    selector = pafs.FileSelector(place.path, allow_not_found=True, recursive=True)

    def found(files: Any) -> list[Any]:
        itself = files.get_file_info(place.path)
        return [itself] if itself.type == pafs.FileType.File else files.get_file_info(selector)

    infos = store.attempt(place, found)
    return [f"{place.scheme}://{one.path}" for one in infos if one.type == pafs.FileType.File]


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
