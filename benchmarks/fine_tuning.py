"""Benchmark: test accuracy of fine-tuning with default settings, compared with a linear probe.

Run: python -m benchmarks.fine_tuning --data FOLDER --network FILE [--seeds N ...] [--folder DIR]
                                      [--json FILE] [--set KEY=VALUE ...]
FOLDER has one folder of images per class, FILE is a pretrained Keras classifier of other classes.
For each seed, half of the images are for training, a fifth for validation, the rest for the test.
`cvbatch train` runs with default settings, and with those of `--set`. The probe is scikit-learn's
logistic regression on the features before the last layer (`task: embedding`), with C from 10⁻³ to
10³ chosen by five-fold cross-validation of the training images. It needs
`pip install scikit-learn`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from benchmarks.measure import run_module

TIMEOUT_S = 3600.0  # of one command
COLUMNS = ("seed", "images", "probe", "fine_tuned", "head", "best_epoch", "seconds")


def command(words: Sequence[object]) -> dict[str, Any]:
    """Run `cvbatch` as a separate process; return its summary."""
    return run_module("cvbatch", [*map(str, words), "--json"], TIMEOUT_S).summary


def features_of(labels: Path, network: Path, folder: Path) -> dict[str, list[float]]:
    """Return the features of all labelled images, by image id."""
    job = {
        "source": {"uri": str(labels), "format": "parquet", "id_column": "image_id"},
        "sink": {"uri": str(folder)},
        "models": [{"task": "embedding", "model": str(network), "layer": "auto"}],
    }
    command(["predict", "--config", written(job, folder.with_suffix(".yaml"))])
    rows = table(folder, ["image_id", "embedding"])
    return {row["image_id"].split("#", 1)[1]: row["embedding"] for row in rows}  # FILE#ID


def probe_accuracy(labels: Path, features: dict[str, list[float]]) -> float:
    """Return the test accuracy of logistic regression on features."""
    rows = table(labels, ["image_id", "split", "labels"])
    inputs = np.array([features[row["image_id"]] for row in rows])
    classes = np.array([row["labels"][0]["class_id"] for row in rows])
    train, test = (np.array([row["split"] == name for row in rows]) for name in ("train", "test"))
    penalties = {"C": np.logspace(-3, 3, 13)}
    probe = GridSearchCV(LogisticRegression(max_iter=2000), penalties, cv=5)
    probe.fit(inputs[train], classes[train])
    return float(probe.score(inputs[test], classes[test]))


def table(folder: Path, columns: list[str]) -> list[dict[str, Any]]:
    """Return the rows of all Parquet files of a folder."""
    rows: list[dict[str, Any]] = (
        ds.dataset(sorted(folder.glob("*.parquet"))).to_table(columns).to_pylist()
    )
    return rows


def fine_tuned(
    labels: Path, network: Path, folder: Path, settings: Sequence[str]
) -> dict[str, float]:
    """Return the test accuracy of fine-tuning, and the validation accuracy of its two phases."""
    job = {
        "source": {"uri": str(labels)},
        "sink": {"uri": str(folder)},
        "model": {"task": "classification", "model": str(network)},
    }
    options = [word for setting in settings for word in ("--set", setting)]
    summary = command(["train", "--config", written(job, folder.with_suffix(".yaml")), *options])
    history = json.loads((folder / "history.json").read_text())
    head = [row["accuracy"] for row in history if row["phase"] == "head"]
    return {
        "fine_tuned": summary["metrics"]["test"]["accuracy"],
        "head": max(head, default=float("nan")),
        "validation": summary["metrics"]["validation"]["accuracy"],
        "best_epoch": summary["best_epoch"],
        "seconds": summary["seconds"],
    }


def run_seeds(
    data: Path, network: Path, seeds: Sequence[int], folder: Path, settings: Sequence[str]
) -> Iterator[dict[str, float]]:
    """Split the images, fit the probe, fine-tune; yield accuracies on the same test images."""
    features: dict[str, list[float]] = {}
    for seed in seeds:
        seed_folder = folder / str(seed)
        seed_folder.mkdir(parents=True, exist_ok=True)
        labels = seed_folder / "labels"
        split = ["--split", "0.5,0.2,0.3", "--seed", seed, "--overwrite", "--no-check-images"]
        imported = command(["import", "folders", data, labels, *split])
        features = features or features_of(labels, network, folder / "features")
        probe = probe_accuracy(labels, features)
        tuned = fine_tuned(labels, network, seed_folder / "trained", settings)
        yield {"seed": seed, "images": imported["images"]["written"], "probe": probe, **tuned}


def written(job: dict[str, Any], file: Path) -> Path:
    """Write a job file; return its path."""
    file.write_text(yaml.safe_dump(job))
    return file


def print_table(name: str, rows: Sequence[dict[str, float]]) -> None:
    """Print one row per seed, and mean and spread of the two accuracies."""
    print(name, *COLUMNS, sep="\t")
    for row in rows:
        print("", *(f"{row[key]:.4g}" for key in COLUMNS), sep="\t")
    for key in ("probe", "fine_tuned"):
        values = [row[key] for row in rows]
        spread = (max(values) - min(values)) / 2
        print(f"{key}: mean {statistics.mean(values):.3f} ± {spread:.3f}")
    means = [statistics.mean(row[key] for row in rows) for key in ("fine_tuned", "probe")]
    print(f"ratio to the probe: {means[0] / means[1]:.3f}", flush=True)


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder per class")
    parser.add_argument("--network", type=Path, required=True, help=".keras file of a classifier")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the splits; default: 0 1 2"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/fine_tuning"))
    parser.add_argument("--json", type=Path, help="file for the values of every run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    data, network = options.data.resolve(), options.network.resolve()
    folder = options.folder.resolve() / data.name
    rows = list(run_seeds(data, network, options.seeds, folder, options.set))
    print_table(data.name, rows)
    if options.json:
        options.json.write_text(json.dumps({data.name: rows}, indent=1))


if __name__ == "__main__":
    main()
