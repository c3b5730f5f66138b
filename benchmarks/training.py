"""Benchmark of training: images/s of the step against `keras.fit`, and time waiting for images.

Run: python -m benchmarks.training [--json FILE] [--rounds N] [--epochs N] [--folder DIR]
                                   [--only step|waiting]
Needs an otherwise idle machine and about 15 minutes. In a round every case of the step runs once;
ratios are computed between neighbouring epochs of one process, or within a round, and the median is
reported. Then whole jobs run once, and their history records how long steps waited.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.accuracy import PACKAGES, command, share_waited, written
from benchmarks.bars import Bar, Run, Runs, bar_table, median, paired
from benchmarks.measure import run_module
from benchmarks.run import machine
from cvbatch.demo.labelled import write_labelled
from cvbatch.demo.train import RECIPES, SPLITS

NETWORKS = ("classifier", "segmenter")  # of `training_step.NETWORKS`
WAITING = ("detector", "segmenter")  # of the demo: expensive to decode, expensive to compute
SCENES, EPOCHS = 1000, 4  # of the jobs whose waiting time is measured
TIMEOUT_S = 900.0


def measure_steps(runs: dict[str, list[Run]], round_: int, epochs: int) -> None:
    """Measure one worker and `keras.fit` in alternation, then two workers."""
    for network in NETWORKS:
        for workers in (1, 2):
            arguments = ["--network", network, "--workers", str(workers), "--epochs", str(epochs)]
            values = run_module("benchmarks.training_step", arguments, TIMEOUT_S).summary
            rates = {f"{network}, {workers} worker{'s' * (workers - 1)}": values["ours"]}
            if "fit" in values:
                rates[f"{network}, keras.fit"] = values["fit"]
            for job, all_rates in rates.items():
                run = {"round": round_, "steady": statistics.median(all_rates), "epochs": all_rates}
                if "ratio" in values and "worker" in job:
                    run["ratio"] = values["ratio"]
                runs.setdefault(job, []).append(run)
                _log(f"{job}: {run['steady']:.1f} images/s")


def measure_waiting(runs: dict[str, list[Run]], folder: Path) -> None:
    """Run whole training jobs and record the fraction of the steps' time spent waiting."""
    scenes = folder / "scenes"
    if not scenes.exists():
        write_labelled(scenes, {**SPLITS, "train": (SPLITS["train"][0], SCENES)})
    for name in WAITING:
        for workers in (1, 2):
            job = RECIPES[name].job(f"demo_{name}", workers)
            job["source"] = {"uri": str(scenes)}
            sink = folder / f"{name}-{workers}"
            job["sink"] = {"uri": str(sink)}
            job["training"]["epochs"] = EPOCHS
            command(["train", "--config", written(job, folder / f"{sink.name}.yaml"),
                     "--overwrite"])  # fmt: skip
            share = share_waited(json.loads((sink / "history.json").read_text()))
            key = f"demo_{name}, {workers} worker{'s' * (workers - 1)}"
            runs.setdefault(key, []).append({"round": 0, "waited": share})
            _log(f"{key}: waited {share:.1%}")


def all_bars(runs: Runs) -> list[Bar]:
    """Return the targets, and the rates of two workers, which have no target."""
    bars = []
    for network in NETWORKS:
        ratio = median(runs, f"{network}, 1 worker", "ratio")
        bars.append(Bar(f"step, {network}, 1 worker / keras.fit", ratio, 0.9, True))
        two = paired(runs, f"{network}, 2 workers", f"{network}, keras.fit", "steady")
        bars.append(Bar(f"step, {network}, 2 workers / keras.fit", two, 0.0, True))
    for name in WAITING:
        for workers in ("1 worker", "2 workers"):
            share = median(runs, f"demo_{name}, {workers}", "waited")
            percent = None if share is None else 100 * share
            bars.append(Bar(f"waiting, demo_{name}, {workers}", percent, 5.0, False, " %"))
    return bars


def rate_table(runs: Runs) -> list[str]:
    """Return the rates as lines."""
    lines = [f"{'median of the rounds':32}{'images/s':>12}"]
    for job in runs:
        rate = median(runs, job, "steady")
        if rate is not None:
            lines.append(f"{job:32}{rate:>12.1f}")
    return lines


def _log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the values of every run to this file")
    parser.add_argument("--folder", type=Path, default=Path("build/training"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--epochs", type=int, default=9, help="epochs per run of the step; default: %(default)s"
    )
    parser.add_argument("--only", choices=("step", "waiting"))
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"when": datetime.now(UTC).isoformat(timespec="seconds"), **machine(PACKAGES)}
    runs: dict[str, list[Run]] = {}
    for round_ in range(arguments.rounds):
        if arguments.only != "waiting":
            measure_steps(runs, round_, arguments.epochs)
    if arguments.only != "step":
        measure_waiting(runs, folder)
    bars = all_bars(runs)
    print("\n".join(["", *rate_table(runs), "", *bar_table(bars)]))
    if arguments.json:
        document: dict[str, Any] = {"machine": facts, "rounds": arguments.rounds, "runs": runs}
        document["bars"] = [bar.as_json() for bar in bars]
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
