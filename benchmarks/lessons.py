"""The trainings of the accuracy benchmark: how each data set is imported, and its job file."""

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

TEST_SLICES = 6  # the last of the stack of membranes: their neighbours are in one place only
Command = Callable[[Sequence[object]], object]  # runs `cvbatch` with these words


@dataclass(frozen=True)
class Lesson:
    """One network learning one data set."""

    title: str
    metric: str  # of `scored.SCORES`
    least: float | str  # it must reach this, or exceed another of the figures
    labels: str  # folder of the labelled data, below the benchmark's own
    job: dict[str, Any]  # sections model, training and run

    @property
    def task(self) -> str:
        """Return what is learnt."""
        return str(self.job["model"]["task"])


@dataclass(frozen=True)
class Material:
    """Where the data sets are; None: not there, so what needs it is left out."""

    cells: Path | None  # BCCD: Annotations, ImageSets, JPEGImages
    membranes: Path | None  # image/*.png and label/*.png
    mobilenet: Path | None  # weights of MobileNet 0.25 with ImageNet's head; None: Keras' download


def import_cells(material: Material, folder: Path, command: Command) -> None:
    """Import the photographs of blood cells with their boxes, in their own splits."""
    command(["import", "voc", material.cells, folder / "cells"])


def import_crops(material: Material, folder: Path, command: Command) -> None:
    """Cut every cell out by its box and import the cuttings by class; splits stay."""
    if not (folder / "cells" / "_cvbatch").exists():
        import_cells(material, folder, command)
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


def import_membranes(material: Material, folder: Path, command: Command) -> None:
    """Import the stack of slices with its masks; the last six are to test."""
    if material.membranes is None:
        return
    stems = sorted((path.stem for path in (material.membranes / "image").glob("*.png")), key=int)
    lists = folder / "membrane-lists" / "annotations"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "train.txt").write_text("\n".join(stems[:-TEST_SLICES]) + "\n")
    (lists / "test.txt").write_text("\n".join(stems[-TEST_SLICES:]) + "\n")
    command(
        [
            "import", "trimaps", lists.parent, folder / "membranes",
            "--images", material.membranes / "image", "--masks", material.membranes / "label",
            "--classes", "membrane,cell", "--values", "0,255",
        ]
    )  # fmt: skip


def import_shapes(material: Material, folder: Path, command: Command) -> None:
    """Render the demonstration's scenes."""
    write_labelled(folder / "shapes", demo.SPLITS)


IMPORTS: dict[str, Callable[[Material, Path, Command], None]] = {
    "cells": import_cells,
    "crops": import_crops,
    "membranes": import_membranes,
    "shapes": import_shapes,
}


def lessons(material: Material, folder: Path) -> dict[str, Lesson]:
    """Return the lessons whose data are there, by the name of their part.

    folder: of the labelled data.
    """
    found = {}
    if material.cells is not None:
        found["cells"] = Lesson("blood cells, yolo", "ap50", 0.60, "cells", _CELLS)
        weights = str(material.mobilenet or "imagenet")
        crops = {**_CROPS, "model": {**_MOBILENET, "weights": weights}}
        found["crops"] = Lesson("cells cut out, MobileNet", "accuracy", 0.95, "crops", crops)
    if material.membranes is not None:
        found["membranes"] = Lesson(
            "membranes, encoder_decoder", "mean_iou", "trivial_mean_iou", "membranes", _MEMBRANES
        )
    for name, recipe in demo.RECIPES.items():
        title = f"shapes, demo_{name}, 2 workers"
        metric, job = recipe.metric, recipe.job(f"demo_{name}", workers=2)
        found[name] = Lesson(title, metric, recipe.bar, "shapes", job)
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
