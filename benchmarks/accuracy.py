"""Runs whole trainings through the command and holds what they reach to the bars.

Run: python -m benchmarks.accuracy [--cells DIR] [--membranes DIR] [--mobilenet FILE]
                                   [--json FILE] [--folder DIR] [--only PART ...]
Each: `cvbatch import`, `cvbatch train`, `cvbatch predict` on the images of the test split with the
model that training left, and the figures of the rows. What has no data is left out.
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
from benchmarks.lessons import IMPORTS, Lesson, Material, lessons
from benchmarks.measure import run_module
from benchmarks.run import machine

PACKAGES = ("ray", "tensorflow", "keras", "numpy", "pyarrow", "opencv-python-headless")
TIMEOUT_S = 3600.0  # the blood cells must be learnt within it


def command(words: Sequence[object]) -> dict[str, Any]:
    """Run `cvbatch` as a process of its own; return its summary."""
    return run_module("cvbatch", [*map(str, words), "--json"], TIMEOUT_S).told


def learn(lesson: Lesson, labels: Path, folder: Path) -> dict[str, Any]:
    """Train, predict the test images, score; return all that is to be known of it.

    What is done already is not done again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = {"uri": str(labels), **lesson.job.get("source", {})}
    job = {**lesson.job, "source": source, "sink": {"uri": str(folder / "trained")}}
    summary = command(["train", "--config", written(job, folder / "train.yaml")])
    result = folder / "predicted"
    model: dict[str, Any] = {"task": lesson.task, "model": str(folder / "trained" / "model.keras")}
    if lesson.task == "detection":
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
        "title": lesson.title,
        "metric": lesson.metric,
        "figures": scored.score(lesson.task, result, labels),
        "figures_of_training": summary["metrics"],
        "seconds": round(summary["seconds"], 1),
        "workers": summary["workers"],
        "images": summary["images"],
        "epochs": summary["epochs"],
        "best_epoch": summary["best_epoch"],
        "waited": share_waited(history),
        "model": {**lesson.job["model"], "model": Path(lesson.job["model"]["model"]).name},
        "training": lesson.job["training"],
    }


def written(job: dict[str, Any], path: Path) -> Path:
    """Write a job file; return where."""
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def share_waited(rows: Sequence[dict[str, Any]]) -> float:
    """Return the part of the steps' time in which they waited for images, the first epoch's not."""
    later = rows[1:] or rows
    return float(sum(r["waited_seconds"] for r in later) / sum(r["seconds"] for r in later))


def bar_of(lesson: Lesson, outcome: dict[str, Any]) -> Bar:
    """Return what was demanded of a lesson and what it reached."""
    figures = outcome["figures"]
    least = figures[lesson.least] if isinstance(lesson.least, str) else lesson.least
    return Bar(f"{lesson.title}, {lesson.metric}", figures[lesson.metric], least, True, "")


def table(outcomes: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lessons' figures as lines."""
    lines = [f"{'':32}{'train/test':>12}{'epochs':>8}{'min':>6}{'waited':>8}  figures"]
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
    parser.add_argument("--membranes", type=Path, help="a folder with image/ and label/")
    parser.add_argument(
        "--mobilenet", type=Path, help="MobileNet 0.25 with ImageNet's head; default: Keras' own"
    )
    parser.add_argument("--json", type=Path, help="keep the figures here, beside earlier ones")
    parser.add_argument("--folder", type=Path, default=Path("build/accuracy"))
    parser.add_argument("--only", nargs="+", metavar="PART", help="some parts alone")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    material = Material(arguments.cells, arguments.membranes, arguments.mobilenet)
    outcomes: dict[str, dict[str, Any]] = {}
    if arguments.json and arguments.json.exists():
        outcomes = json.loads(arguments.json.read_text())["lessons"]
    bars = []
    for name, lesson in lessons(material, folder / "labels").items():
        if arguments.only is None or name in arguments.only:
            print(f"{time.strftime('%H:%M:%S')} {lesson.title}", file=sys.stderr, flush=True)
            labels = folder / "labels" / lesson.labels
            is_there = labels.with_suffix(".done")
            if not is_there.exists():
                shutil.rmtree(labels, ignore_errors=True)
                IMPORTS[lesson.labels](material, labels.parent, command)
                is_there.touch()
            when = datetime.now(UTC).isoformat(timespec="seconds")
            outcome = learn(lesson, labels, folder / name)
            outcomes[name] = {"machine": {"when": when, **machine(PACKAGES)}, **outcome}
            if arguments.json:
                keep(arguments.json, outcomes)
        if name in outcomes:
            bars.append(bar_of(lesson, outcomes[name]))
    print("\n".join(["", *table(outcomes), "", *bar_table(bars)]))


def keep(file: Path, outcomes: dict[str, dict[str, Any]]) -> None:
    """Write the figures of all lessons so far."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"lessons": outcomes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
