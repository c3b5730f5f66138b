"""What this machine has for a job: cores, memory, GPUs, as its kernel and its driver say."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_ANSWER_LIMIT_S = 10.0  # of nvidia-smi
_MIB = 1 << 20


def num_cpus() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def num_gpus(root: Path = _ROOT) -> int:
    """Return how many GPUs NVIDIA's driver knows."""
    gpus = root / "proc/driver/nvidia/gpus"
    return len(list(gpus.iterdir())) if gpus.is_dir() else 0


def memory_bytes(root: Path = _ROOT) -> int | None:
    """Return the memory that is free to take, or what the container may have where that is less.

    None where the kernel does not tell (it is not Linux).
    """
    said = [_available_bytes(root), *_cgroup_limits(root)]
    return min((size for size in said if size is not None), default=None)


def gpu_memory_bytes() -> int | None:
    """Return the whole memory of the smallest GPU here; None where nvidia-smi does not answer."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_ANSWER_LIMIT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_gpu_memory(said.stdout)


def parse_gpu_memory(text: str) -> int | None:
    """Return the least of the numbers of MiB that nvidia-smi printed, in bytes; None for none."""
    sizes = [int(line) for line in map(str.strip, text.splitlines()) if line.isdecimal()]
    return min(sizes) * _MIB if sizes else None


def _available_bytes(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        name, _, said = line.partition(":")
        if name == "MemAvailable":
            return int(said.split()[0]) * 1024
    return None


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Yield the limits on this process' groups and on those they lie in, of either version."""
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, name = (
            (mount / "memory", "memory.limit_in_bytes") if controllers else (mount, "memory.max")
        )
        group = PurePosixPath(path)
        for place in (group, *group.parents):
            for said in _lines(folder / str(place).lstrip("/") / name):
                if said.isdecimal():  # the other word is "max"
                    yield int(said)


def _lines(path: Path) -> list[str]:
    """Return a file's lines; none where there is no such file."""
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
