"""What files a source URI stands for, as one table, however many there are.

Names that start with `_` or `.`, and all below such folders, are not data and are left out.
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
_SPREAD_LEVELS = 3  # folders listed one by one, level for level, until there are enough to share
_HIDDEN = r"(?:^|/)[._]"

Progress = Callable[[int], None]  # called with the number of files found so far
Row = tuple[str, int, str]


class Listing(NamedTuple):
    """The files a source URI stands for."""

    base: str  # all URIs begin with it; ends with "/"
    files: pa.Table  # uri: large_string, size: int64 bytes, version: string (changes with the file)


def list_files(storage: Storage, uri: str, on_progress: Progress | None = None) -> Listing:
    """Return the files of one source URI, in no particular order.

    uri: a file, a folder (all below it), or a pattern: `*`, `?` and `[...]` stay within one name,
    `**` goes through folders, a trailing `/` means all below. A name that exists is taken
    literally, whatever signs are in it. The base is the folder, the file's folder, or what stands
    before the pattern's first wild name.

    Raises NotFoundError or AccessDeniedError, SourceError for a name that is not Unicode.
    """
    place = Location.of(uri)
    info = storage.attempt(place, lambda files: files.get_file_info(place.path))
    counter = _Counter(on_progress)
    if info.type == pafs.FileType.File:
        name = place.uri
        return Listing(name[: name.rindex("/") + 1], _table([(name, info.size, _version(info))]))
    if info.type == pafs.FileType.Directory:
        return _list_folder(storage, place, counter)
    folder, pattern = _split_pattern(uri)
    if pattern is None:
        return _list_folder(
            storage, place, counter
        )  # an object store says so only now that it is missing
    listing = _list_folder(storage, Location.of(folder), counter)
    names = pc.utf8_slice_codeunits(listing.files["uri"], len(listing.base))
    wanted = pc.match_substring_regex(names, _pattern_regex(pattern))
    return Listing(listing.base, listing.files.filter(wanted))


def _list_folder(storage: Storage, place: Location, counter: _Counter) -> Listing:
    base = place.uri.rstrip("/") + "/"
    walk = _walk_local(place) if place.scheme == "file" else _walk_remote(storage, place)
    batches = []
    for batch in walk:
        names = pc.utf8_slice_codeunits(batch["uri"], len(base))
        batches.append(batch.filter(pc.invert(pc.match_substring_regex(names, _HIDDEN))))
        counter.add(batch.num_rows)
    return Listing(base, pa.Table.from_batches(batches, FILES))


class _Counter:
    """Tells how many files were found so far."""

    def __init__(self, on_progress: Progress | None) -> None:
        self._on_progress, self._found = on_progress, 0

    def add(self, found: int) -> None:
        self._found += found
        if self._on_progress:
            self._on_progress(self._found)


def _table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_batches([_batch(rows)], FILES)


def _batch(rows: list[Row]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    try:
        return pa.record_batch(
            [pa.array(c, f.type) for c, f in zip(columns, FILES, strict=True)], schema=FILES
        )
    except UnicodeError:
        bad = next(uri for uri, _, _ in rows if _is_odd(uri))
        raise SourceError(
            f"the name of {os.fsencode(bad)!r} is not Unicode (UTF-8), which a Parquet string "
            "must be; rename the file"
        ) from None


def _is_odd(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return False


def _version(info: Any) -> str:
    return str(info.mtime_ns or 0)


def _walk_local(place: Location) -> Iterator[pa.RecordBatch]:
    """Yield what lies below a folder; links are followed, except into a folder on the way down."""
    rows: list[Row] = []
    try:
        for row in _scan(place.path):
            rows.append(row)
            if len(rows) == _BATCH_FILES:
                yield _batch(rows)
                rows = []
    except OSError as error:
        raise translate(error, error.filename or place.uri) from None
    yield _batch(rows)


def _scan(top: str) -> Iterator[Row]:
    folders: list[tuple[str, frozenset[str]]] = [(top, frozenset([os.path.realpath(top)]))]
    while folders:
        folder, above = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith((".", "_")):
                    continue
                if entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real not in above:
                        folders.append((entry.path, above | {real}))
                elif entry.is_file():
                    facts = entry.stat()
                    yield entry.path, facts.st_size, str(facts.st_mtime_ns)
                elif entry.is_symlink():  # to nothing: listed, so that it becomes a failed row
                    yield entry.path, 0, "0"


def _walk_remote(storage: Storage, place: Location) -> Iterator[pa.RecordBatch]:
    """Yield what lies below a prefix, listed by many threads at once."""
    folders = [place]
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in range(_SPREAD_LEVELS):
            level = list(
                pool.map(lambda folder: _select(storage, folder, recursive=False), folders)
            )
            below = [i for infos in level for i in infos if i.type == pafs.FileType.Directory]
            folders = [
                Location(place.scheme, info.path)
                for info in below
                if not info.base_name.startswith((".", "_"))
            ]
            for infos in level:
                yield from _batches(place.scheme, infos)
            if len(folders) >= _THREADS or not folders:
                break
        for infos in pool.map(lambda folder: _select(storage, folder, recursive=True), folders):
            yield from _batches(place.scheme, infos)


def _select(storage: Storage, folder: Location, *, recursive: bool) -> list[Any]:
    def listed(files: Any) -> list[Any]:
        return list(files.get_file_info(pafs.FileSelector(folder.path, recursive=recursive)))

    return storage.attempt(folder, listed, REQUEST_TRIES)


def _batches(scheme: str, infos: list[Any]) -> Iterator[pa.RecordBatch]:
    """Yield the files among what pyarrow listed, taking them off the end to free them."""
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
    """Return the fixed folder and the pattern below it, None where no name is wild."""
    parts = uri.split("/")
    wild = next((i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)), None)
    if wild is None:
        return uri, None
    pattern = "/".join(parts[wild:])
    return "/".join(parts[:wild]) or ("/" if wild else "."), (
        pattern + "**" if pattern.endswith("/") else pattern
    )


def _pattern_regex(pattern: str) -> str:
    """Return the regular expression (RE2) that matches a whole relative name."""
    signs = re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL)
    return "(?s)^" + "".join(_sign_regex(sign) for sign in signs) + r"\z"


def _sign_regex(sign: str) -> str:
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if sign in wild:
        return wild[sign]
    if len(sign) > 1:  # [...]
        inside = sign[1:-1]
        negated = inside.startswith("!")
        members = inside[negated:].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]")
        return f"[{'^/' if negated else ''}{members}]"
    return re.escape(sign)
