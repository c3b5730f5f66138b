"""Benchmark job: the textbook loop: one image at a time, Grad-CAM with a tape, NMS per class.

Run: python -m benchmarks.textbook_loop --folder DIR --out DIR --images N --take K
    [--heatmaps-only]
With --heatmaps-only it computes labels and heatmap only, from pixels in memory, for the comparison
with Grad-CAM: as printed in textbooks (the function builds its two models in every call), and with
the two models built once.
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
from benchmarks.stamps import Stamps, print_summary, read_events
from cvbatch.models import detectors  # noqa: F401  # registers the detector's own layer

FEATURES = "out_relu"  # MobileNetV2's last feature map


def two_models(model: Any) -> tuple[Any, Any]:
    """Return the classifier split in two: up to the feature map, and the rest."""
    last = model.get_layer(FEATURES)
    features = keras.Model(model.inputs, last.output)
    inputs = x = keras.Input(last.output.shape[1:])
    for layer in model.layers[model.layers.index(last) + 1 :]:
        x = layer(x)
    return features, keras.Model(inputs, x)


def grad_cam(
    model: Any,
    pixels: np.ndarray,  # (1, H, W, 3) float32
    parts: tuple[Any, Any] | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # (1, C), (h, w)
    """Return the scores and the heatmap of the best class; builds the two models if not given."""
    scores = model.predict(pixels, verbose=0)
    features_model, head = parts or two_models(model)
    with tf.GradientTape() as tape:
        features = features_model(pixels)
        tape.watch(features)
        best = head(features)[:, int(scores[0].argmax())]
    gradient = tape.gradient(best, features)
    weights = tf.reduce_mean(gradient, axis=(0, 1, 2)).numpy()
    channels = features.numpy()[0]
    for i in range(channels.shape[-1]):
        channels[..., i] *= weights[i]
    heatmap = np.maximum(channels.mean(axis=-1), 0)
    return scores, heatmap / max(heatmap.max(), 1e-12)


def _as_input(image: Image.Image, model: Any) -> np.ndarray:  # (1, H, W, 3) float32
    height, width = model.input_shape[1:3]
    return np.asarray(image.resize((width, height)), np.float32)[None]


def _mask(image: Image.Image, segmenter: Any) -> dict[str, Any]:
    maps = segmenter.predict(_as_input(image, segmenter), verbose=0)[0]
    mask = Image.fromarray(maps.argmax(axis=-1).astype(np.uint8))
    full = mask.resize(image.size, Image.Resampling.NEAREST)
    file = BytesIO()
    full.save(file, "PNG")
    class_id, area = np.unique(np.asarray(full), return_counts=True)
    areas = [
        {"class_id": c, "area": a} for c, a in zip(class_id.tolist(), area.tolist(), strict=True)
    ]
    return {"mask": file.getvalue(), "areas": areas}


def _boxes(image: Image.Image, detector: Any, threshold: float) -> list[dict[str, float]]:
    pixels = _as_input(image, detector)
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


def three_tasks(folder: Path, out: Path, num_images: int, take: int) -> None:
    """Process images one by one; print the rate without the first, which builds graphs."""
    load = keras.saving.load_model
    classifier = load(model_file(folder, "classifier"), compile=False)
    segmenter = load(model_file(folder, "segmenter"), compile=False)
    detector = load(model_file(folder, "detector"), compile=False)
    threshold = facts(folder)["score_threshold"]
    table = pq.read_table(shards(folder, num_images))
    stamps, rows = Stamps(str(out)), []
    for row in table["image"].slice(0, take).to_pylist():
        image = Image.open(BytesIO(row["bytes"])).convert("RGB")
        scores, heatmap = grad_cam(classifier, _as_input(image, classifier))
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
        stamps.add(1)
    pq.write_table(pa.Table.from_pylist(rows), out / "result.parquet")
    print_summary(read_events(out), len(rows))


def heatmaps_only(folder: Path, num_images: int) -> None:
    """Print images per second for labels and heatmap from pixels in memory, for both variants."""
    model = keras.saving.load_model(model_file(folder, "classifier"), compile=False)
    pixels = np.random.default_rng(0).uniform(0, 255, (1, SIDE, SIDE, 3)).astype(np.float32)
    kept = two_models(model)
    grad_cam(model, pixels, kept)
    seconds: dict[str, list[float]] = {"steady": [], "models_kept": []}
    for _ in range(num_images):
        for name, parts in (("steady", None), ("models_kept", kept)):
            begun = time.perf_counter()
            grad_cam(model, pixels, parts)
            seconds[name].append(time.perf_counter() - begun)
    rates = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    print(json.dumps({"images": num_images, **rates}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True, help="number of images of the set")
    parser.add_argument("--take", type=int, required=True, help="number of images to process")
    parser.add_argument("--heatmaps-only", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.heatmaps_only:
        heatmaps_only(arguments.folder, arguments.take)
    else:
        three_tasks(arguments.folder, arguments.out, arguments.images, arguments.take)


if __name__ == "__main__":
    main()
