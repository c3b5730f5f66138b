"""Walk a local folder: each real folder once, and nothing in it ends the listing.

A folder that is reachable by its own path and by symbolic links is listed by its own path. A link
to a folder outside is followed, the first one in the order of names, if several lead there.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from typing import NamedTuple

from cvbatch.storage.junk import JUNK, is_junk
from cvbatch.storage.retry import translate

UNREADABLE_FOLDER = "unreadable_folder"
REPEATED_FOLDER = "repeated_folder"  # listed already by its own path, or by another link
SPECIAL_FILE = "special_file"  # a pipe, a socket or a device

Row = tuple[str, int, str]  # path, size in bytes, version


class Skipped(NamedTuple):
    """A file or folder that is not listed; a folder's path ends with "/"."""

    uri: str
    kind: str


class FolderWalk:
    """Yields the files below a folder; `skipped` has what it left out so far.

    A file that cannot be inspected - a dangling link, a circle of links, a file that was deleted
    meanwhile - is yielded with size 0 and version "0", so that it becomes a failed row.
    """

    def __init__(self, top: str) -> None:
        self.skipped: list[Skipped] = []
        self._top = top
        self._visited: set[tuple[int, int]] = set()
        self._folders = [top]
        self._links: list[str] = []  # to folders; a heap, followed after all real folders

    def __iter__(self) -> Iterator[Row]:
        """Yield every file once.

        Raises:
            StoreError: The folder itself cannot be read.
        """
        while self._folders or self._links:
            folder = self._folders.pop() if self._folders else heapq.heappop(self._links)
            try:
                if not self._is_new(folder):
                    self.skipped.append(Skipped(f"{folder}/", REPEATED_FOLDER))
                    continue
                with os.scandir(folder) as entries:
                    for entry in entries:
                        yield from self._of_entry(entry)
            except OSError as error:
                if folder == self._top:
                    raise translate(error, error.filename or folder) from None
                self.skipped.append(Skipped(f"{folder}/", UNREADABLE_FOLDER))

    def _is_new(self, folder: str) -> bool:
        stat = os.stat(folder)  # noqa: PTH116  # a Path per folder costs more than the call
        identity = (stat.st_dev, stat.st_ino)
        if identity in self._visited:
            return False
        self._visited.add(identity)
        return True

    def _of_entry(self, entry: os.DirEntry[str]) -> Iterator[Row]:
        """Yield a file; remember a folder for later."""
        try:
            is_folder = entry.is_dir()
            if is_folder and is_junk(entry.name):  # junk files are found in batches, much faster
                self.skipped.append(Skipped(f"{entry.path}/", JUNK))
            elif is_folder and entry.is_symlink():
                heapq.heappush(self._links, entry.path)
            elif is_folder:
                self._folders.append(entry.path)
            elif entry.is_file() or entry.is_symlink():
                stat = entry.stat()
                yield entry.path, stat.st_size, str(stat.st_mtime_ns)
            else:
                self.skipped.append(Skipped(entry.path, SPECIAL_FILE))
        except OSError:
            yield entry.path, 0, "0"
