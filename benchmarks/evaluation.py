"""Benchmark of detection metrics against faster-coco-eval: the same boxes, each from its own files.

Run: python -m benchmarks.evaluation --folder DIR [--images N] [--rounds N] [--json FILE]

Needs an otherwise idle machine, faster-coco-eval (`pip install faster-coco-eval`), and more than 14
GB of memory for it at 100,000 images. Every run is a separate process, measured from its start to
its metrics: cvbatch reads Parquet of predictions and ground truth, the peer reads COCO's JSON. Both
are pinned to one core. The metrics of both must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.datasets.schema import label_metadata, label_schema
from cvbatch.importers.shard_writer import ROW_GROUP_ROWS
from cvbatch.planning import manifest
from cvbatch.results import writer as sink
from cvbatch.results.schema import COLUMN_TYPES
from cvbatch.sources.units import UNITS
from cvbatch.storage.store import Storage

BOXES, CLASSES, SIDE = 20, 80, 640
PART_IMAGES, SHARD_IMAGES = 512, 2048
NAMES = tuple(f"class {k}" for k in range(CLASSES))
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
AT_MOST = 2.0  # maximum ratio to the peer's seconds, on one core


class Seconds(NamedTuple):
    """Time of a process; on a busy machine only CPU seconds are meaningful."""

    wall: float
    cpu: float  # without processes started by Ray


def boxes_of(num_images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return true xyxy and classes, predicted xyxy, classes and scores, `BOXES` per image."""
    rng = np.random.default_rng(0)
    count = num_images * BOXES
    corner = rng.random((count, 2)) * (SIDE - 160)
    true = np.concatenate([corner, corner + 8 + rng.random((count, 2)) * 150], 1)
    predicted = true + rng.normal(0, 6, true.shape)
    predicted[:, 2:] = np.maximum(predicted[:, 2:], predicted[:, :2] + 1)
    classes = rng.integers(0, CLASSES, count).astype(np.int32)
    guesses = np.where(rng.random(count) < 0.8, classes, rng.integers(0, CLASSES, count))
    score = rng.random(count).astype(np.float32)
    return true.astype(np.float32), classes, predicted.astype(np.float32), guesses, score


def box_column(xyxy: np.ndarray, class_id: np.ndarray, score: np.ndarray) -> pa.Array:
    """Return a list column with `BOXES` boxes per row."""
    kind = COLUMN_TYPES["boxes"].value_type
    columns = [*xyxy.T, class_id.astype(np.int32)]
    labels = pa.array(NAMES).take(pa.array(class_id))
    arrays = [*map(pa.array, columns), labels, pa.array(score, pa.float32())]
    structs = pa.StructArray.from_arrays(arrays, fields=list(kind))
    return pa.ListArray.from_arrays(np.arange(0, len(xyxy) + 1, BOXES, dtype=np.int32), structs)


def write_both(folder: Path, num_images: int) -> None:
    """Write predictions and ground truth as Parquet and as COCO JSON."""
    true, classes, predicted, guesses, score = boxes_of(num_images)
    ids = [f"{i:07d}.jpg" for i in range(num_images)]
    write_result(folder / "predicted", ids, box_column(predicted, guesses, score))
    write_truth(folder / "truth", ids, box_column(true, classes, np.ones_like(score)))
    image = np.repeat(np.arange(num_images), BOXES)
    rows = zip(image.tolist(), classes.tolist(), xywh(true), strict=True)
    truth = {
        "images": [{"id": i, "width": SIDE, "height": SIDE} for i in range(num_images)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES)],
        "annotations": [
            {"id": n + 1, "image_id": i, "category_id": k, "bbox": b, "area": b[2] * b[3],
             "iscrowd": 0}
            for n, (i, k, b) in enumerate(rows)
        ],
    }  # fmt: skip
    rows = zip(image.tolist(), guesses.tolist(), xywh(predicted), score.tolist(), strict=True)
    detections = [{"image_id": i, "category_id": k, "bbox": b, "score": s} for i, k, b, s in rows]
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "answers.json").write_text(json.dumps(detections))


def xywh(xyxy: np.ndarray) -> list[list[float]]:
    wide = xyxy.astype(np.float64)
    rows: list[list[float]] = np.concatenate([wide[:, :2], wide[:, 2:] - wide[:, :2]], 1).tolist()
    return rows


def write_result(folder: Path, ids: list[str], boxes: pa.Array) -> None:
    offsets = np.array([*range(0, len(ids), PART_IMAGES), len(ids)], np.int64)
    chunk_ids = [f"{c:016x}" for c in range(len(offsets) - 1)]
    plain = {"uri": ids, "image_id": ids, "version": ["v"] * len(ids), "num_rows": [1] * len(ids)}
    units = pa.table(
        [plain.get(name, [0] * len(ids)) for name in UNITS.names],
        schema=UNITS,
    )
    groups = manifest.group_offsets(offsets)
    generation = manifest.Generation(units, offsets, chunk_ids, groups, {"format": "images"})
    manifest.write(Storage(), generation, manifest.generation_uri(str(folder), 0, chunk_ids))
    (folder / "_cvbatch/job.json").write_text("{}")
    model = {"name": "made", "task": "detection", "classes": NAMES, "options": {}}
    document = {"schema_version": SCHEMA_VERSION, "fingerprint": "made", "models": [model]}
    fields = [("image_id", pa.string()), ("status", pa.string()), ("boxes", COLUMN_TYPES["boxes"])]
    schema = pa.schema(
        [*fields, ("error", pa.struct([("stage", pa.string()), ("kind", pa.string())]))]
    )
    for chunk_id, start, end in zip(chunk_ids, offsets, offsets[1:], strict=False):
        count = int(end - start)
        columns = [ids[start:end], ["ok"] * count, boxes.slice(start, count), [None] * count]
        table = pa.table(columns, schema=schema)
        sink.write_part(
            Storage(), str(folder), chunk_id, [table], schema, json.dumps(document).encode()
        )


