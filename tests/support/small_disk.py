"""A small file system for tests, mounted in a separate mount namespace."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def can_mount() -> bool:
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_mounts = pytest.mark.skipif(
    not can_mount(), reason="users may not mount file systems on this machine (unshare -Urm)"
)


def on_small_disk(folder: Path, script: str, env: Mapping[str, str] | None = None) -> str:
    """Run a shell script where `folder` is a file system of 64 MiB; return its stdout.

    Variables: `$DISK` is the folder, `$PYTHON` the interpreter. `room BYTES` sets the free space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head = f"""
set -e
DISK={shlex.quote(str(folder))}
PYTHON={shlex.quote(sys.executable)}
mount -t tmpfs -o size=64m none "$DISK"
room() {{
    used=$(df --output=used --block-size=1 "$DISK" | tail -1)
    mount -o remount,size=$((used + $1)) "$DISK"
}}
"""
    command = ["unshare", "-Urm", "bash", "-c", head + script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout
