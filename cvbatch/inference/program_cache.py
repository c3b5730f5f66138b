"""Programs that this user compiled on this machine, for every sink.

The folder is `$XDG_CACHE_HOME/cvbatch/programs`, or that in `CVBATCH_CACHE`, where `off` switches
the cache off. A program's file is named by the hash of all that determines the program, so entries
never change and several jobs may use the folder at once. Whatever fails here costs time only: the
job is informed once and compiles its models.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cvbatch.core.errors import ModelError
from cvbatch.inference.programs import BuildRequest, BuiltProgram
from cvbatch.storage.atomic import remove_leftovers, replacing

MAX_BYTES = 4 << 30  # of all files; the least recently used ones are deleted
_OFF = ("off", "0", "")
_PREFIX = ".program-"  # of temporary files


def cache_folder() -> Path | None:
    """Return the folder of the cache; None if it is switched off, or the user has no home."""
    chosen = os.environ.get("CVBATCH_CACHE")
    if chosen is not None:
        return None if chosen.lower() in _OFF else Path(chosen).expanduser() / "programs"
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the specification ignores relative ones
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "cvbatch" / "programs"


class ProgramCache:
    """The user's compiled programs.

    Args:
        inform: gets one sentence if the folder cannot be used.
        max_bytes: maximum size of all files.
    """

    def __init__(self, inform: Callable[[str], None], max_bytes: int = MAX_BYTES) -> None:
        self._inform = inform
        self._max_bytes = max_bytes
        self._folder = cache_folder()

    def read(self, request: BuildRequest) -> BuiltProgram | None:
        """Return the program of a request; None if it is not there. A damaged file is deleted."""
        path = self._path(request)
        if path is None:
            return None
        try:
            self._check_owner(path.parent)
            program = BuiltProgram.from_bytes(path.read_bytes())
            os.utime(path)
        except FileNotFoundError:
            return None
        except ModelError:
            self._inform(f"{path} is damaged: it is deleted, and the model is compiled again")
            path.unlink(missing_ok=True)
            return None
        except OSError as error:
            self._give_up(error)
            return None
        return program

    def write(self, request: BuildRequest, program: BuiltProgram) -> None:
        """Store a program, unless it is larger than half of the cache."""
        path, data = self._path(request), program.to_bytes()
        if path is None or len(data) > self._max_bytes // 2:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_owner(path.parent)
            remove_leftovers(path.parent, _PREFIX)
            self._delete_oldest(path.parent, self._max_bytes - len(data))
            with replacing(path, _PREFIX) as file:
                file.write(data)
        except OSError as error:
            self._give_up(error)

    def _path(self, request: BuildRequest) -> Path | None:
        return self._folder and self._folder / f"{request.key}.zip"

    def _check_owner(self, folder: Path) -> None:
        """Refuse a folder in which another user can put programs."""
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise PermissionError("other users can write to it")

    def _give_up(self, error: OSError) -> None:
        self._inform(
            f"the cache of compiled models {self._folder} is not used: {error.strerror or error}"
        )
        self._folder = None

    @staticmethod
    def _delete_oldest(folder: Path, max_bytes: int) -> None:
        """Delete the files that were not used for longest, until the others have `max_bytes`."""
        found = []
        for path in folder.glob("*.zip"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another job deleted it
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
