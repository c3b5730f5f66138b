"""Shared settings of all peers: sizes, paths, and each workload as a cvbatch job.

It imports only the standard library, because every measured process imports it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CORES = 2  # used by every job, also on a larger machine
BATCH = 25  # of cvbatch and of the limit, so that row groups of 100 are full batches
PEER_BATCH = 32
SIDE = 224  # of the classifier's input
TOP_K = 5
HEIGHT, WIDTH = 480, 640
LARGE_HEIGHT, LARGE_WIDTH = 3000, 4000
IOU_THRESHOLD, MAX_DETECTIONS = 0.6, 100
NUM_CLASSES = 1000


def shards_folder(folder: Path, num_images: int) -> Path:
    return folder / f"images-{num_images}"


def shards(folder: Path, num_images: int) -> list[str]:
    return sorted(str(path) for path in shards_folder(folder, num_images).glob("*.parquet"))


def model_file(folder: Path, name: str) -> Path:
    return folder / "models" / f"{name}.keras"


def facts(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "models" / "facts.json").read_text())
    return read


def models_of(folder: Path, work: str) -> list[dict[str, Any]]:
    """Return the `models` section of cvbatch's job file for a workload."""
    classifier: dict[str, Any] = {
        "task": "classification",
        "model": str(model_file(folder, "classifier")),
        "classes": str(folder / "models" / "classes.txt"),
        "top_k": TOP_K,
    }
    with_heatmap = {**classifier, "heatmap": {"layer": "auto", "top_k": 1}}
    if work == "classification, no heatmap":
        return [classifier]
    if work == "classification":
        return [with_heatmap]
    segmenter = {"task": "segmentation", "model": str(model_file(folder, "segmenter"))}
    detector = {
        "task": "detection",
        "model": str(model_file(folder, "detector")),
        "score_threshold": facts(folder)["score_threshold"],
        "iou_threshold": IOU_THRESHOLD,
        "max_detections": MAX_DETECTIONS,
    }
    return [with_heatmap, segmenter, detector]


def job_of(
    folder: Path, work: str, num_images: int, chunk_images: int, sink: str
) -> dict[str, Any]:
    """Return cvbatch's job file for a workload."""
    return {
        "source": {"uri": str(shards_folder(folder, num_images)), "format": "parquet"},
        "sink": {"uri": sink},
        "models": models_of(folder, work),
        "run": {
            "batch_size": BATCH, "chunk_images": chunk_images, "actors": CORES, "engine": "litert",
        },
    }  # fmt: skip
