"""Benchmark: test metrics of whole trainings through the command, compared with targets.

Run: python -m benchmarks.accuracy [--cells DIR] [--membranes DIR] [--mobilenet FILE]
                                   [--json FILE] [--folder DIR] [--only PART ...]
For each: `cvbatch import`, `cvbatch train`, `cvbatch predict` on the images of the test split with
the trained model, and the metrics of the rows. Trainings without data are skipped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks import scored
from benchmarks.bars import Bar, bar_table
from benchmarks.measure import run_module
from benchmarks.run import machine
from benchmarks.training_cases import IMPORTS, DataSets, TrainingCase, training_cases

PACKAGES = ("ray", "tensorflow", "keras", "numpy", "pyarrow", "opencv-python-headless")
TIMEOUT_S = 3600.0  # of one command; the training on blood cells must end within it


def command(words: Sequence[object]) -> dict[str, Any]:
    """Run `cvbatch` as a separate process; return its summary."""
    return run_module("cvbatch", [*map(str, words), "--json"], TIMEOUT_S).summary


def run_case(case: TrainingCase, labels: Path, folder: Path) -> dict[str, Any]:
    """Train, predict the test images, evaluate; return metrics, times and options.

    Finished steps are not repeated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = {"uri": str(labels), **case.job.get("source", {})}
    job = {**case.job, "source": source, "sink": {"uri": str(folder / "trained")}}
    summary = command(["train", "--config", written(job, folder / "train.yaml")])
    result = folder / "predicted"
    model: dict[str, Any] = {"task": case.task, "model": str(folder / "trained" / "model.keras")}
    if case.task == "detection":
        model |= {"score_threshold": 0.01, "max_detections": 100}
    predict = {
        "source": {"uri": str(labels / "part-test-*.parquet"), "format": "parquet"},
        "sink": {"uri": str(result)},
        "models": [model],
        "run": {"batch_size": 16, "chunk_images": 64},
    }
    command(["predict", "--config", written(predict, folder / "predict.yaml")])
    history = json.loads((folder / "trained" / "history.json").read_text())
    return {
        "title": case.title,
        "metric": case.metric,
        "figures": scored.score(case.task, result, labels),
        "figures_of_training": summary["metrics"],
        "seconds": round(summary["seconds"], 1),
        "workers": summary["workers"],
        "images": summary["images"],
        "epochs": summary["epochs"],
        "best_epoch": summary["best_epoch"],
        "waited": share_waited(history),
        "model": {**case.job["model"], "model": Path(case.job["model"]["model"]).name},
        "training": case.job["training"],
    }


def written(job: dict[str, Any], path: Path) -> Path:
    """Write a job file; return its path."""
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def share_waited(rows: Sequence[dict[str, Any]]) -> float:
    """Return the fraction of the steps' time spent waiting for images, without the first epoch."""
    later = rows[1:] or rows
    return float(sum(r["waited_seconds"] for r in later) / sum(r["seconds"] for r in later))


def bar_of(case: TrainingCase, outcome: dict[str, Any]) -> Bar:
    """Return the target of a case with the measured metric."""
    figures = outcome["figures"]
    minimum = figures[case.minimum] if isinstance(case.minimum, str) else case.minimum
    return Bar(f"{case.title}, {case.metric}", figures[case.metric], minimum, True, "")


def table(outcomes: dict[str, dict[str, Any]]) -> list[str]:
    """Return the metrics of the cases as lines."""
    lines = [f"{'':32}{'train/test':>12}{'epochs':>8}{'min':>6}{'waited':>8}  metrics"]
    for one in outcomes.values():
        images = f"{one['images']['train']}/{one['images']['test']}"
        figures = ", ".join(f"{name} {value:.3f}" for name, value in one["figures"].items())
        lines.append(
            f"{one['title']:32}{images:>12}{one['epochs']:>8}{one['seconds'] / 60:>6.1f}"
            f"{one['waited']:>8.1%}  {figures}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=Path, help="BCCD: Annotations, ImageSets, JPEGImages")
    parser.add_argument("--membranes", type=Path, help="folder with image/ and label/")
    parser.add_argument(
        "--mobilenet",
        type=Path,
        help="MobileNet 0.25 with ImageNet's head; default: downloaded by Keras",
    )
    parser.add_argument(
        "--json", type=Path, help="write the metrics to this file, next to earlier ones"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/accuracy"))
    parser.add_argument("--only", nargs="+", metavar="PART", help="run only these parts")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    data_sets = DataSets(arguments.cells, arguments.membranes, arguments.mobilenet)
    outcomes: dict[str, dict[str, Any]] = {}
    if arguments.json and arguments.json.exists():
        outcomes = json.loads(arguments.json.read_text())["lessons"]
    bars = []
    for name, case in training_cases(data_sets, folder / "labels").items():
        if arguments.only is None or name in arguments.only:
            print(f"{time.strftime('%H:%M:%S')} {case.title}", file=sys.stderr, flush=True)
            labels = folder / "labels" / case.labels
            done_mark = labels.with_suffix(".done")
            if not done_mark.exists():
                shutil.rmtree(labels, ignore_errors=True)
                IMPORTS[case.labels](data_sets, labels.parent, command)
                done_mark.touch()
            when = datetime.now(UTC).isoformat(timespec="seconds")
            outcome = run_case(case, labels, folder / name)
            outcomes[name] = {"machine": {"when": when, **machine(PACKAGES)}, **outcome}
            if arguments.json:
                keep(arguments.json, outcomes)
        if name in outcomes:
            bars.append(bar_of(case, outcomes[name]))
    print("\n".join(["", *table(outcomes), "", *bar_table(bars)]))


def keep(file: Path, outcomes: dict[str, dict[str, Any]]) -> None:
    """Write the metrics of all cases so far."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"lessons": outcomes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
