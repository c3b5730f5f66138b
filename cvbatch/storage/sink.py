"""Sink: the output folder of one command, with its state file and its lease.

A sink belongs to the command that wrote into it first. The state file `_cvbatch/<state>.json`
contains the fingerprint of the results and whether they are complete.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SinkError
from cvbatch.core.types import Log
from cvbatch.storage import atomic, store
from cvbatch.storage.lease import CLOCK, Clock, Lease
from cvbatch.storage.store import Storage

T = TypeVar("T")
_THREADS = 8


class Owner(NamedTuple):
    """Names and messages by which a sink belongs to a command."""

    state: str  # name of the state file in `_cvbatch`, without .json
    result: str = ""  # what a fingerprint identifies
    differs: str = ""  # what a different fingerprint means
    foreign: str = "*.parquet"  # such files are refused in a sink without the state file
    remedy: str = "use another sink or --overwrite"  # if the state is damaged or another job's
    is_exclusive: bool = True  # other commands refuse the sink


OWNERS = {
    "predict": Owner("job", "prediction", "models, weights, thresholds, sizes or engine"),
    "train": Owner("training", "training", "data, model or training section", "model.keras"),
    "evaluate": Owner("evaluation", "evaluation", "predictions, truth or evaluation section"),
    "explain": Owner("explain", "explanation", "model or requested outputs"),
    "import": Owner("import"),
    "export": Owner("export", remedy="use another folder", is_exclusive=False),
}


class Sink:
    """The output folder of one run of a command.

    As a context manager it refuses a sink that another active run uses, and at the end it releases
    the lease taken by `acquire`:

        with Sink(storage, uri, "evaluate", listener.info) as sink:
            state = sink.open(fingerprint, overwrite=False)  # validates; writes nothing
            ...
            sink.acquire()
            sink.write_state({"fingerprint": fingerprint, "is_complete": False})
            for result in sink.guarded(results): ...

    Args:
        storage: Lists, reads and writes the files.
        uri: The folder or URI.
        command: A key of OWNERS.
        report: Receives a line if the run has to wait, or if the storage has no leases.
        clock: The clock of the lease.
    """

    def __init__(
        self,
        storage: Storage,
        uri: str,
        command: str,
        report: Log = lambda line: None,
        clock: Clock = CLOCK,
    ) -> None:
        self.storage, self.uri = storage, uri
        self._owner = OWNERS[command]
        self._lease = Lease(storage, uri, report, clock)
        self._state: bytes | None = None  # the state file when `open` read it

    def __enter__(self) -> Sink:
        self._lease.wait_until_free()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._lease.__exit__(*exception)

    def join(self, *parts: str) -> str:
        """Return the URI of a file or folder in the sink."""
        return store.join(self.uri, *parts)

    def put(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write one file of the sink. Raises CvbatchError if another run has taken it over."""
        self.check()
        self.storage.put_bytes(self.join(name), data)

    # --- state -----------------------------------------------------------------------------------

    def open(
        self,
        fingerprint: str | None = None,
        *,
        overwrite: bool = False,
        parse: Callable[[dict[str, Any]], Any] = dict,
    ) -> Any:
        """Return the stored state, or None if the sink is new or is to be overwritten.

        Args:
            fingerprint: Of this run; None for a command without fingerprints.
            overwrite: Accept a state with another fingerprint or a damaged one.
            parse: Converts the JSON object of the state file. A ValueError, LookupError, TypeError
                or AttributeError means that the file is damaged.

        Raises:
            SinkError: The sink belongs to another command, contains another result or files that
                cvbatch did not write, is damaged, or cannot be accessed.
        """
        with self._accessing():
            self._refuse_other_commands()
            self._state = self._read_state_file()
            if self._state is None:
                self._refuse_foreign_files()
        if self._state is None or overwrite:
            return None

        def checked_parse(raw: dict[str, Any]) -> Any:
            if fingerprint is not None and raw["fingerprint"] != fingerprint:
                raise SinkError(
                    f"sink {self.uri} contains another {self._owner.result} (fingerprint "
                    f"{raw['fingerprint'][:12] or 'none'}, this job has {fingerprint[:12]}): "
                    f"{self._owner.differs} differ; {self._owner.remedy}"
                )
            return parse(raw)

        return self._parse(self._state, checked_parse)

    def read_state(self, parse: Callable[[dict[str, Any]], T]) -> T | None:
        """Return the stored state, None if there is none; see `open`, which refuses more."""
        with self._accessing():
            data = self._read_state_file()
        return None if data is None else self._parse(data, parse)

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Write the state file. Raises CvbatchError if another run has taken over the sink."""
        self.put(self._state_path, json.dumps(state, indent=1, ensure_ascii=False).encode())

    @property
    def _state_path(self) -> str:
        return f"_cvbatch/{self._owner.state}.json"

    def _read_state_file(self) -> bytes | None:
        try:
            return self.storage.read_bytes(self.join(self._state_path))
        except NotFoundError:
            return None

    def _parse(self, data: bytes, parse: Callable[[dict[str, Any]], T]) -> T:
        try:
            raw = json.loads(data)
            if not isinstance(raw, dict):
                raise TypeError
            return parse(raw)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise SinkError(
                f"sink {self.uri}: {self._state_path} is damaged; {self._owner.remedy}"
            ) from None

    def _refuse_other_commands(self) -> None:
        for command, owner in OWNERS.items():
            path = f"_cvbatch/{owner.state}.json"
            if owner.is_exclusive and owner != self._owner and self.storage.exists(self.join(path)):
                raise SinkError(
                    f"sink {self.uri} contains {path}: it belongs to `cvbatch {command}`; use "
                    "another sink"
                )

    def _refuse_foreign_files(self) -> None:
        for name in fnmatch.filter(self.storage.list_names(self.uri), self._owner.foreign):
            raise SinkError(
                f"sink {self.uri} contains {name!r}, which cvbatch did not write; use an empty "
                "folder"
            )

    @contextmanager
    def _accessing(self) -> Iterator[None]:
        try:
            yield
        except (NotFoundError, AccessDeniedError) as error:
            raise SinkError(f"the sink cannot be used: {error}") from None

    # --- lease -----------------------------------------------------------------------------------

    @property
    def lease_token(self) -> str:
        """Identifies this run in the lease file; for `cvbatch.storage.lease.check_token`."""
        return self._lease.token

    def acquire(self) -> None:
        """Take the lease. From now on this run may write.

        Raises:
            SinkError: Another active run has the lease, or the state has changed since `open`.
        """
        self._lease.acquire()
        with self._accessing():
            state = self._read_state_file()
        if state != self._state:
            raise SinkError(
                f"another run wrote into the sink {self.uri} while this run started; run the same "
                "command again"
            )

    def check(self) -> None:
        """Raise CvbatchError if another run has taken over the sink."""
        self._lease.check()

    def guarded(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; raise CvbatchError once another run has taken over the sink."""
        for item in items:
            self.check()
            yield item

    # --- files -----------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of the files and folders directly in the sink; [] if it is missing.

        Raises:
            SinkError: The sink cannot be accessed.
        """
        with self._accessing():
            return [info.base_name for info in self._list(store.Location.of(self.uri))]

    def remove(self, *patterns: str) -> None:
        """Remove files, and folders with their content; links are not followed.

        Args:
            patterns: Paths in the sink; the last part may contain wildcards.
        """
        scheme = store.Location.of(self.uri).scheme
        for pattern in patterns:
            folder, _, name = pattern.rpartition("/")
            infos = self._list(store.Location.of(self.join(folder)))
            matches = [info for info in infos if fnmatch.fnmatchcase(info.base_name, name)]
            if scheme == "file":
                for info in matches:
                    _remove_local(Path(info.path))
                continue
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(self.storage.delete, self._objects(scheme, matches)))

    def clear(self, *patterns: str) -> None:
        """Remove the result that `open` found; in a sink without a state file do nothing.

        The state becomes invalid first: a run that is killed meanwhile leaves no result that looks
        complete, and the same command can continue.

        Args:
            patterns: See `remove`.
        """
        if self._state is not None:
            self.write_state({"fingerprint": "", "is_complete": False})
            self.remove(*patterns)

    def remove_leftovers(self, *folders: str) -> None:
        """Remove the temporary files of killed writers; only local sinks have such files.

        Args:
            folders: Folders of the sink to search with all folders below, besides `_cvbatch`.
        """
        location = store.Location.of(self.uri)
        if location.scheme != "file":
            return
        top = Path(location.path)
        atomic.remove_leftovers(top, ".")
        for folder in ("_cvbatch", *folders):
            for below, _, _ in os.walk(top / folder):
                atomic.remove_leftovers(Path(below), ".")

    def _list(self, location: store.Location) -> list[Any]:
        """Return the pyarrow.fs.FileInfo of each file and folder in a folder."""
        selector = pafs.FileSelector(location.path, allow_not_found=True)
        infos: list[Any] = self.storage.attempt(
            location, lambda files: files.get_file_info(selector)
        )
        return infos

    def _objects(self, scheme: str, infos: Iterable[Any]) -> Iterator[str]:
        """Yield the URIs of objects, and of all objects in folders."""
        for info in infos:
            if info.type == pafs.FileType.File:
                yield f"{scheme}://{info.path}"
            else:
                yield from self._objects(scheme, self._list(store.Location(scheme, info.path)))


def _remove_local(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
