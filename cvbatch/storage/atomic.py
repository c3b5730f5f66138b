"""Local files that come whole or not at all, and an end to what killed writers leave behind.

A writer holds a lock on its temporary file, and the system lets go of it when the process ends,
however it ends. So whoever gets the lock knows that nobody writes there any more: no clock, no
process number and no host is compared. Where a file system has no locks nothing is removed.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path, prefix: str) -> Iterator[IO[bytes]]:
    """Yield a file that takes the place of `path` when the block ends well, and is gone if not."""
    handle, temporary = _locked(path.parent, prefix)
    try:
        with open(handle, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            yield file
            file.flush()
            Path(temporary).replace(path)  # while it is locked: nobody takes it for a leftover
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _locked(folder: Path, prefix: str) -> tuple[int, str]:
    """Return a new file, open and locked: another one where somebody came before the lock."""
    while True:
        handle, temporary = tempfile.mkstemp(_SUFFIX, prefix, folder)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)


def remove_leftovers(folder: Path, prefix: str) -> int:
    """Remove a folder's temporary files that no living process writes; return how many.

    prefix: as they were given to `replacing`, or the beginning of it.
    """
    try:
        names = [entry.path for entry in os.scandir(folder) if _is_temporary(entry.name, prefix)]
    except FileNotFoundError:
        return 0
    return sum(map(_removed, names))


def _is_temporary(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name.endswith(_SUFFIX)


def _removed(name: str) -> bool:
    try:
        handle = os.open(name, os.O_RDONLY)
    except OSError:  # it has just got its real name, or is another user's
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Path(name).unlink()
    except OSError:  # somebody writes there, or it is in its place by now
        return False
    finally:
        os.close(handle)
    return True
