"""Plan ever larger archives; say what grows with the images, how, and what 10⁹ of them would take.

    python -m benchmarks.scale [--json FILE] [--quick]

Two archives of the same images: a file each, or 10,000 to a Parquet shard. What a store would list
and what the shards' footers would say is made up; all that follows is the job's own planning, into
a sink on this machine: a first plan, its manifest written, and the plan of a later run that finds
every part file there. Each planning runs in a process of its own, so that its peak memory is its
own; its seconds are the processor's. From the two largest sizes the cost of one more image follows,
and with it the figures of larger archives. What the store itself takes, to list and to give
footers, depends on the store: it follows from how many requests that is and REQUEST_S, which is an
assumption.
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

from benchmarks.bench_plan import BASE, made_up_listing, peak_mib
from cvbatch.planning import part_files
from cvbatch.planning.plan import make_plan
from cvbatch.sources import discovery
from cvbatch.storage.listing import FILES, Listing, list_files

CHUNK_IMAGES = 512  # the default
CHUNK_BYTES = 1 << 40  # no limit here: of small images 512 lie below the default
SHARD_IMAGES, GROUP_IMAGES = 10_000, 1_000
IMAGE_BYTES = 150_000
SIZES = {
    "files": (10_000, 100_000, 1_000_000),
    "shards": (1_000_000, 10_000_000, 100_000_000),
}
ASKED = (100_000_000, 1_000_000_000)
GROWING = ("plan_s", "commit_s", "again_s", "plan_mib", "again_mib", "manifest_mib", "num_chunks")
REQUEST_S, THREADS = 0.1, 16  # see above; the job's own
LIST_NAMES = 1000  # an answer has, by S3's protocol
TOLD = 0.05  # seconds or MiB: less is noise
FOOTER_REQUESTS = 2  # a shard's size, and its end
FOLDER_FILES = 20_000  # really listed, to see what reading names costs this machine


class Source(NamedTuple):
    uri: Sequence[str]
    format: str
    image_column: str = "image"


def listing(kind: str, num_images: int) -> Listing:
    """Return what a store would say that it holds."""
    if kind == "files":
        return made_up_listing(num_images)
    number = np.arange(num_images // SHARD_IMAGES)
    uris = [f"{BASE}2026/shard-{i:07d}-of-{len(number):07d}.parquet" for i in number.tolist()]
    sizes = np.full(len(number), SHARD_IMAGES * IMAGE_BYTES)
    versions = [str(1_790_000_000_000_000_000 + i) for i in number.tolist()]
    return Listing(BASE, pa.table([uris, sizes, versions], FILES.names).cast(FILES))


def footer(uri: str, image_column: str) -> list[tuple[int, int]]:
    """Return (rows, bytes) of each row group of a shard, as reading its footer would."""
    return [(GROUP_IMAGES, GROUP_IMAGES * IMAGE_BYTES)] * (SHARD_IMAGES // GROUP_IMAGES)


def plan_once(kind: str, num_images: int, folder: str, answers: Any) -> None:
    listings = [listing(kind, num_images)]  # handed over, as the job's own listing is
    source = Source((BASE,), "images" if kind == "files" else "parquet")
    with ExitStack() as stack:
        stack.enter_context(
            mock.patch.object(discovery, "list_files", lambda uri, on_progress: listings.pop())
        )
        stack.enter_context(mock.patch.object(discovery, "_row_groups", footer))
        started = time.process_time()  # of all threads: whatever else this machine does
        plan = make_plan(source, folder, CHUNK_IMAGES, CHUNK_BYTES)
        planned = time.process_time()
        num_left = len(plan.left)
        plan.commit()
    answers.put(
        {
            "plan_s": planned - started,
            "commit_s": time.process_time() - planned,
            "mib": peak_mib(),
            "num_chunks": len(plan.chunks),
            "num_left": num_left,
            "names": [part_files.part_name(ref.chunk_id) for ref in plan.left],
        }
    )


def in_its_own_process(kind: str, num_images: int, folder: str) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=plan_once, args=(kind, num_images, folder, answers))
    process.start()
    said: dict[str, Any] = answers.get(timeout=600)
    process.join()
    return said


def measure(kind: str, num_images: int) -> dict[str, float]:
    """Return what planning an archive takes, the first time and when all of it is done."""
    with tempfile.TemporaryDirectory() as folder:
        first = in_its_own_process(kind, num_images, folder)
        manifest = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
        for name in first["names"]:
            (Path(folder) / name).touch()
        again = in_its_own_process(kind, num_images, folder)
    if again["num_left"]:
        raise RuntimeError(f"{kind}: {again['num_left']} chunks were planned otherwise")
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
    """Return the power of the number of images that a cost grows with; None where it is too small.

    Between the two largest runs. What does not depend on the images (the process itself) is taken
    to be the smallest run's, less its images' share.
    """
    least, before, last = runs[0], runs[-2], runs[-1]
    if before[name] < TOLD:
        return None
    fixed = max(0.0, least[name] - slope(runs, name) * least["num_images"])
    times = (last[name] - fixed) / max(before[name] - fixed, TOLD)
    return math.log(times) / math.log(last["num_images"] / before["num_images"])


def foretold(runs: Sequence[dict[str, float]], num_images: int) -> dict[str, float]:
    """Return the figures of an archive of `num_images`, along the line through the last two."""
    last = runs[-1]
    more = num_images - last["num_images"]
    figures = {name: last[name] + slope(runs, name) * more for name in GROWING}
    return {"num_images": num_images, **figures}


def further(runs: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Return the figures of the archives asked for that are too large to be measured."""
    return [foretold(runs, number) for number in ASKED if number > runs[-1]["num_images"]]


def store_s(kind: str, num_images: float) -> float:
    """Return what a store takes to list an archive and give its footers, if it answers so soon."""
    num_names = num_images if kind == "files" else num_images / SHARD_IMAGES
    num_requests = math.ceil(num_names / LIST_NAMES)
    if kind == "shards":
        num_requests += FOOTER_REQUESTS * math.ceil(num_names)
    return num_requests * REQUEST_S / THREADS


def names_a_second() -> float:
    """Return how many names this machine lists from a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(FOLDER_FILES):
            (Path(folder) / f"IMG_{i:09d}.jpg").touch()
        started = time.perf_counter()
        found = list_files(folder, None)
        seconds = time.perf_counter() - started
    return found.files.num_rows / seconds


def show(kind: str, runs: Sequence[dict[str, float]]) -> None:
    print(f"\n{kind}, measured (then: along the line through the last two)")
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
    told = ", ".join(f"{name} {by:.2f}" for name, by in powers.items() if by is not None)
    print(f"grows with the images to the power of: {told}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the images")
    arguments = parser.parse_args()
    scale = 100 if arguments.quick else 1
    said: dict[str, Any] = {"names_a_second": names_a_second(), "archives": {}}
    print(f"{said['names_a_second']:,.0f} names a second from a folder of this machine")
    for kind, sizes in SIZES.items():
        runs = [measure(kind, max(size // scale, SHARD_IMAGES)) for size in sizes]
        show(kind, runs)
        said["archives"][kind] = {
            "measured": runs,
            "power": {name: power(runs, name) for name in GROWING},
            "foretold": [
                {**run, "store_s": store_s(kind, run["num_images"])} for run in further(runs)
            ],
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(said, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
