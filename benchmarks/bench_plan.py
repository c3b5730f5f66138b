"""Benchmark of planning 1,000,000 files: seconds and memory of the first and a second plan.

    python benchmarks/bench_plan.py [--names 1000000] [--json FILE]

The listing is synthetic; all other code is that of the job. Each plan runs in a separate process,
so that peak memory is measured separately. Exit status 1 above a limit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from cvbatch.planning.plan import make_plan
from cvbatch.sources import discovery
from cvbatch.storage.listing import FILES, Listing
from cvbatch.storage.store import Storage

LIMIT_S = 20.0
LIMIT_MIB = 1024.0
BASE = "s3://archive/2026/"


class Source:
    uri = (BASE,)
    format = "auto"
    image_column = "image"


def synthetic_listing(num_names: int) -> Listing:
    """Return names as in a camera archive, shuffled."""
    rng = np.random.default_rng(0)
    order = rng.permutation(num_names)
    folders = [f"{BASE}camera-{i:03d}/2026-{i % 12 + 1:02d}/" for i in range(500)]
    batches = []
    for part in np.array_split(order, max(1, num_names // 65_536)):
        uris = [f"{folders[i % 500]}IMG_{i:09d}_4032x3024.jpeg" for i in part.tolist()]
        sizes = rng.integers(50_000, 5_000_000, len(part))
        versions = [str(1_790_000_000_000_000_000 + i) for i in part.tolist()]
        batches.append(pa.record_batch([uris, sizes, versions], FILES.names).cast(FILES))
    return Listing(BASE, pa.Table.from_batches(batches, FILES))


def plan_once(num_names: int, sink: str, answers: Any) -> None:
    listings = [synthetic_listing(num_names)]  # popped, so that the plan owns it as in the job
    at_start = peak_mib()
    with mock.patch.object(discovery, "list_files", lambda *_: listings.pop()):
        started = time.perf_counter()
        plan = make_plan(Storage(), Source, sink, 512, 256 << 20)
        planned = time.perf_counter()
        plan.commit()
    answers.put(
        {
            "plan_s": planned - started,
            "commit_s": time.perf_counter() - planned,
            "listing_mib": at_start,
            "peak_mib": peak_mib(),
            "num_chunks": len(plan.chunks),
            "num_new": plan.num_new,
        }
    )


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    runs = {}
    with tempfile.TemporaryDirectory() as sink:
        for name in ("first", "again"):
            answers = context.Queue()
            process = context.Process(target=plan_once, args=(arguments.names, sink, answers))
            process.start()
            runs[name] = answers.get()
            process.join()
        manifest_mib = sum(f.stat().st_size for f in Path(sink).rglob("*.parquet")) / 2**20
    print(f"{arguments.names:,} names; limits {LIMIT_S:.0f} s and {LIMIT_MIB:.0f} MiB")
    for name, run in runs.items():
        print(
            f"{name:>6}: plan {run['plan_s']:.1f} s, commit {run['commit_s']:.1f} s, peak "
            f"{run['peak_mib']:.0f} MiB (listing alone {run['listing_mib']:.0f} MiB), "
            f"{run['num_chunks']:,} chunks, {run['num_new']:,} new"
        )
    print(f"manifest {manifest_mib:.1f} MiB")
    if arguments.json:
        summary = {"names": arguments.names, "manifest_mib": manifest_mib, "runs": runs}
        arguments.json.write_text(json.dumps(summary, indent=2) + "\n")
    slow = any(run["plan_s"] + run["commit_s"] > LIMIT_S for run in runs.values())
    return int(slow or any(run["peak_mib"] > LIMIT_MIB for run in runs.values()))


if __name__ == "__main__":
    sys.exit(main())
