"""List the files of a URI - a file, a folder or a pattern - as an Arrow table.

Names that are known to be no data (`cvbatch.storage.junk`) are skipped, and so is everything below
such folders; what is skipped is listed with its kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from cvbatch.core.errors import NotFoundError, SourceError
from cvbatch.storage import junk
from cvbatch.storage.clients import REQUEST_TRIES, Location
from cvbatch.storage.junk import JUNK
from cvbatch.storage.local_walk import FolderWalk, Row, Skipped
from cvbatch.storage.odd_keys import ODD_NAMES, UNREADABLE_KEY, KeyFile, is_odd
from cvbatch.storage.patterns import (
    expand_braces,
    has_wildcard,
    pattern_regex,
    split_pattern,
)
from cvbatch.storage.store import Storage, missing_path

FILES = pa.schema([("uri", pa.large_string()), ("size", pa.int64()), ("version", pa.string())])
SKIPPED = pa.schema([("uri", pa.large_string()), ("kind", pa.string())])
_BATCH_FILES = 65_536
_THREADS = 16
_SPREAD_LEVELS = 3  # of folders that are listed one by one to get enough folders for the threads

Progress = Callable[[int], None]  # receives the number of files listed so far


class Listing(NamedTuple):
    """Files of a URI."""

    base: str  # common beginning of all URIs; ends with "/"
    files: pa.Table  # uri: large_string, size: int64 bytes, version: string (changes with the file)
    skipped: pa.Table = SKIPPED.empty_table()  # files and folders (with "/" at the end), and kinds


def list_files(storage: Storage, uri: str, on_progress: Progress | None = None) -> Listing:
    """Return the files of one URI, in no particular order.

    Args:
        storage: Lists the store.
        uri: A file, a folder (with all folders below it), or a pattern: `*`, `?` and `[...]` match
            within one name, `**` matches across folders, a trailing `/` means all files below;
            `{a,b}` and `{000..127}` stand for several names. A name that exists is taken
            literally, also with these characters.
        on_progress: Receives the number of files listed so far.

    Returns:
        The files. Their base is the folder, the folder of the file, or the part of a pattern before
        its first name with a wildcard.

    Raises:
        NotFoundError: The file or folder does not exist, or a name that braces stand for.
        AccessDeniedError: It may not be read.
        SourceError: A file name is not Unicode.
    """
    location = Location.of(uri)
    if location.scheme == "s3" and is_odd(location):
        return _odd_key(storage, location)
    info = storage.attempt(location, lambda files: files.get_file_info(location.path))
    counter = _Counter(on_progress)
    if info.type == pafs.FileType.File:
        name = location.uri
        return Listing(name[: name.rindex("/") + 1], _table([(name, info.size, _version(info))]))
    if info.type == pafs.FileType.Directory:
        return _list_folder(storage, location, counter)
    folder, pattern = split_pattern(uri)
    if message := missing_path(uri if pattern is None else folder):
        raise NotFoundError(message)
    if pattern is None:
        # An object store has no folders: only the listing shows that it is missing.
        return _list_folder(storage, location, counter)
    return _matching(_list_folder(storage, Location.of(folder), counter), uri, pattern)


def _odd_key(storage: Storage, location: Location) -> Listing:
    """Return one object whose key is no path."""
    timeout_s = storage.policy.request_timeout_s
    file = storage.attempt(location, lambda _: KeyFile(location, timeout_s))
    name = location.uri
    row = (name, file.size(), file.version)
    return Listing(name[: name.rindex("/") + 1], _table([row]))


def _matching(listing: Listing, uri: str, pattern: str) -> Listing:
    """Return the files that match a pattern; all junk folders, and the junk files that match."""
    alternatives = expand_braces(pattern)
    listed = pa.concat_arrays(
        [
            pc.utf8_slice_codeunits(table["uri"].combine_chunks(), len(listing.base))
            for table in (listing.files, listing.skipped)
        ]
    )
    is_match = pc.is_in(listed, pa.array(alternatives, pa.large_string()))
    wild = [alternative for alternative in alternatives if has_wildcard(alternative)]
    present = pc.is_in(pa.array(alternatives, pa.large_string()), listed).to_pylist()
    missing = [a for a, is_listed in zip(alternatives, present, strict=True) if not is_listed]
    for alternative in wild:
        matches = pc.match_substring_regex(listed, pattern_regex(alternative))
        is_match = pc.or_(is_match, matches)
        if len(alternatives) == 1 or pc.any(matches, min_count=0).as_py():
            missing.remove(alternative)
    if missing:
        raise NotFoundError(
            f"{uri} stands for {len(alternatives):,} names, {len(missing):,} of which match no "
            f"file, such as {missing[0]}; correct the braces"
        )
    num_files = listing.files.num_rows
    is_folder = pc.ends_with(listing.skipped["uri"], "/")
    return Listing(
        listing.base,
        listing.files.filter(is_match[:num_files]),
        listing.skipped.filter(pc.or_(is_match[num_files:], is_folder)),
    )


def _list_folder(storage: Storage, location: Location, counter: _Counter) -> Listing:
    base = location.uri.rstrip("/") + "/"
    skipped: list[Skipped] = []
    is_local = location.scheme == "file"
    walk = _walk_local(location, skipped) if is_local else _walk_remote(storage, location, skipped)
    batches, junk_names = [], []
    for batch in walk:
        names = pc.utf8_slice_codeunits(batch["uri"], len(base))
        are_junk = junk.are_junk(names)
        if pc.any(are_junk, min_count=0).as_py():
            junk_names.append(junk.outermost(names.filter(are_junk)))
            batch = batch.filter(pc.invert(are_junk))  # releases the complete one
        batches.append(batch)
        counter.add(batch.num_rows)
    files = pa.Table.from_batches(batches, FILES)
    return Listing(base, files, _skipped_table(base, skipped, junk_names))


def _skipped_table(base: str, skipped: list[Skipped], junk_names: list[pa.Array]) -> pa.Table:
    """Return what is not listed, in the order of URIs, each once.

    Args:
        base: Of the listing.
        skipped: Files and folders that the walk left out.
        junk_names: Paths below the base.
    """
    names = pa.chunked_array(junk_names, pa.large_string()).combine_chunks()
    folder, empty = (pa.scalar(text, pa.large_string()) for text in (base, ""))
    of_files = pa.table(
        [
            pc.binary_join_element_wise(folder, names, empty),
            pa.repeat(pa.scalar(JUNK, pa.string()), len(names)),
        ],
        schema=SKIPPED,
    )
    rows = [skip._asdict() for skip in skipped if _is_unicode(skip.uri)]
    of_walk = pa.Table.from_pylist(rows, SKIPPED)
    table = pa.concat_tables([of_files, of_walk])
    return table.group_by(["uri", "kind"]).aggregate([]).sort_by("uri")


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


def _walk_local(location: Location, skipped: list[Skipped]) -> Iterator[pa.RecordBatch]:
    """Yield the files below a folder; adds what is left out to `skipped`."""
    walk = FolderWalk(location.path)
    rows: list[Row] = []
    for row in walk:
        rows.append(row)
        if len(rows) == _BATCH_FILES:
            yield _batch(rows)
            rows = []
    yield _batch(rows)
    skipped += walk.skipped


def _walk_remote(
    storage: Storage, location: Location, skipped: list[Skipped]
) -> Iterator[pa.RecordBatch]:
    """Yield the files below a prefix, listed by several threads; adds junk folders to `skipped`."""
    folders, complete = [location], []
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in range(_SPREAD_LEVELS):
            level = list(
                pool.map(lambda folder: _select(storage, folder, recursive=False), folders)
            )
            subfolders = []
            for folder, infos in zip(folders, level, strict=True):
                below = [info for info in infos if info.type == pafs.FileType.Directory]
                if any(info.path.rpartition("/")[2] in ODD_NAMES for info in below):
                    # Selecting such a folder would list others again: the whole prefix at once.
                    complete.append(folder)
                    continue
                subfolders += below
                yield from _batches(location.scheme, infos, skipped)
            folders = []
            for info in subfolders:
                folder = Location(location.scheme, info.path)
                if junk.is_junk(info.base_name):
                    skipped.append(Skipped(f"{folder.uri}/", JUNK))
                else:
                    folders.append(folder)
            if len(folders) >= _THREADS or not folders:
                break
        for infos in pool.map(
            lambda folder: _select(storage, folder, recursive=True), complete + folders
        ):
            yield from _batches(location.scheme, infos, skipped)


def _select(storage: Storage, folder: Location, *, recursive: bool) -> list[Any]:
    def list_folder(files: Any) -> list[Any]:
        return list(files.get_file_info(pafs.FileSelector(folder.path, recursive=recursive)))

    return storage.attempt(folder, list_folder, REQUEST_TRIES)


def _batches(scheme: str, infos: list[Any], skipped: list[Skipped]) -> Iterator[pa.RecordBatch]:
    """Yield the files of a listing; entries are removed from the end of `infos` to free them."""
    while infos:
        some, infos[-_BATCH_FILES:] = infos[-_BATCH_FILES:], []
        batch = _batch(
            [
                (f"{scheme}://{info.path}", info.size, _version(info))
                for info in some
                if info.type == pafs.FileType.File
            ]
        )
        if scheme != "s3":  # only boto3 reads keys that are no paths
            are_odd = pc.match_substring_regex(batch["uri"], r"[^:/]/\.{0,2}(?:/|$)")
            odd = batch["uri"].filter(are_odd).to_pylist()
            skipped += [Skipped(uri, UNREADABLE_KEY) for uri in odd]
            batch = batch.filter(pc.invert(are_odd))
        yield batch