def write_truth(folder: Path, ids: list[str], boxes: pa.Array) -> None:
    columns = ("boxes", "box_is_crowd")
    schema = label_schema(columns)
    metadata = {"cvbatch": label_metadata(columns, {"boxes": NAMES}, False, "made")}
    folder.mkdir(parents=True)
    for start in range(0, len(ids), SHARD_IMAGES):
        own = ids[start : start + SHARD_IMAGES]
        crowd = pa.ListArray.from_arrays(
            np.arange(0, len(own) * BOXES + 1, BOXES, dtype=np.int32),
            pa.array(np.zeros(len(own) * BOXES, bool)),
        )
        columns = {
            "image_id": own, "image": [None] * len(own), "width": [SIDE] * len(own),
            "height": [SIDE] * len(own), "split": ["test"] * len(own),
            "boxes": boxes.slice(start, len(own)), "box_is_crowd": crowd,
        }  # fmt: skip
        table = pa.table([columns[name] for name in schema.names], schema=schema)
        path = folder / f"part-test-{start // SHARD_IMAGES:05d}.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
            writer.add_key_value_metadata(metadata)


def peer(folder: Path) -> None:
    """Evaluate with faster-coco-eval; print the metrics as JSON."""
    import contextlib

    from faster_coco_eval import COCO, COCOeval_faster

    with contextlib.redirect_stdout(sys.stderr):
        truth = COCO(str(folder / "truth.json"))
        detections = truth.loadRes(str(folder / "answers.json"))
        evaluation = COCOeval_faster(truth, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    print(json.dumps(dict(zip(FIGURES, evaluation.stats[:6].tolist(), strict=True))))


def ours(folder: Path, workers: int, cores: set[int]) -> tuple[Seconds, dict[str, float]]:
    """Return the time of the command, and its metrics."""
    job = {
        "predictions": {"uri": str(folder / "predicted")},
        "truth": {"uri": str(folder / "truth")},
        "sink": {"uri": str(folder / f"out-{workers}")},
        "evaluation": {"bootstrap": 0},  # the peer has no intervals
        "run": {"workers": workers},
    }
    path = folder / f"job-{workers}.yaml"
    path.write_text(yaml.safe_dump(job))
    command = ["-m", "cvbatch", "evaluate", "--config", path, "--overwrite", "--json"]
    seconds, stdout = timed(command, cores)
    figures = {one["metric"]: one["value"] for one in json.loads(stdout)["figures"]}
    return seconds, {name: figures[name] for name in FIGURES}


def timed(words: list[object], cores: set[int]) -> tuple[Seconds, str]:
    """Return the time of a Python process pinned to cores, and its standard output."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Seconds(time.perf_counter() - started, cpu), done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peer", action="store_true", help="run the peer (internal)")
    arguments = parser.parse_args()
    if arguments.peer:
        peer(arguments.folder)
        return
    folder = arguments.folder / f"evaluation-{arguments.images}"
    if not (folder / "answers.json").exists():
        write_both(folder, arguments.images)
    one, two = set(sorted(os.sched_getaffinity(0))[:1]), set(sorted(os.sched_getaffinity(0))[:2])
    again = ["-m", "benchmarks.evaluation", "--peer", "--folder", folder]
    rounds = []
    for _ in range(arguments.rounds):
        theirs, stdout = timed(again, one)
        ours_one, figures = ours(folder, 1, one)
        ours_two, same = ours(folder, 2, two)
        expected = json.loads(stdout)
        differs = max(abs(figures[name] - expected[name]) for name in FIGURES)
        rounds.append(
            {
                "peer_s": theirs.wall, "peer_cpu_s": theirs.cpu,
                "one_core_s": ours_one.wall, "one_core_cpu_s": ours_one.cpu,
                "two_workers_s": ours_two.wall,
                "ratio": ours_one.wall / theirs.wall, "cpu_ratio": ours_one.cpu / theirs.cpu,
                "difference": differs, "same": figures == same,
            }
        )  # fmt: skip
        print(rounds[-1])
    ratio = statistics.median(one["ratio"] for one in rounds)
    print(f"one core / faster-coco-eval: {ratio:.2f}, at most {AT_MOST}: "
          f"{'pass' if ratio <= AT_MOST else 'miss'}")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"images": arguments.images, "rounds": rounds}, indent=1)
        )


if __name__ == "__main__":
    main()
