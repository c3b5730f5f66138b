"""Benchmark of planning: how time and memory grow with the images, extrapolated to 10⁹ images.

    python -m benchmarks.scale [--json FILE] [--quick]

Two archives of the same images: one file per image, or 10,000 images per Parquet shard. Listings
and footers are synthetic; all other code is the job's own planning, into a local sink: a first
plan, the write of its manifest, and the plan of a later run that finds every part file. Each plan
runs in a separate process, so that peak memory is measured separately; seconds are CPU seconds. The
cost of one more image is the slope between the two largest sizes; larger archives are extrapolated
with it. The time of the store for listing and footers is the number of requests, divided by
THREADS, times REQUEST_S, which is an assumption.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa

from benchmarks.bench_plan import BASE, peak_mib, synthetic_listing
from cvbatch.planning import part_files
from cvbatch.planning.plan import make_plan
from cvbatch.sources import discovery, units
from cvbatch.storage.listing import FILES, Listing, list_files
from cvbatch.storage.store import Storage

CHUNK_IMAGES = 512  # the default
CHUNK_BYTES = 1 << 40  # no limit here: 512 small images are below the default
SHARD_IMAGES, GROUP_IMAGES = 10_000, 1_000
IMAGE_BYTES = 150_000
SIZES = {
    "files": (10_000, 100_000, 1_000_000),
    "shards": (1_000_000, 10_000_000, 100_000_000),
}
ASKED = (100_000_000, 1_000_000_000)
GROWING = ("plan_s", "commit_s", "again_s", "plan_mib", "again_mib", "manifest_mib", "num_chunks")
REQUEST_S, THREADS = 0.1, 16  # an assumption, see above; threads of the job
LIST_NAMES = 1000  # names per response, by S3's protocol
SMALLEST = 0.05  # seconds or MiB: less is noise
FOOTER_REQUESTS = 2  # the size of a shard, and its end
FOLDER_FILES = 20_000  # listed from disk, to measure the cost of reading names


class Source(NamedTuple):
    uri: Sequence[str]
    format: str
    image_column: str = "image"


def listing(kind: str, num_images: int) -> Listing:
    """Return the listing of a synthetic archive."""
    if kind == "files":
        return synthetic_listing(num_images)
    number = np.arange(num_images // SHARD_IMAGES)
    uris = [f"{BASE}2026/shard-{i:07d}-of-{len(number):07d}.parquet" for i in number.tolist()]
    sizes = np.full(len(number), SHARD_IMAGES * IMAGE_BYTES)
    versions = [str(1_790_000_000_000_000_000 + i) for i in number.tolist()]
    return Listing(BASE, pa.table([uris, sizes, versions], FILES.names).cast(FILES))


def footer(uri: str, image_column: str) -> list[tuple[int, int]]:
    """Return (rows, bytes) of each row group of a shard, as its footer would."""
    return [(GROUP_IMAGES, GROUP_IMAGES * IMAGE_BYTES)] * (SHARD_IMAGES // GROUP_IMAGES)


def plan_once(kind: str, num_images: int, folder: str, answers: Any) -> None:
    listings = [listing(kind, num_images)]  # popped, so that the plan owns it as in the job
    source = Source((BASE,), "images" if kind == "files" else "parquet")
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(discovery, "list_files", lambda *_: listings.pop()))
        stack.enter_context(mock.patch.object(units, "_row_groups", footer))
        started = time.process_time()  # CPU time of all threads, independent of other processes
        plan = make_plan(Storage(), source, folder, CHUNK_IMAGES, CHUNK_BYTES)
        planned = time.process_time()
        num_left = len(plan.pending)
        plan.commit()
    answers.put(
        {
            "plan_s": planned - started,
            "commit_s": time.process_time() - planned,
            "mib": peak_mib(),
            "num_chunks": len(plan.chunks),
            "num_left": num_left,
            "names": [part_files.part_name(ref.chunk_id) for ref in plan.pending],
        }
    )


def in_its_own_process(kind: str, num_images: int, folder: str) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=plan_once, args=(kind, num_images, folder, answers))
    process.start()
    values: dict[str, Any] = answers.get(timeout=600)
    process.join()
    return values


def measure(kind: str, num_images: int) -> dict[str, float]:
    """Return the cost of the first plan of an archive, and of a plan with all chunks done."""
    with tempfile.TemporaryDirectory() as folder:
        first = in_its_own_process(kind, num_images, folder)
        manifest = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
        for name in first["names"]:
            (Path(folder) / name).touch()
        again = in_its_own_process(kind, num_images, folder)
    if again["num_left"]:
        raise RuntimeError(f"{kind}: {again['num_left']} chunks were planned differently")
    return {
        "num_images": num_images,
        "plan_s": first["plan_s"],
        "commit_s": first["commit_s"],
        "again_s": again["plan_s"],
        "plan_mib": first["mib"],
        "again_mib": again["mib"],
        "manifest_mib": manifest / 2**20,
        "num_chunks": first["num_chunks"],
    }


def slope(runs: Sequence[dict[str, float]], name: str) -> float:
    """Return the cost of one more image, between the two largest runs."""
    before, last = runs[-2:]
    return (last[name] - before[name]) / (last["num_images"] - before["num_images"])


def power(runs: Sequence[dict[str, float]], name: str) -> float | None:
    """Return the exponent with which a cost grows with the images; None if it is too small.

    It is computed from the two largest runs. The fixed cost (the process itself) is that of the
    smallest run minus the part of its images.
    """
    least, before, last = runs[0], runs[-2], runs[-1]
    if before[name] < SMALLEST:
        return None
    fixed = max(0.0, least[name] - slope(runs, name) * least["num_images"])
    if last[name] <= fixed:  # noise in small runs
        return None
    times = (last[name] - fixed) / max(before[name] - fixed, SMALLEST)
    return math.log(times) / math.log(last["num_images"] / before["num_images"])


def extrapolated(runs: Sequence[dict[str, float]], num_images: int) -> dict[str, float]:
    """Return the values of an archive of `num_images`, on the line through the last two runs."""
    last = runs[-1]
    more = num_images - last["num_images"]
    figures = {name: last[name] + slope(runs, name) * more for name in GROWING}
    return {"num_images": num_images, **figures}


def further(runs: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Return the values of the requested archives that are too large to measure."""
    return [extrapolated(runs, number) for number in ASKED if number > runs[-1]["num_images"]]


