"""Run the whole prediction benchmark and compare it with the targets.

Run: python -m benchmarks.run [--json FILE] [--folder DIR] [--repeats N] [--only PART] [--quick]
In every round each job runs once, one after the other, each as a separate process; ratios are
computed within a round and the median is reported. On a machine with more cores two are used.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bars import Run, all_bars, bar_table, rate_table
from benchmarks.measure import JobFailedError, run_module
from benchmarks.settings import CORES

PACKAGES = (
    "ray", "tensorflow", "keras", "ai-edge-litert", "daft", "pyarrow", "numpy",
    "opencv-python-headless", "pillow",
)  # fmt: skip
TIMEOUT_S = 600.0
NOTES = (
    "Daft runs the model frozen to constants, plain Daft as a tf.function, as usually written;",
    "Daft, tf.data and Ray Data's recipe run the forward pass only, without a heatmap;",
    "cvbatch's classification also computes and writes the heatmap, except in 'no heatmap'.",
)


@dataclass(frozen=True)
class Scale:
    """Numbers of images, chunks and rounds."""

    images: int = 1000
    chunk: int = 100
    three_images: int = 400  # of the three tasks
    three_chunk: int = 50
    many: int = 10_000
    taken: int = 20  # images of the textbook loop
    limit_s: float = 5.0
    gradcam_rounds: int = 40
    large_rounds: int = 7


QUICK = Scale(
    images=120, chunk=20, three_images=80, three_chunk=10, many=240, taken=3, limit_s=1.0,
    gradcam_rounds=4, large_rounds=1,
)  # fmt: skip


class Bench:
    """The runs so far; adds further runs."""

    def __init__(self, folder: Path, scale: Scale, repeats: int) -> None:
        self.scale = scale
        self.repeats = repeats
        self.runs: dict[str, list[Run]] = {}
        self.failed: list[str] = []
        self._folder = folder
        self._scratch = folder / f"run-{os.getpid()}"

    def make_inputs(self) -> None:
        """Create missing shards and networks."""
        scale = self.scale
        sizes = [str(n) for n in (scale.images, scale.three_images, scale.many)]
        _log("creating inputs")
        arguments = ["--folder", str(self._folder), "--images", *sizes]
        run_module("benchmarks.work", arguments, TIMEOUT_S)

    def add(
        self, job: str, module: str, arguments: Sequence[object], round_: int, has_out: bool = True
    ) -> None:
        """Run a job once and store its values; after a failure the benchmark continues."""
        out = self._scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        command = ["--folder", str(self._folder), *map(str, arguments)]
        if has_out:
            command += ["--out", str(out)]
        try:
            outcome = run_module(f"benchmarks.{module}", command, TIMEOUT_S)
        except JobFailedError as error:
            self.failed.append(f"{job}, round {round_}")
            _log(f"{job} FAILED\n{error}")
            return
        run = {
            "round": round_, "seconds": outcome.seconds, "peak_mib": outcome.peak_mib,
            **outcome.summary,
        }  # fmt: skip
        self.runs.setdefault(job, []).append(run)
        steady = f", {run['steady']:.1f} images/s steady" if "steady" in run else ""
        _log(f"{job}: {run['seconds']:.1f} s, {run['peak_mib']:.0f} MiB{steady}")

    def ours(self, work: str, images: int, chunk: int, round_: int, job: str = "") -> None:
        """Run cvbatch on a workload."""
        arguments = ("--work", work, "--images", images, "--chunk", chunk)
        self.add(job or f"cvbatch, {work}", "cvbatch_job", arguments, round_)

    def limit(self, work: str, images: int, round_: int) -> None:
        """Measure the limit of a workload; its programs are compiled in the first round only."""
        programs = self._scratch / "programs"
        arguments = (
            "--programs", programs, "--work", work, "--images", images,
            "--seconds", self.scale.limit_s,
        )  # fmt: skip
        self.add(f"limit, {work}", "limit", arguments, round_, has_out=False)

    def clear(self) -> None:
        """Remove the output of the runs."""
        shutil.rmtree(self._scratch, ignore_errors=True)


def _log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def throughput(bench: Bench) -> None:
    """Measure both workloads and all peers, in rounds."""
    scale = bench.scale
    for i in range(bench.repeats):
        _log(f"round {i + 1} of {bench.repeats}")
        bench.limit("classification", scale.images, i)
        bench.ours("classification", scale.images, scale.chunk, i)
        bench.add("Daft", "daft_job", ("--images", scale.images), i)
        bench.add("plain Daft", "daft_job", ("--images", scale.images, "--plain"), i)
        bench.add("Ray Data's recipe", "ray_recipe_job", ("--images", scale.images), i)
        bench.add("tf.data + model.predict", "tfdata_job", ("--images", scale.images), i)
        bench.limit("three tasks", scale.three_images, i)
        bench.ours("three tasks", scale.three_images, scale.three_chunk, i)
    bench.ours("classification, no heatmap", scale.images, scale.chunk, 0)


def memory(bench: Bench) -> None:
    """Measure peak memory with ten times the images."""
    scale = bench.scale
    ours = "cvbatch, classification"
    if ours not in bench.runs:
        bench.ours("classification", scale.images, scale.chunk, 0)
    bench.ours("classification", scale.many, scale.chunk, 0, f"{ours}, many")


def gradcam(bench: Bench) -> None:
    """Measure the cost of a heatmap."""
    rounds = ("--rounds", bench.scale.gradcam_rounds)
    bench.add("Grad-CAM, in the graph", "gradcam_bench", rounds, 0, has_out=False)
    arguments = ("--images", bench.scale.images, "--take", bench.scale.taken, "--heatmaps-only")
    bench.add("Grad-CAM, textbook loop", "textbook_loop", arguments, 0)


def textbook(bench: Bench) -> None:
    """Measure the textbook loop: three tasks, one image at a time."""
    arguments = ("--images", bench.scale.three_images, "--take", bench.scale.taken)
    bench.add("textbook loop, three tasks", "textbook_loop", arguments, 0)


def large_jpeg(bench: Bench) -> None:
    """Measure reduced and full decode of 12-megapixel JPEGs."""
    rounds = ("--rounds", bench.scale.large_rounds)
    bench.add("large JPEG", "large_jpeg", rounds, 0, has_out=False)


PARTS: dict[str, Callable[[Bench], None]] = {
    "throughput": throughput,
    "memory": memory,
    "gradcam": gradcam,
    "textbook": textbook,
    "large_jpeg": large_jpeg,
}


def machine(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Return processor, memory, load and versions of this machine."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "cores_used": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the values of every run to this file")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build/bench"),
        help="for shards and networks; default: %(default)s",
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds, default: %(default)s")
    parser.add_argument("--only", choices=PARTS, help="run one part")
    parser.add_argument(
        "--quick", action="store_true", help="run everything on a few images, as a check"
    )
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    facts = {"when": datetime.now(UTC).isoformat(timespec="seconds"), **machine()}
    begun = time.perf_counter()
    scale, repeats = (QUICK, 1) if arguments.quick else (Scale(), arguments.repeats)
    bench = Bench(arguments.folder.resolve(), scale, repeats)
    try:
        bench.make_inputs()
        for part in [arguments.only] if arguments.only else PARTS:
            PARTS[part](bench)
    finally:
        bench.clear()
    bars = all_bars(bench.runs)
    print(f"{facts['cpu']}, {facts['cores_used']} of {facts['cores']} cores, "
          f"{facts['memory_gib']} GiB, load before {facts['load_before']:.1f}; "
          f"{repeats} rounds in {(time.perf_counter() - begun) / 60:.0f} min")  # fmt: skip
    print("\n".join(["", *rate_table(bench.runs), "", *bar_table(bars), "", *NOTES]))
    if arguments.json:
        document = {
            "machine": facts,
            "scale": vars(scale) | {"repeats": repeats, "is_quick": arguments.quick},
            "runs": bench.runs,
            "failed": bench.failed,
            "bars": [bar.as_json() for bar in bars],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if bench.failed:
        raise SystemExit(f"failed: {'; '.join(bench.failed)}")


if __name__ == "__main__":
    main()
