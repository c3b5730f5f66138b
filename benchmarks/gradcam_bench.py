"""Benchmark of Grad-CAM: the classifier's forward pass with and without it in the graph.

Run: python -m benchmarks.gradcam_bench --folder DIR [--rounds N]
Batch 32, pixels in memory, both engines with one thread per core; the four programs alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.settings import CORES, SIDE, job_of
from cvbatch.config.loader import parse_job
from cvbatch.inference.engines import ENGINES, Program
from cvbatch.inference.graph import ServingGraph
from cvbatch.models import registry
from cvbatch.storage.store import Storage

BATCH = 32
WORKS = {"forward": "classification, no heatmap", "heatmap": "classification"}


def compile_all(folder: Path) -> dict[tuple[str, str], Program]:
    """Return {(engine, forward or heatmap): program}."""
    programs = {}
    for name, work in WORKS.items():
        config = parse_job(job_of(folder, work, 0, 1, "unused")).models[0]
        model = registry.load_model(config.model, config.weights, local_file=Storage().fetch)
        for engine_name, engine in ENGINES.items():
            payload, names = engine.compile(ServingGraph(model, config), BATCH, SIDE, SIDE)
            programs[engine_name, name] = engine.load(payload, names, CORES)
    return programs


def measure(programs: dict[tuple[str, str], Program], rounds: int) -> dict[str, Any]:
    """Return ms per image of every program and the relative cost of the heatmap, as medians.

    The relative cost is computed within each round, in which both had the same machine state.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)
    ms: dict[tuple[str, str], list[float]] = {key: [] for key in programs}
    for program in programs.values():
        program(pixels)
    for i in range(rounds):
        order = list(programs) if i % 2 == 0 else list(reversed(programs))
        for key in order:
            begun = time.perf_counter()
            programs[key](pixels)
            ms[key].append((time.perf_counter() - begun) * 1000 / BATCH)
    result: dict[str, Any] = {}
    for engine in ENGINES:
        pairs = zip(ms[engine, "heatmap"], ms[engine, "forward"], strict=True)
        result[engine] = {
            "forward_ms": statistics.median(ms[engine, "forward"]),
            "heatmap_ms": statistics.median(ms[engine, "heatmap"]),
            "added": statistics.median(heatmap / forward for heatmap, forward in pairs) - 1,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    # Set before the first operation: compiling runs some, and the engine's loader runs later.
    tf.config.threading.set_intra_op_parallelism_threads(CORES)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(json.dumps(measure(compile_all(arguments.folder), arguments.rounds)))


if __name__ == "__main__":
    main()
