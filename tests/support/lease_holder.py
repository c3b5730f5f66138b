"""A second process that has the lease of a sink, with a heartbeat every tenth of a second."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvbatch.core.errors import CvbatchError
from cvbatch.storage.lease import Clock, Holder, Lease
from cvbatch.storage.store import Storage
from tests.support.waiting import until

HEARTBEAT_S = 0.1
# A run on another machine, so that this machine cannot know whether it has ended.
FAR = Holder("far.example", "another boot", 7, "1", "2026-01-01T00:00:00+00:00", "abc", 3)


class FastClock(Clock):
    """The real clock, with frequent heartbeats."""

    def repeat(self, action, interval_s):
        return super().repeat(action, HEARTBEAT_S)


def tree(folder: Path) -> dict[str, bytes]:
    """Return the files below a sink, name → bytes, without the lease and its temporary files."""
    paths = [path for path in folder.rglob("*") if "lease.json" not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


@contextmanager
def lease_holder(sink: Path | str) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that has the lease of a sink until it is killed."""
    command = [sys.executable, "-m", "tests.support.lease_holder", str(sink)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "acquired\n"
            yield process
        finally:
            process.kill()


if __name__ == "__main__":
    with Lease(Storage(), sys.argv[1], print, FastClock()) as lease:
        lease.acquire()
        print("acquired", flush=True)
        if sys.stdin.read():  # the test takes the lease away
            try:
                until(lambda: lease.check() is not None, "the loss of the lease")
            except CvbatchError as error:
                print(error, flush=True)