def store_s(kind: str, num_images: float) -> float:
    """Return the seconds of a store to list an archive and return its footers."""
    num_names = num_images if kind == "files" else num_images / SHARD_IMAGES
    num_requests = math.ceil(num_names / LIST_NAMES)
    if kind == "shards":
        num_requests += FOOTER_REQUESTS * math.ceil(num_names)
    return num_requests * REQUEST_S / THREADS


def names_a_second() -> float:
    """Return how many names per second this machine lists from a local folder."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(FOLDER_FILES):
            (Path(folder) / f"IMG_{i:09d}.jpg").touch()
        started = time.perf_counter()
        found = list_files(Storage(), folder, None)
        seconds = time.perf_counter() - started
    return found.files.num_rows / seconds


def show(kind: str, runs: Sequence[dict[str, float]]) -> None:
    print(f"\n{kind}: measured, then extrapolated from the last two")
    head = ["images", "store s", "plan s", "write s", "again s", "GiB", "again GiB", "manifest GiB"]
    print("".join(f"{text:>15}" for text in [*head, "chunks"]))
    for run in [*runs, *further(runs)]:
        row = [
            f"{run['num_images']:,.0f}",
            f"{store_s(kind, run['num_images']):,.1f}",
            *(f"{run[name]:,.1f}" for name in ("plan_s", "commit_s", "again_s")),
            *(f"{run[name] / 1024:,.2f}" for name in ("plan_mib", "again_mib", "manifest_mib")),
            f"{run['num_chunks']:,.0f}",
        ]
        print("".join(f"{text:>15}" for text in row))
    powers = {name: power(runs, name) for name in GROWING}
    exponents = ", ".join(f"{name} {by:.2f}" for name, by in powers.items() if by is not None)
    print(f"exponent of the growth with the images: {exponents}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="use a hundredth of the images")
    arguments = parser.parse_args()
    scale = 100 if arguments.quick else 1
    result: dict[str, Any] = {"names_a_second": names_a_second(), "archives": {}}
    print(f"{result['names_a_second']:,.0f} names per second listed from a local folder")
    for kind, sizes in SIZES.items():
        runs = [measure(kind, size // scale) for size in sizes]
        show(kind, runs)
        result["archives"][kind] = {
            "measured": runs,
            "power": {name: power(runs, name) for name in GROWING},
            "foretold": [
                {**run, "store_s": store_s(kind, run["num_images"])} for run in further(runs)
            ],
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
