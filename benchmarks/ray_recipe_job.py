"""Benchmark job: classification with Ray Data's documented recipe: read, map, map_batches, write.

Run: python -m benchmarks.ray_recipe_job --folder DIR --out DIR --images N
A class with the Keras model runs in a pool of two actors and calls `model(batch)`, as in Ray's own
example. Each actor reserves half a CPU: with one CPU each, no core would be left for reading, and
the job would never end. Forward pass only, no heatmap.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from benchmarks.settings import CORES, PEER_BATCH, SIDE, TOP_K, model_file, shards_folder
from benchmarks.stamps import Stamps, print_summary, read_events


def decode(row: dict[str, Any]) -> dict[str, Any]:
    import cv2

    image = cv2.imdecode(np.frombuffer(row["image"]["bytes"], np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError(f"{row['image']['path']} cannot be decoded")
    pixels = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return {"path": row["image"]["path"], "pixels": pixels}


class Classifier:
    def __init__(self, model_path: str, out: str) -> None:
        import keras

        self._model = keras.saving.load_model(model_path, compile=False)
        self._stamps = Stamps(out)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        from benchmarks.frozen import best_classes

        scores = self._model(batch["pixels"].astype(np.float32), training=False).numpy()
        class_id, score = best_classes(scores, TOP_K)
        self._stamps.add(len(scores))
        return {"path": batch["path"], "class_id": class_id, "score": score}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    ray.init(num_cpus=CORES, include_dashboard=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    (
        ray.data.read_parquet(str(shards_folder(arguments.folder, arguments.images)))
        .map(decode)
        .map_batches(
            Classifier,
            fn_constructor_args=(
                str(model_file(arguments.folder, "classifier")),
                str(arguments.out),
            ),
            batch_size=PEER_BATCH,
            compute=ray.data.ActorPoolStrategy(size=CORES),
            num_cpus=0.5,
        )
        .write_parquet(str(arguments.out / "result"))
    )
    ray.shutdown()
    events = read_events(arguments.out)
    print_summary(events, sum(count for _, count, _ in events))


if __name__ == "__main__":
    main()
