"""A write to a full or read-only local disk is an error in one line and leaves no partial file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.small_disk import needs_mounts, on_small_disk

PUT = """
import sys
from cvbatch.core.errors import StoreError
from cvbatch.storage.store import Storage
try:
    Storage().put_bytes(sys.argv[1], bytes(int(sys.argv[2])))
    print("put")
except StoreError as error:
    print(type(error).__name__, error)
"""


@needs_mounts
def test_a_full_disk_is_reported_and_has_no_partial_file(tmp_path: Path) -> None:
    (tmp_path / "put.py").write_text(PUT)
    script = f"""
put() {{ "$PYTHON" {tmp_path}/put.py "$@"; }}
put "$DISK/empty" 0
put "$DISK/first" 100000
room 200000
put "$DISK/second" 1000000
ls -A "$DISK"
mount -o remount,size=64m "$DISK"
put "$DISK/second" 1000000
mount -o remount,ro "$DISK"
put "$DISK/third" 1
ls -A "$DISK"
"""
    lines = on_small_disk(tmp_path / "disk", script).splitlines()
    second = tmp_path / "disk" / "second"
    assert lines == [
        "put",
        "put",
        f"StoreError {second} cannot be written: no space is left on its device; make room",
        "empty",
        "first",
        "put",
        f"AccessDeniedError {tmp_path / 'disk' / 'third'} cannot be written: its file system is "
        "read-only",
        "empty",
        "first",
        "second",
    ]


def test_a_file_too_large_for_the_process_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    command = [sys.executable, "-c", limited + PUT, str(tmp_path / "x"), "100001"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "larger than this process may write (ulimit -f); make room" in process.stdout
    assert list(tmp_path.iterdir()) == []
    command[-1] = "100000"
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "put\n"
