"""List the files of a URI - a file, a folder or a pattern - as an Arrow table.

Names that start with `_` or `.` and everything below such folders are not data; they are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from cvbatch.core.errors import SourceError
from cvbatch.storage.clients import REQUEST_TRIES, Location
from cvbatch.storage.retry import translate
from cvbatch.storage.store import Storage

FILES = pa.schema([("uri", pa.large_string()), ("size", pa.int64()), ("version", pa.string())])
_BATCH_FILES = 65_536
_THREADS = 16
_SPREAD_LEVELS = 3  # of folders that are listed one by one to get enough folders for the threads
_HIDDEN = r"(?:^|/)[._]"

Progress = Callable[[int], None]  # receives the number of files listed so far
Row = tuple[str, int, str]


class Listing(NamedTuple):
    """Files of a URI."""

    base: str  # common beginning of all URIs; ends with "/"
    files: pa.Table  # uri: large_string, size: int64 bytes, version: string (changes with the file)


def list_files(storage: Storage, uri: str, on_progress: Progress | None = None) -> Listing:
    """Return the files of one URI, in no particular order.

    Args:
        storage: Lists the store.
        uri: A file, a folder (with all folders below it), or a pattern: `*`, `?` and `[...]` match
            within one name, `**` matches across folders, a trailing `/` means all files below. A
            name that exists is taken literally, also with these characters.
        on_progress: Receives the number of files listed so far.

    Returns:
        The files. Their base is the folder, the folder of the file, or the part of a pattern before
        its first name with a wildcard.

    Raises:
        NotFoundError: The file or folder does not exist.
        AccessDeniedError: It may not be read.
        SourceError: A file name is not Unicode.
    """
    location = Location.of(uri)
    info = storage.attempt(location, lambda files: files.get_file_info(location.path))
    counter = _Counter(on_progress)
    if info.type == pafs.FileType.File:
        name = location.uri
        return Listing(name[: name.rindex("/") + 1], _table([(name, info.size, _version(info))]))
    if info.type == pafs.FileType.Directory:
        return _list_folder(storage, location, counter)
    folder, pattern = _split_pattern(uri)
    if pattern is None:
        # An object store has no folders: only the listing shows that it is missing.
        return _list_folder(storage, location, counter)
    listing = _list_folder(storage, Location.of(folder), counter)
    names = pc.utf8_slice_codeunits(listing.files["uri"], len(listing.base))
    is_match = pc.match_substring_regex(names, _pattern_regex(pattern))
    return Listing(listing.base, listing.files.filter(is_match))


def _list_folder(storage: Storage, location: Location, counter: _Counter) -> Listing:
    base = location.uri.rstrip("/") + "/"
    is_local = location.scheme == "file"
    batches = []
    for batch in _walk_local(location) if is_local else _walk_remote(storage, location):
        names = pc.utf8_slice_codeunits(batch["uri"], len(base))
        batches.append(batch.filter(pc.invert(pc.match_substring_regex(names, _HIDDEN))))
        counter.add(batch.num_rows)
    return Listing(base, pa.Table.from_batches(batches, FILES))


class _Counter:
    """Counts the files and reports the count."""

    def __init__(self, on_progress: Progress | None) -> None:
        self._on_progress, self._count = on_progress, 0

    def add(self, num_files: int) -> None:
        self._count += num_files
        if self._on_progress:
            self._on_progress(self._count)


def _table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_batches([_batch(rows)], FILES)


def _batch(rows: list[Row]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    try:
        return pa.record_batch(
            [pa.array(c, f.type) for c, f in zip(columns, FILES, strict=True)], schema=FILES
        )
    except UnicodeError:
        bad = next(uri for uri, _, _ in rows if not _is_unicode(uri))
        raise SourceError(
            f"the name of {os.fsencode(bad)!r} is not Unicode (UTF-8), which a Parquet string "
            "must be; rename the file"
        ) from None


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _version(info: Any) -> str:
    return str(info.mtime_ns or 0)


def _walk_local(location: Location) -> Iterator[pa.RecordBatch]:
    """Yield the files below a folder; links are followed, except to a folder that contains them."""
    rows: list[Row] = []
    try:
        for row in _scan(location.path):
            rows.append(row)
            if len(rows) == _BATCH_FILES:
                yield _batch(rows)
                rows = []
    except OSError as error:
        raise translate(error, error.filename or location.uri) from None
    yield _batch(rows)


def _scan(top: str) -> Iterator[Row]:
    folders: list[tuple[str, frozenset[str]]] = [(top, frozenset([os.path.realpath(top)]))]
    while folders:
        folder, ancestors = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith((".", "_")):
                    continue
                if entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real not in ancestors:
                        folders.append((entry.path, ancestors | {real}))
                elif entry.is_file():
                    stat = entry.stat()
                    yield entry.path, stat.st_size, str(stat.st_mtime_ns)
                elif entry.is_symlink():  # a broken link is listed, so that it becomes a failed row
                    yield entry.path, 0, "0"


def _walk_remote(storage: Storage, location: Location) -> Iterator[pa.RecordBatch]:
    """Yield the files below a prefix, listed by several threads."""
    folders = [location]
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in range(_SPREAD_LEVELS):
            level = list(
                pool.map(lambda folder: _select(storage, folder, recursive=False), folders)
            )
            subfolders = [i for infos in level for i in infos if i.type == pafs.FileType.Directory]
            folders = [
                Location(location.scheme, info.path)
                for info in subfolders
                if not info.base_name.startswith((".", "_"))
            ]
            for infos in level:
                yield from _batches(location.scheme, infos)
            if len(folders) >= _THREADS or not folders:
                break
        for infos in pool.map(lambda folder: _select(storage, folder, recursive=True), folders):
            yield from _batches(location.scheme, infos)


def _select(storage: Storage, folder: Location, *, recursive: bool) -> list[Any]:
    def list_folder(files: Any) -> list[Any]:
        return list(files.get_file_info(pafs.FileSelector(folder.path, recursive=recursive)))

    return storage.attempt(folder, list_folder, REQUEST_TRIES)


def _batches(scheme: str, infos: list[Any]) -> Iterator[pa.RecordBatch]:
    """Yield the files of a listing; entries are removed from the end of `infos` to free them."""
    while infos:
        some, infos[-_BATCH_FILES:] = infos[-_BATCH_FILES:], []
        yield _batch(
            [
                (f"{scheme}://{info.path}", info.size, _version(info))
                for info in some
                if info.type == pafs.FileType.File
            ]
        )


def _split_pattern(uri: str) -> tuple[str, str | None]:
    """Return the fixed folder and the pattern below it, None if no name has a wildcard."""
    parts = uri.split("/")
    wild = next((i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)), None)
    if wild is None:
        return uri, None
    pattern = "/".join(parts[wild:])
    return "/".join(parts[:wild]) or ("/" if wild else "."), (
        pattern + "**" if pattern.endswith("/") else pattern
    )


def _pattern_regex(pattern: str) -> str:
    """Return the regular expression (RE2) that matches a full relative name."""
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL)
    return "(?s)^" + "".join(_token_regex(token) for token in tokens) + r"\z"


def _token_regex(token: str) -> str:
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if token in wild:
        return wild[token]
    if len(token) > 1:  # [...]
        inside = token[1:-1]
        negated = inside.startswith("!")
        members = inside[negated:].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]")
        return f"[{'^/' if negated else ''}{members}]"
    return re.escape(token)
