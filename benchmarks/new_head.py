"""Lays a new head on the MobileNet of a file: a training job takes no file of other classes.

Run: python -m benchmarks.new_head WEIGHTS OUT.keras --classes N --side N
WEIGHTS: a .keras or .h5 file of MobileNet 0.25 with ImageNet's 1,000 classes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import keras

from cvbatch.models import zoo

ALPHA = 0.25


def with_new_head(weights: str, num_classes: int, side: int) -> keras.Model:
    """Return the network with the file's weights and a random head of `num_classes`."""
    keras.utils.set_random_seed(0)
    size, options = (side, side), {"alpha": ALPHA}
    whole = zoo.load_model("MobileNet", weights, local_file=Path, image_size=size, options=options)
    fresh = zoo.build("MobileNet", num_classes, size, options)
    for mine, theirs in zip(fresh.weights, whole.weights, strict=True):
        if mine.shape == theirs.shape:
            mine.assign(theirs)
    return fresh


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--side", type=int, required=True)
    arguments = parser.parse_args()
    with_new_head(arguments.weights, arguments.classes, arguments.side).save(arguments.out)
    print(json.dumps({"out": str(arguments.out)}))


if __name__ == "__main__":
    main()
