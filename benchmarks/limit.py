"""Upper limit of this machine: compiled programs alone, the decoder alone, both in sequence.

Run: python -m benchmarks.limit --folder DIR --programs DIR --work NAME --images N --seconds S
Two processes with one thread each, each on its own core, as cvbatch's actors. With `a` images/s
through the programs (from uint8 arrays in memory) and `b` through decoder and resize, the limit is
1 / (1/a + 1/b): without reading, post-processing, encoding or writing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle, islice
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from benchmarks.settings import BATCH, CORES, job_of, shards

Rates = dict[str, float]


def compile_programs(folder: Path, programs: Path, work: str) -> list[Path]:
    """Return the program files of a workload, compiled as by the job; existing files are reused."""
    from cvbatch.config.loader import parse_job
    from cvbatch.inference.builder import build
    from cvbatch.inference.programs import identify, requests_for
    from cvbatch.storage.store import Storage

    job = parse_job(job_of(folder, work, 0, 1, "unused"))
    requests = requests_for(job, [identify(Storage(), config) for config in job.models], "litert")
    files = [programs / f"{request.key}.zip" for request in requests]
    if not all(file.is_file() for file in files):
        programs.mkdir(parents=True, exist_ok=True)
        # TensorFlow compiles in a separate process that ends before anything is measured.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            compiled = list(pool.map(partial(build, Storage()), requests))
        for file, built in zip(files, compiled, strict=True):
            if built.engine != "litert":
                raise SystemExit(f"{built.spec.name} did not convert to LiteRT: {built.note}")
            file.write_bytes(built.to_bytes())
    return files


def _rate(step: Callable[[], int], seconds: float) -> float:
    """Return images per second of a step that returns its number of images."""
    step()
    done, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds:
        done += step()
    return done / passed


def _measure(
    core: int,
    files: list[Path],
    images: list[str],
    seconds: float,
    barrier: Barrier,
    out: Queue[Rates],
) -> None:
    os.sched_setaffinity(0, {core})
    import cv2
    import numpy as np
    import pyarrow.parquet as pq

    from cvbatch.core.types import Decoded
    from cvbatch.images.decode import Limits, decode
    from cvbatch.inference.programs import BuiltProgram

    cv2.setNumThreads(1)
    built = [BuiltProgram.from_bytes(file.read_bytes()) for file in files]
    keys = list(dict.fromkeys(one.spec.input_key for one in built))
    column = pq.read_table(images[0])["image"].combine_chunks().field("bytes")
    encoded = column.slice(0, 10 * BATCH).to_pylist()
    decoded = [decode(data, keys, Limits()) for data in encoded[:BATCH]]
    good = [one for one in decoded if isinstance(one, Decoded)]
    pixels = {
        key: np.stack([good[i % len(good)].pixels[key] for i in range(BATCH)]) for key in keys
    }
    programs = [(one.load(1), pixels[one.spec.input_key]) for one in built]
    endless = cycle(encoded)

    def compute() -> int:
        for program, batch in programs:
            program(batch)
        return BATCH

    def read() -> int:
        for data in islice(endless, BATCH):
            decode(data, keys, Limits())
        return BATCH

    rates = {}
    for name, step in (("programs", compute), ("decoder", read)):
        barrier.wait()
        rates[name] = _rate(step, seconds)
    out.put(rates)


def measure(files: list[Path], images: list[str], seconds: float) -> Rates:
    """Return images/s of both cores together, per part, and the limit."""
    context = multiprocessing.get_context("spawn")
    barrier, out = context.Barrier(CORES), context.Queue()
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    workers = [
        context.Process(target=_measure, args=(core, files, images, seconds, barrier, out))
        for core in cores
    ]
    for worker in workers:
        worker.start()
    found: list[Rates] = [out.get(timeout=120 + 4 * seconds) for _ in workers]
    for worker in workers:
        worker.join()
    rates = {name: sum(one[name] for one in found) for name in found[0]}
    return {**rates, "limit": 1 / sum(1 / rate for rate in rates.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=6.0)
    arguments = parser.parse_args()
    files = compile_programs(arguments.folder, arguments.programs, arguments.work)
    images = shards(arguments.folder, arguments.images)
    rates = measure(files, images, arguments.seconds)
    print(json.dumps({"steady": rates["limit"], **rates}))


if __name__ == "__main__":
    main()
