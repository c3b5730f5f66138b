"""Trainings of the accuracy benchmark: the import of each data set, and its job file."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from cvbatch.demo import train as demo
from cvbatch.demo.labelled import write_labelled

TEST_SLICES = 6  # the last of the membrane stack, so that only one has a neighbour in training
Command = Callable[[Sequence[object]], object]  # runs `cvbatch` with these arguments


@dataclass(frozen=True)
class TrainingCase:
    """Training of one network on one data set."""

    title: str
    metric: str  # of `scored.SCORES`
    minimum: float | str  # target of the metric, or the name of a metric that it must exceed
    labels: str  # folder of the labelled data, below that of the benchmark
    job: dict[str, Any]  # sections model, training and run

    @property
    def task(self) -> str:
        """Return the task of the network."""
        return str(self.job["model"]["task"])


@dataclass(frozen=True)
class DataSets:
    """Locations of the data sets; None: not available, and trainings that need it are skipped."""

    cells: Path | None  # BCCD: Annotations, ImageSets, JPEGImages
    membranes: Path | None  # image/*.png and label/*.png
    mobilenet: Path | None  # MobileNet 0.25 weights with ImageNet's head; None: download by Keras


def import_cells(data_sets: DataSets, folder: Path, command: Command) -> None:
    """Import the photographs of blood cells with their boxes and their own splits."""
    command(["import", "voc", data_sets.cells, folder / "cells"])


def import_crops(data_sets: DataSets, folder: Path, command: Command) -> None:
    """Crop every cell by its box and import the crops by class, with the same splits."""
    if not (folder / "cells" / "_cvbatch").exists():
        import_cells(data_sets, folder, command)
    for path in sorted((folder / "cells").glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            image = Image.open(io.BytesIO(row["image"]["bytes"]))
            stem = Path(row["image"]["path"]).stem
            for number, box in enumerate(row["boxes"]):
                corners = tuple(round(box[side]) for side in ("x_min", "y_min", "x_max", "y_max"))
                file = folder / "cut" / row["split"] / box["label"] / f"{stem}-{number:02d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image.crop(corners).save(file)
    command(["import", "folders", folder / "cut", folder / "crops"])


def import_membranes(data_sets: DataSets, folder: Path, command: Command) -> None:
    """Import the stack of slices with its masks; the last six are the test split."""
    if data_sets.membranes is None:
        return
    stems = sorted((path.stem for path in (data_sets.membranes / "image").glob("*.png")), key=int)
    lists = folder / "membrane-lists" / "annotations"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "train.txt").write_text("\n".join(stems[:-TEST_SLICES]) + "\n")
    (lists / "test.txt").write_text("\n".join(stems[-TEST_SLICES:]) + "\n")
    command(
        [
            "import", "trimaps", lists.parent, folder / "membranes",
            "--images", data_sets.membranes / "image", "--masks", data_sets.membranes / "label",
            "--classes", "membrane,cell", "--values", "0,255",
        ]
    )  # fmt: skip


def import_shapes(data_sets: DataSets, folder: Path, command: Command) -> None:
    """Render the scenes of the demo."""
    write_labelled(folder / "shapes", demo.SPLITS)


IMPORTS: dict[str, Callable[[DataSets, Path, Command], None]] = {
    "cells": import_cells,
    "crops": import_crops,
    "membranes": import_membranes,
    "shapes": import_shapes,
}


def training_cases(data_sets: DataSets, folder: Path) -> dict[str, TrainingCase]:
    """Return the trainings whose data are available, by part.

    Args:
        data_sets: Locations of the data sets.
        folder: Folder of the labelled data.
    """
    found = {}
    if data_sets.cells is not None:
        found["cells"] = TrainingCase("blood cells, yolo", "ap50", 0.60, "cells", _CELLS)
        weights = str(data_sets.mobilenet or "imagenet")
        crops = {**_CROPS, "model": {**_MOBILENET, "weights": weights}}
        found["crops"] = TrainingCase("cropped cells, MobileNet", "accuracy", 0.95, "crops", crops)
    if data_sets.membranes is not None:
        found["membranes"] = TrainingCase(
            "membranes, encoder_decoder", "mean_iou", "trivial_mean_iou", "membranes", _MEMBRANES
        )
    for name, recipe in demo.RECIPES.items():
        title = f"shapes, demo_{name}, 2 workers"
        metric, job = recipe.metric, recipe.job(f"demo_{name}", workers=2)
        found[name] = TrainingCase(title, metric, recipe.min_metric, "shapes", job)
    return found


_MOBILENET = {
    "task": "classification", "model": "MobileNet", "build": {"alpha": 0.25}, "image_size": 96,
}  # fmt: skip
_CELLS: dict[str, Any] = {
    "model": {
        "task": "detection", "model": "yolo", "weights": "random", "image_size": [192, 256],
        "build": {"width": 8}, "anchors": 5,
    },
    "training": {
        "recipe": "scratch", "epochs": 60, "batch_size": 8, "learning_rate": 4e-3, "clip_norm": 20,
        "augment": {
            "flip": "both", "rotation": 0.02, "zoom": 0.2, "translation": 0.1, "brightness": 0.1,
            "contrast": 0.2,
        },
    },
    "run": {"workers": 1},
}  # fmt: skip
_CROPS: dict[str, Any] = {
    "training": {
        "recipe": "finetune", "epochs": 5, "head_epochs": 2, "unfreeze": "all", "batch_size": 32,
        "learning_rate": 3e-3, "base_learning_rate": 3e-4,
        "augment": {"flip": "both", "brightness": 0.1, "contrast": 0.1},
    },
    "run": {"workers": 1},
}  # fmt: skip
_MEMBRANES: dict[str, Any] = {
    "source": {"splits": {"validation": None}},
    "model": {
        "task": "segmentation", "model": "encoder_decoder", "weights": "random",
        "image_size": [256, 256], "build": {"width": 16},
    },
    "training": {
        "recipe": "scratch", "epochs": 120, "batch_size": 4, "learning_rate": 2e-3,
        "clip_norm": 1.0,
        "augment": {
            "flip": "both", "rotation": 0.5, "zoom": 0.2, "brightness": 0.1, "contrast": 0.2,
        },
    },
    "run": {"workers": 1},
}  # fmt: skip
