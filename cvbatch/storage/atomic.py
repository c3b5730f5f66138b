"""Write local files atomically, and remove the temporary files of killed writers.

A writer holds a lock on its temporary file, and the system releases it when the process ends in any
way. So a process that gets the lock knows that no process writes the file; no clock, process id or
host name is compared. On a file system without locks nothing is removed.
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
    """Yield a temporary file that replaces `path` at the end of the block, if nothing is raised.

    Args:
        path: The file to write.
        prefix: First characters of the name of the temporary file.
    """
    handle, temporary = _locked(path.parent, prefix)
    try:
        with open(handle, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            yield file
            file.flush()
            Path(temporary).replace(path)  # still locked, so that no process removes it
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _locked(folder: Path, prefix: str) -> tuple[int, str]:
    """Return a new locked file and its path; start again if it is removed before the lock."""
    while True:
        handle, temporary = tempfile.mkstemp(_SUFFIX, prefix, folder)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)


def remove_leftovers(folder: Path, prefix: str) -> int:
    """Remove the temporary files of a folder that no process writes; return their number.

    Args:
        folder: Folder; it may be missing.
        prefix: Argument of `replacing`, or its first characters.
    """
    try:
        names = [entry.path for entry in os.scandir(folder) if _is_temporary(entry.name, prefix)]
    except FileNotFoundError:
        return 0
    return sum(map(_remove_if_unlocked, names))


def _is_temporary(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name.endswith(_SUFFIX)


def _remove_if_unlocked(name: str) -> bool:
    try:
        handle = os.open(name, os.O_RDONLY)
    except OSError:  # it was renamed meanwhile, or belongs to another user
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Path(name).unlink()
    except OSError:  # another process writes it, or it was renamed meanwhile
        return False
    finally:
        os.close(handle)
    return True
