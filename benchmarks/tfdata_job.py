"""Benchmark job: classification with `tf.data` and `model.predict`; decoding and prefetch overlap.

Run: python -m benchmarks.tfdata_job --folder DIR --out DIR --images N
Forward pass only, no heatmap.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from benchmarks.frozen import best_classes
from benchmarks.settings import PEER_BATCH, SIDE, TOP_K, model_file, shards
from benchmarks.stamps import Stamps, print_summary, read_events


class _Stamping(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    def __init__(self, folder: str) -> None:
        super().__init__()
        self._stamps = Stamps(folder)

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self._stamps.add(len(logs["outputs"]))


def _encoded(files: list[str]) -> Iterator[bytes]:
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(PEER_BATCH, columns=["image.bytes"]):
            yield from batch.column(0).field("bytes").to_pylist()


def _paths(files: list[str]) -> list[str]:
    tables = [pq.ParquetFile(file).read(columns=["image.path"]) for file in files]
    return [row["path"] for table in tables for row in table["image"].to_pylist()]


def _decoded(data: tf.Tensor) -> tf.Tensor:  # () string → (224, 224, 3) float32
    return tf.image.resize(tf.io.decode_jpeg(data, channels=3), (SIDE, SIDE))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    files = shards(arguments.folder, arguments.images)
    model = keras.saving.load_model(model_file(arguments.folder, "classifier"), compile=False)
    images = (
        tf.data.Dataset.from_generator(
            lambda: _encoded(files), output_signature=tf.TensorSpec((), tf.string)
        )
        .map(_decoded, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(PEER_BATCH)
        .prefetch(tf.data.AUTOTUNE)
    )
    stamping = _Stamping(str(arguments.out))
    scores = np.asarray(model.predict(images, verbose=0, callbacks=[stamping]))
    class_id, score = best_classes(scores, TOP_K)
    result = {"path": _paths(files), "class_id": class_id.tolist(), "score": score.tolist()}
    pq.write_table(pa.table(result), arguments.out / "result.parquet")
    print_summary(read_events(arguments.out), len(scores))


if __name__ == "__main__":
    main()
