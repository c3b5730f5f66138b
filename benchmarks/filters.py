"""Benchmark of filter patterns: 64 filters of a layer in batches, and one after another.

Run: python -m benchmarks.filters [--json FILE]
Two loops process one filter after another. The textbook loop passes the filter's number to a
`tf.function`, which is traced again for every filter; the other loop is traced once, the fastest
form of a loop. Both end the network at the layer, as users do. Only a few filters of the loops are
timed, because each takes the same time, in alternation with ours in one process. Then ours is timed
with other batch sizes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cvbatch.explain.filters import AscentSettings, filter_patterns, initial_noise
from cvbatch.explain.layer_selection import select_layers, truncate_model
from cvbatch.models import registry

# network → a layer of 64 filters, image side: from shallow and wide to deep and narrow
LAYERS = {
    "MobileNetV2": ("block_6_project", 128),
    "ResNet50": ("conv2_block1_2_conv", 128),
    "demo_classifier": ("separable_conv2d_5", 96),
    "VGG16": ("block1_conv2", 128),
}
BATCH = 16  # the default of the job file
OTHER_BATCHES = (4, 8, 32, 64)
FILTERS, STEPS, STEP = 64, 30, 10.0
ALONE = 4  # filters of a loop that are timed per round

Step = Callable[[tf.Tensor, Any], tf.Tensor]


def plain_step(extractor: keras.Model) -> Callable[[tf.Tensor, Any], tf.Tensor]:
    """Return the textbook step of gradient ascent for one image and one filter."""

    def step(image: tf.Tensor, number: Any) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(image)
            activation = extractor(image * 255, training=False)
            loss = tf.reduce_mean(activation[:, 2:-2, 2:-2, number])
        return image + STEP * tf.math.l2_normalize(tape.gradient(loss, image))

    return step


def one_by_one(step: Step, side: int, numbers: list[Any]) -> tuple[float, np.ndarray]:
    """Return seconds per filter, and the pictures (N, H, W, 3)."""
    begun = time.perf_counter()
    pictures = []
    for filter_id, number in enumerate(numbers):
        image = tf.constant(initial_noise(0, filter_id, (side, side))[None])
        for _ in range(STEPS):
            image = step(image, number)
        pictures.append(image.numpy()[0])
    return (time.perf_counter() - begun) / len(numbers), np.stack(pictures)


def together(model: keras.Model, path: str, side: int, batch: int) -> tuple[float, np.ndarray]:
    """Return seconds per filter including tracing, and the pictures of all filters."""
    begun = time.perf_counter()
    found = filter_patterns(
        model,
        lambda pixels: pixels,
        path,
        FILTERS,
        (side, side),
        AscentSettings(STEPS, STEP, batch, 0),
    )
    return (time.perf_counter() - begun) / FILTERS, found.images


def measure(network: str, layer: str, side: int, rounds: int) -> dict[str, Any]:
    """Return seconds per filter of every variant, and the speed-up of ours, as medians."""
    keras.utils.set_random_seed(0)
    model = registry.build(network, image_size=(side, side))
    (path,) = select_layers(model, [layer], (), "layer")
    cut = truncate_model(model, [path])
    extractor = keras.Model(cut.inputs[0], cut.outputs[0])  # one tensor, not a list of one
    once = tf.function(plain_step(extractor))
    once(tf.constant(initial_noise(0, 0, (side, side))[None]), tf.constant(0))
    numbers = [tf.constant(number) for number in range(ALONE)]
    seconds: dict[str, list[float]] = {"textbook": [], "traced once": [], "together": []}
    for _ in range(rounds):
        again = tf.function(plain_step(extractor))  # not traced yet, as in the textbook
        seconds["textbook"].append(one_by_one(again, side, list(range(ALONE)))[0])
        took, alone = one_by_one(once, side, numbers)
        seconds["traced once"].append(took)
        took, pictures = together(model, path, side, BATCH)
        seconds["together"].append(took)
    differ = np.abs(pictures[:ALONE] - alone).max(axis=(1, 2, 3))
    by_batch = {batch: together(model, path, side, batch)[0] for batch in OTHER_BATCHES}
    by_batch[BATCH] = statistics.median(seconds["together"])
    return {
        "layer": path,
        "side": side,
        "seconds_a_filter": {name: statistics.median(took) for name, took in seconds.items()},
        "seconds_a_filter_by_batch": dict(sorted(by_batch.items())),
        "times_textbook": _ratio(seconds, "textbook", "together"),
        "times_traced_once": _ratio(seconds, "traced once", "together"),
        "largest_difference": [float(f"{one:.1e}") for one in differ],
    }


def _ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Return the median speed-up, computed within rounds that had the same machine state."""
    pairs = zip(seconds[slow], seconds[fast], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=LAYERS, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    for network in arguments.only or LAYERS:
        results[network] = measure(network, *LAYERS[network], arguments.rounds)
        print(network, json.dumps(results[network]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
