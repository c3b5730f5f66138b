"""The three tasks as textbooks do them: one image at a time, Grad-CAM with a tape, boxes by class.

Run: python -m benchmarks.textbook_loop --folder DIR --out DIR --images N [--heatmaps-only]
The last line tells images a second; with --heatmaps-only of labels and heatmap alone, from
pixels in memory: what Grad-CAM is compared with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from PIL import Image

from benchmarks.frozen import best_classes
from benchmarks.settings import (
    IOU_THRESHOLD,
    MAX_DETECTIONS,
    SIDE,
    TOP_K,
    facts,
    model_file,
    shards,
)
from benchmarks.stamps import Stamps, read_events, tell
from cvbatch.models import detectors  # noqa: F401  # registers the detector's own layer

FEATURES = "out_relu"  # MobileNetV2's last feature map


class GradCam:
    """Two models over the classifier's layers: up to the feature map, and from there on."""

    def __init__(self, model: Any) -> None:
        self._model = model
        last = model.get_layer(FEATURES)
        self._features = keras.Model(model.inputs, last.output)
        inputs = x = keras.Input(last.output.shape[1:])
        for layer in model.layers[model.layers.index(last) + 1 :]:
            x = layer(x)
        self._head = keras.Model(inputs, x)

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (1, H, W, 3) float32
        """Return the scores (1, C) and the best class's heatmap (h, w)."""
        scores = self._model.predict(pixels, verbose=0)
        features = self._features(pixels)
        with tf.GradientTape() as tape:
            tape.watch(features)
            best = self._head(features)[:, int(scores[0].argmax())]
        gradient = tape.gradient(best, features)
        weights = tf.reduce_mean(gradient, axis=(0, 1, 2)).numpy()
        channels = features.numpy()[0]
        for i in range(channels.shape[-1]):
            channels[..., i] *= weights[i]
        heatmap = np.maximum(channels.mean(axis=-1), 0)
        return scores, heatmap / max(heatmap.max(), 1e-12)


def _fed(image: Image.Image, model: Any) -> np.ndarray:  # (1, H, W, 3) float32
    height, width = model.input_shape[1:3]
    return np.asarray(image.resize((width, height)), np.float32)[None]


def _mask(image: Image.Image, segmenter: Any) -> dict[str, Any]:
    maps = segmenter.predict(_fed(image, segmenter), verbose=0)[0]
    mask = Image.fromarray(maps.argmax(axis=-1).astype(np.uint8))
    full = mask.resize(image.size, Image.Resampling.NEAREST)
    file = BytesIO()
    full.save(file, "PNG")
    class_id, area = np.unique(np.asarray(full), return_counts=True)
    return {"mask": file.getvalue(), "areas": dict(zip(class_id.tolist(), area.tolist()))}  # noqa: B905


def _boxes(image: Image.Image, detector: Any, threshold: float) -> list[dict[str, float]]:
    pixels = _fed(image, detector)
    found = detector.predict(pixels, verbose=0)
    boxes, scores = found["boxes"][0], found["scores"][0]
    scale = np.array([image.width / pixels.shape[2], image.height / pixels.shape[1]] * 2)
    kept = []
    for class_id in range(scores.shape[1]):
        order = tf.image.non_max_suppression(
            boxes, scores[:, class_id], MAX_DETECTIONS, IOU_THRESHOLD, threshold
        ).numpy()
        for i in order:
            x_min, y_min, x_max, y_max = (boxes[i] * scale).tolist()
            kept.append(
                {
                    "x_min": x_min, "y_min": y_min, "x_max": x_max, "y_max": y_max,
                    "class_id": class_id, "score": float(scores[i, class_id]),
                }
            )  # fmt: skip
    return sorted(kept, key=lambda box: -box["score"])[:MAX_DETECTIONS]


def three_tasks(folder: Path, out: Path, num_images: int) -> None:
    """Do the work image by image; tell the rate without the first one, which builds graphs."""
    load = keras.saving.load_model
    grad_cam = GradCam(load(model_file(folder, "classifier"), compile=False))
    segmenter = load(model_file(folder, "segmenter"), compile=False)
    detector = load(model_file(folder, "detector"), compile=False)
    threshold = facts(folder)["score_threshold"]
    table = pq.read_table(shards(folder, num_images))
    stamps, rows = Stamps(str(out)), []
    for row in table["image"].to_pylist()[:num_images]:
        image = Image.open(BytesIO(row["bytes"])).convert("RGB")
        scores, heatmap = grad_cam(np.asarray(image.resize((SIDE, SIDE)), np.float32)[None])
        class_id, score = best_classes(scores, TOP_K)
        rows.append(
            {
                "path": row["path"],
                "class_id": class_id[0].tolist(),
                "score": score[0].tolist(),
                "heatmap": heatmap.ravel().tolist(),
                **_mask(image, segmenter),
                "boxes": _boxes(image, detector, threshold),
            }
        )
        rows[-1]["areas"] = list(rows[-1]["areas"].items())
        stamps.add(1)
    pq.write_table(pa.Table.from_pylist(rows), out / "result.parquet")
    tell(read_events(out), len(rows))


def heatmaps_only(folder: Path, num_images: int) -> None:
    """Tell the seconds of one image, labels and heatmap, from pixels in memory; the median."""
    grad_cam = GradCam(keras.saving.load_model(model_file(folder, "classifier"), compile=False))
    pixels = np.random.default_rng(0).uniform(0, 255, (1, SIDE, SIDE, 3)).astype(np.float32)
    grad_cam(pixels)
    seconds = []
    for _ in range(num_images):
        begun = time.perf_counter()
        grad_cam(pixels)
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({"images": num_images, "steady": 1 / statistics.median(seconds)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--heatmaps-only", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.heatmaps_only:
        heatmaps_only(arguments.folder, arguments.images)
    else:
        three_tasks(arguments.folder, arguments.out, arguments.images)


if __name__ == "__main__":
    main()
