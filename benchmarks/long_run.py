"""Benchmark of a long run: memory, file handles and threads over 100,000 tiny images.

    python -m benchmarks.long_run [--images 100000] [--json FILE]

While the job runs, the memory, open file handles and threads of its driver and of each worker are
sampled; the last tenth of the chunks is compared with the first. Memory is reported twice: resident
memory, and its anonymous part without mapped files. Proportional shares of mapped files (PSS) would
depend on other processes of the machine. Then every shard is overwritten with zeros, with the same
size and time, and the same command runs again: it must find nothing to do, and a single image that
is read would be a failed row. Exit status 1 above a limit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

GROWTH_LIMIT = 0.05
AGAIN_LIMIT_S = 10.0
SIDE_PX = 32
POOL = 1000  # different images
SHARD_ROWS, GROUP_ROWS = 5000, 500
CHUNK_IMAGES = 256
PERIOD_S = 1.0
WORKER = "ray::FusedWorker"
ELASTIC_THREADS = "event_engine"  # of gRPC in Ray: their number changes by two on a busy machine


class Sample(NamedTuple):
    """Resources of a process at one time."""

    share_done: float  # of the chunks
    resident_mib: float
    own_mib: float
    handles: int
    threads: int


def write_shards(folder: Path, num_images: int) -> list[Path]:
    rng = np.random.default_rng(0)
    pool = [_tiny_jpeg(rng) for _ in range(min(POOL, num_images))]
    folder.mkdir(parents=True)
    paths = []
    for start in range(0, num_images, SHARD_ROWS):
        numbers = range(start, min(start + SHARD_ROWS, num_images))
        images = [{"bytes": pool[i % len(pool)], "path": f"{i:07}.jpg"} for i in numbers]
        paths.append(folder / f"shard-{start:07}.parquet")
        pq.write_table(pa.table({"image": images}), paths[-1], row_group_size=GROUP_ROWS)
    return paths


def _tiny_jpeg(rng: np.random.Generator) -> bytes:
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    image = cv2.resize(coarse, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", image)[1].tobytes()


def job_file(folder: Path, num_images: int) -> Path:
    job = {
        "source": {"uri": str(folder / "in"), "format": "parquet"},
        "sink": {"uri": str(folder / "out")},
        "models": [{"task": "classification", "model": "demo_classifier", "weights": "demo"}],
        "run": {"chunk_images": CHUNK_IMAGES, "engine": "litert", "actors": 2},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))  # JSON is YAML
    return path


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "cvbatch", "predict", "--config", str(path), "--json"]


def watch(path: Path, sink: Path, num_chunks: int) -> tuple[dict[str, list[Sample]], float]:
    """Run the job; return the samples of each process by name, and the seconds of the job."""
    samples_of: dict[str, list[Sample]] = defaultdict(list)
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command(path), stdout=subprocess.DEVNULL, stderr=stderr)
        while process.poll() is None:
            done = sum(1 for _ in sink.glob("part-*.parquet")) if sink.exists() else 0
            if done:
                for name, member in _members(process.pid):
                    sample = _sample(member, done / num_chunks)
                    if sample:
                        samples_of[name].append(sample)
            time.sleep(PERIOD_S)
        if process.returncode:
            stderr.seek(0)
            raise SystemExit(stderr.read()[-2000:])
    return samples_of, time.perf_counter() - begun


def _members(pid: int) -> Iterator[tuple[str, psutil.Process]]:
    driver = psutil.Process(pid)
    yield "driver", driver
    for one in driver.children(recursive=True):
        try:
            if WORKER in " ".join(one.cmdline()):
                yield f"worker {one.pid}", one
        except psutil.Error:  # the process has just ended
            continue


def _sample(process: psutil.Process, share_done: float) -> Sample | None:
    try:
        facts = _status(process.pid)
        resident, own = (facts[name] / 1024 for name in ("VmRSS", "RssAnon"))
        return Sample(share_done, resident, own, process.num_fds(), _num_threads(process.pid))
    except (psutil.Error, OSError, KeyError):  # the process has just ended
        return None


def _num_threads(pid: int) -> int:
    names = [path.read_text().strip() for path in Path(f"/proc/{pid}/task").glob("*/comm")]
    return len([name for name in names if name != ELASTIC_THREADS])


def _status(pid: int) -> dict[str, int]:
    """Return the numbers in /proc/PID/status; memory is in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return {name: int(words[0]) for name, words in fields.items() if words and words[0].isdecimal()}


def compare(name: str, samples: list[Sample]) -> list[dict[str, Any]]:
    """Return one row per quantity: the medians of the first and the last tenth."""
    first = [one for one in samples if one.share_done <= 0.1]
    last = [one for one in samples if 0.9 < one.share_done < 1]
    rows = []
    for quantity in Sample._fields[1:]:
        before, after = (median(getattr(one, quantity) for one in part) for part in (first, last))
        rows.append(
            {
                "process": name, "quantity": quantity, "first_tenth": round(before, 1),
                "last_tenth": round(after, 1), "ratio": round(after / before, 3),
            }
        )  # fmt: skip
    return rows


def blank(paths: list[Path]) -> None:
    """Overwrite files with zeros, with the same size and time."""
    for path in paths:
        facts = path.stat()
        path.write_bytes(b"\0" * facts.st_size)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--keep", action="store_true", help="write every sample to the JSON file too"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_shards(folder / "in", arguments.images)
        path = job_file(folder, arguments.images)
        # Limits by bytes and row groups also end chunks, so their number comes from a dry run.
        planned = subprocess.run([*command(path), "--dry-run"], capture_output=True, check=True)
        num_chunks = json.loads(planned.stdout)["num_chunks"]
        samples_of, seconds = watch(path, folder / "out", num_chunks)
        blank(paths)
        begun = time.perf_counter()
        again = subprocess.run(command(path), capture_output=True, text=True, check=False)
        again_s = time.perf_counter() - begun
    rows = [row for name, samples in sorted(samples_of.items()) for row in compare(name, samples)]
    for row in rows:
        print(
            f"{row['process']:14} {row['quantity']:12} {row['first_tenth']:8} "
            f"{row['last_tenth']:8} {row['ratio']:6}"
        )
    is_idle = again.returncode == 0 and "nothing to do" in again.stderr
    print(f"{arguments.images:,} images, {num_chunks} chunks in {seconds:.0f} s")
    print(f"second run: {again_s:.1f} s, {again.stderr.strip().splitlines()[-1]}")
    if arguments.json:
        result: dict[str, Any] = {
            "images": arguments.images, "chunks": num_chunks, "seconds": round(seconds, 1),
            "again_seconds": round(again_s, 1), "rows": rows,
        }  # fmt: skip
        if arguments.keep:
            result["samples"] = dict(samples_of)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    is_flat = all(row["ratio"] <= 1 + GROWTH_LIMIT for row in rows)
    return 0 if is_flat and is_idle and again_s < AGAIN_LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
