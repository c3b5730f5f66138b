"""Train the three networks of the demo from random weights, so that anyone can reproduce them.

    python -m cvbatch.demo.train [--out DIR] [--only NAME] [--epochs N] [--scenes N] [--seed N]

renders scenes as labelled Parquet, trains each network on them with two workers, writes
classifier.keras, segmenter.keras and detector.keras, and prints their metrics on the test scenes.
If it is interrupted, the same command resumes it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvbatch.config.train import parse_training
from cvbatch.core.progress import progress_listener
from cvbatch.demo.labelled import write_labelled
from cvbatch.train.job import train

# Split → (seed of its archive, scenes). `cvbatch demo` uses a smaller seed, so it shares no scene.
SPLITS = {"train": (1_000_000, 4000), "validation": (2_000_000, 200), "test": (3_000_000, 500)}
WORKERS = 2
_AUGMENT = {"flip": "both", "zoom": 0.1, "brightness": 0.1, "contrast": 0.1}


@dataclass(frozen=True)
class Recipe:
    """Task and training parameters of one network, and the metric that it must reach."""

    task: str
    epochs: int
    images_per_step: int  # of all workers together
    learning_rate: float
    metric: str
    min_metric: float  # on the test scenes

    def job(self, model: str, workers: int) -> dict[str, Any]:
        """Return the sections model, training and run of the training job.

        Args:
            model: name of the network in the zoo.
            workers: number of training workers, a divisor of `images_per_step`.
        """
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
    """Train one network of the demo into `sink`; return its metrics on the test scenes.

    Args:
        name: a key of RECIPES.
        scenes: folder of the labelled scenes.
        sink: folder of the training.
        training: overrides keys of the section `training` of the recipe.
    """
    job = RECIPES[name].job(f"demo_{name}", WORKERS)
    job["training"] |= training
    locations = {"source": {"uri": str(scenes)}, "sink": {"uri": str(sink)}}
    with progress_listener() as listener:
        return train(parse_training({**locations, **job}), listener).metrics["test"]


def main() -> None:
    """Render the scenes, train and copy the networks, print their metrics."""
    parser = argparse.ArgumentParser(prog="python -m cvbatch.demo.train")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-weights"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--only", choices=tuple(RECIPES), help="train one network; default: all")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: those of the recipe")
    parser.add_argument(
        "--scenes",
        type=int,
        default=SPLITS["train"][1],
        metavar="N",
        help="number of training scenes; default: %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    scenes = options.out / f"scenes-{options.seed}-{options.scenes}"
    if not scenes.exists():
        train_split = (SPLITS["train"][0] + options.seed, options.scenes)
        write_labelled(scenes, {**SPLITS, "train": train_split})
    training = {"seed": options.seed} | ({"epochs": options.epochs} if options.epochs else {})
    for name in [options.only] if options.only else RECIPES:
        sink = options.out / "trainings" / name
        metrics = train_model(name, scenes, sink, training)
        file = options.out / f"{name}.keras"
        shutil.copyfile(sink / "model.keras", file)
        recipe = RECIPES[name]
        print(
            f"{name}: {recipe.metric} {metrics[recipe.metric]:.4f} on {SPLITS['test'][1]} test "
            f"scenes, {file.stat().st_size:,} bytes"
        )


if __name__ == "__main__":
    main()
