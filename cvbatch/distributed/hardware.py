"""CPUs, cgroup limits, memory and GPUs of this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_NVIDIA_SMI_TIMEOUT_S = 10.0
_MIB = 1 << 20


def num_cpus() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def num_gpus(root: Path = _ROOT) -> int:
    """Return the number of GPUs that NVIDIA's driver lists."""
    gpus = root / "proc/driver/nvidia/gpus"
    return len(list(gpus.iterdir())) if gpus.is_dir() else 0


def memory_bytes(root: Path = _ROOT) -> int | None:
    """Return the available memory or the cgroup limit, whichever is less, in bytes.

    Returns:
        None if it is unknown, because the system is not Linux.
    """
    limits = [_available_bytes(root), *_cgroup_limits(root)]
    return min((size for size in limits if size is not None), default=None)


def gpu_memory_bytes() -> int | None:
    """Return the total memory of the smallest GPU, in bytes; None if nvidia-smi fails."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_NVIDIA_SMI_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_gpu_memory(process.stdout)


def parse_gpu_memory(text: str) -> int | None:
    """Return the minimum of the numbers (MiB) in the output of nvidia-smi, in bytes, or None."""
    sizes = [int(line) for line in map(str.strip, text.splitlines()) if line.isdecimal()]
    return min(sizes) * _MIB if sizes else None


def _available_bytes(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Yield the memory limits of this process' cgroups and their parents, version 1 and 2."""
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, name = (
            (mount / "memory", "memory.limit_in_bytes") if controllers else (mount, "memory.max")
        )
        group = PurePosixPath(path)
        for ancestor in (group, *group.parents):
            for limit in _lines(folder / str(ancestor).lstrip("/") / name):
                if limit.isdecimal():  # else it is "max"
                    yield int(limit)


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; [] if it does not exist."""
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
