"""Benchmark job: classification with Daft's reader, decoder and writer, and a batched class UDF.

Run: python -m benchmarks.daft_job --folder DIR --out DIR --images N [--plain]
It uses the fastest variant: the model frozen to constants, one process with a TensorFlow thread per
core, rows split into batches before decoding. (With two instances of the class, as processes or
not, Daft 0.7 sent all batches to one of them.) Forward pass only, no heatmap. --plain keeps the
model as a `tf.function`, as a class UDF is usually written.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")

import daft
from daft import DataType, Series, col

from benchmarks.settings import CORES, PEER_BATCH, SIDE, TOP_K, model_file, shards_folder
from benchmarks.stamps import Stamps, print_summary, read_events

LABELS = DataType.struct(
    {"class_id": DataType.list(DataType.int32()), "score": DataType.list(DataType.float32())}
)


@daft.cls(max_concurrency=1, use_process=True)
class Classifier:
    def __init__(self, model_path: str, out: str, is_frozen: bool) -> None:
        from benchmarks.frozen import load_frozen

        self._forward = load_frozen(model_path, CORES, is_frozen)
        self._stamps = Stamps(out)

    @daft.method.batch(return_dtype=LABELS, batch_size=PEER_BATCH)
    def classify(self, images: Series) -> Any:
        import numpy as np

        from benchmarks.frozen import best_classes

        pixels = images.to_arrow().storage.flatten().to_numpy()
        pixels = pixels.reshape(len(images), SIDE, SIDE, 3).astype(np.uint8, copy=False)
        class_id, score = best_classes(self._forward(pixels), TOP_K)
        self._stamps.add(len(pixels))
        pairs = zip(class_id.tolist(), score.tolist(), strict=True)
        return [{"class_id": ids, "score": scores} for ids, scores in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument(
        "--plain", action="store_true", help="use a tf.function, not a frozen graph"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    daft.set_runner_native()
    model = str(model_file(arguments.folder, "classifier"))
    classifier = Classifier(model, str(arguments.out), not arguments.plain)
    source = str(shards_folder(arguments.folder, arguments.images) / "*.parquet")
    encoded = col("image").get("bytes")
    image = encoded.decode_image(mode="RGB").resize(SIDE, SIDE)
    # Row groups of 100 would otherwise be split into 32, 32, 32 and 4.
    frame = daft.read_parquet(source).into_batches(PEER_BATCH)
    frame = frame.select(
        col("image").get("path").alias("path"), classifier.classify(image).alias("labels")
    )
    frame.write_parquet(str(arguments.out / "result"))
    events = read_events(arguments.out)
    print_summary(events, sum(count for _, count, _ in events))


if __name__ == "__main__":
    main()
