"""The demo's three networks are made here from nothing, so that nobody need trust their weights.

    python -m cvbatch.demo.train [--out DIR] [--only NAME] [--epochs N] [--scenes N] [--seed N]

renders scenes as labelled Parquet, runs the training job on them with two workers, leaves
classifier.keras, segmenter.keras and detector.keras, and prints their figures on scenes never
seen. A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvbatch.config.train import parse_training
from cvbatch.core.progress import listening
from cvbatch.demo.labelled import write_labelled
from cvbatch.train.job import train

# Split → (seed of its archive, scenes); archives of users have smaller seeds, so they share none.
SPLITS = {"train": (1_000_000, 4000), "validation": (2_000_000, 200), "test": (3_000_000, 500)}
WORKERS = 2
_AUGMENT = {"flip": "both", "zoom": 0.1, "brightness": 0.1, "contrast": 0.1}


@dataclass(frozen=True)
class Recipe:
    """What one network is for, how it is trained, and what it must reach."""

    task: str
    epochs: int
    images_per_step: int  # of all workers
    learning_rate: float
    metric: str
    bar: float  # least metric on the test scenes

    def job(self, model: str, workers: int) -> dict[str, Any]:
        """Return the sections model, training and run of the network's job file."""
        return {
            "model": {"task": self.task, "model": model, "weights": "random"},
            "training": {
                "recipe": "scratch",
                "epochs": self.epochs,
                "batch_size": self.images_per_step // workers,
                "learning_rate": self.learning_rate,
                "weight_decay": 1e-3,
                "warmup": 0.1,
                "clip_norm": 5.0,
                "augment": _AUGMENT,
            },
            "run": {"workers": workers},
        }


RECIPES = {
    "classifier": Recipe("classification", 24, 16, 3e-3, "accuracy", 0.95),
    "segmenter": Recipe("segmentation", 20, 32, 2e-3, "mean_iou", 0.85),
    "detector": Recipe("detection", 8, 32, 4e-3, "ap50", 0.85),
}


def train_model(
    name: str, scenes: Path, sink: Path, training: Mapping[str, Any]
) -> dict[str, float | None]:
    """Train one of the demo's networks into `sink`; return its figures on the test scenes.

    training: keys of the job file's section of that name, in place of the recipe's.
    """
    said = RECIPES[name].job(f"demo_{name}", WORKERS)
    said["training"] |= training
    places = {"source": {"uri": str(scenes)}, "sink": {"uri": str(sink)}}
    with listening() as listener:
        return train(parse_training({**places, **said}), listener).metrics["test"]


def main() -> None:
    """Render, train, copy the networks and print their figures."""
    parser = argparse.ArgumentParser(prog="python -m cvbatch.demo.train")
    parser.add_argument("--out", type=Path, default=Path("demo-weights"))
    parser.add_argument("--only", choices=tuple(RECIPES), help="train one network, not all three")
    parser.add_argument("--epochs", type=int, help="for every network; by default its own number")
    parser.add_argument("--scenes", type=int, default=SPLITS["train"][1], help="to learn from")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    scenes = options.out / f"scenes-{options.seed}-{options.scenes}"
    if not scenes.exists():
        train_split = (SPLITS["train"][0] + options.seed, options.scenes)
        write_labelled(scenes, {**SPLITS, "train": train_split})
    training = {"seed": options.seed} | ({"epochs": options.epochs} if options.epochs else {})
    for name in [options.only] if options.only else RECIPES:
        sink = options.out / "trainings" / name
        figures = train_model(name, scenes, sink, training)
        file = options.out / f"{name}.keras"
        shutil.copyfile(sink / "model.keras", file)
        recipe = RECIPES[name]
        print(
            f"{name}: {recipe.metric} {figures[recipe.metric]:.4f} on {SPLITS['test'][1]} unseen "
            f"scenes, {file.stat().st_size:,} bytes"
        )


if __name__ == "__main__":
    main()
