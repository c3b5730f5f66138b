"""Benchmark of non-maximum suppression, ms per image on one core: cvbatch and three peers.

Run: python benchmarks/bench_suppression.py [--rounds N] [--json FILE]
10,000 boxes × 20 classes, and the outputs of two detectors; score threshold 0.25, IoU threshold
0.6, at most 300 detections, per class. Peers: a NumPy loop, OpenCV, TensorFlow. All get the same
arrays, in alternation; medians are compared. The table also has the fraction of detections that a
peer has in common with cvbatch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import numpy as np

from cvbatch.geometry.boxes import iou, non_max_suppression

NUM_BOXES, NUM_CLASSES = 10_000, 20
SCORE_THRESHOLD, IOU_THRESHOLD, MAX_DETECTIONS = 0.25, 0.6, 300
OPENCV_TOP_K = 2 * MAX_DETECTIONS
HEIGHT, WIDTH = 480, 640

Found = set[tuple[float, ...]]  # of (score, x_min, y_min, x_max, y_max)
Suppress = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # → boxes, scores


def random_boxes(rng: np.random.Generator, num: int) -> np.ndarray:  # (N, 4) float32
    center = rng.random((num, 2)) * (WIDTH, HEIGHT)
    size = rng.random((num, 2)) * (WIDTH / 3, HEIGHT / 3) + 4
    return np.concatenate([center - size / 2, center + size / 2], axis=1).astype(np.float32)


def works() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return boxes (N, 4) and scores (N, C) of each case."""
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, NUM_BOXES)
    scores = rng.random((NUM_BOXES, NUM_CLASSES), np.float32)
    near = random_boxes(rng, 12)[rng.integers(0, 12, NUM_BOXES)]
    near = (near + rng.normal(0, 3, near.shape)).astype(np.float32)
    trained = scores**60  # most near 0, as for a trained network
    return {
        "uniform": (boxes, scores),
        "clustered": (near, scores),
        "few above the threshold": (near, trained.astype(np.float32)),
        "none above the threshold": (boxes, scores * np.float32(0.2)),
        "YOLO, 8,400 × 80": head(rng, 8400, 80),
        "RetinaNet, 76,725 × 80": head(rng, 76_725, 80),
    }


def head(rng: np.random.Generator, num: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes and scores as of a trained detector: 200 scores are above the threshold."""
    scores = rng.random((num, num_classes), np.float32) * np.float32(0.9 * SCORE_THRESHOLD)
    above = rng.choice(scores.size, 200, replace=False)
    scores.reshape(-1)[above] = rng.random(200) * (1 - SCORE_THRESHOLD) + SCORE_THRESHOLD
    return random_boxes(rng, num), scores


def cvbatch_suppress(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    row, class_id = non_max_suppression(
        boxes,
        scores,
        score_threshold=SCORE_THRESHOLD,
        iou_threshold=IOU_THRESHOLD,
        max_detections=MAX_DETECTIONS,
    )
    return boxes[row], scores[row, class_id]


def numpy_loop(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the kept boxes: per class, the best one suppresses the others."""
    rows, kept_scores = [], []
    for of_class in scores.T:
        left = np.flatnonzero(of_class >= SCORE_THRESHOLD)
        left = left[np.argsort(-of_class[left])]
        for _ in range(MAX_DETECTIONS):
            if not left.size:
                break
            best, left = left[0], left[1:]
            rows.append(best)
            kept_scores.append(of_class[best])
            left = left[iou(boxes[[best]], boxes[left])[0] <= IOU_THRESHOLD]
    kept = np.array(kept_scores, np.float32)
    order = np.argsort(-kept, kind="stable")[:MAX_DETECTIONS]
    return boxes[np.array(rows, np.int64)[order]], kept[order]


def opencv(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the kept boxes of the best `OPENCV_TOP_K`: for all boxes OpenCV needs a minute."""
    row, class_id = np.nonzero(scores >= SCORE_THRESHOLD)
    above = scores[row, class_id]
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(
        xywh[row].astype(np.float64),
        above,
        class_id,
        SCORE_THRESHOLD,
        IOU_THRESHOLD,
        top_k=OPENCV_TOP_K,
    )
    best = np.array(kept, np.int64).reshape(-1)
    best = best[np.argsort(-above[best], kind="stable")][:MAX_DETECTIONS]
    return boxes[row[best]], above[best]


def tensorflow() -> Suppress | None:
    """Return TensorFlow's compiled suppression on one thread; None without TensorFlow."""
    try:
        import tensorflow as tf
    except ImportError:
        return None
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    @tf.function
    def combined(boxes: tf.Tensor, scores: tf.Tensor) -> tuple[tf.Tensor, ...]:
        found = tf.image.combined_non_max_suppression(
            boxes[None, :, None],
            scores[None],
            MAX_DETECTIONS,
            MAX_DETECTIONS,
            IOU_THRESHOLD,
            SCORE_THRESHOLD,
            clip_boxes=False,
        )
        return found[0][0], found[1][0], found[3][0]

    def call(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept, kept_scores, num = (value.numpy() for value in combined(boxes, scores))
        return kept[:num], kept_scores[:num]

    return call


def found(detections: tuple[np.ndarray, np.ndarray]) -> Found:
    boxes, scores = detections
    return {(float(s), *map(float, corners)) for corners, s in zip(boxes, scores, strict=True)}


def measure(peers: dict[str, Suppress], rounds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for case, (boxes, scores) in works().items():
        taken: dict[str, list[float]] = {name: [] for name in peers}
        detections_of = {name: found(call(boxes, scores)) for name, call in peers.items()}
        for _ in range(rounds):
            for name, call in peers.items():
                start = time.perf_counter()
                call(boxes, scores)
                taken[name].append(time.perf_counter() - start)
        ours = statistics.median(taken["cvbatch"])
        for name in peers:
            seconds = statistics.median(taken[name])
            union = detections_of[name] | detections_of["cvbatch"]
            common = (
                len(detections_of[name] & detections_of["cvbatch"]) / len(union) if union else 1.0
            )
            rows.append(
                {
                    "case": case,
                    "peer": name,
                    "ms": round(seconds * 1e3, 3),
                    "ratio": round(seconds / ours, 2),
                    "detections": len(detections_of[name]),
                    "in_common": round(common, 4),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the times to this file")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    peers: dict[str, Suppress] = {
        "cvbatch": cvbatch_suppress,
        "NumPy, greedy per class": numpy_loop,
        f"OpenCV, best {OPENCV_TOP_K} only": opencv,
    }
    combined = tensorflow()
    if combined is not None:
        peers["TensorFlow, combined NMS"] = combined
    rows = measure(peers, arguments.rounds)
    print(f"{'case':26}{'peer':26}{'ms':>9}{'ratio':>8}{'boxes':>7}{'common':>8}")
    for row in rows:
        print(
            f"{row['case']:26}{row['peer']:26}{row['ms']:9.2f}{row['ratio']:8.2f}"
            f"{row['detections']:7}{row['in_common']:8.3f}"
        )
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
