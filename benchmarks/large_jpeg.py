"""Benchmark of 12-megapixel JPEGs to 224 × 224 on one core: reduced and full decode.

Run: python -m benchmarks.large_jpeg --folder DIR [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import cv2

from benchmarks.settings import SIDE
from cvbatch.core.types import Decoded, InputKey
from cvbatch.images.decode import Limits, decode

KEY = InputKey(SIDE, SIDE, "stretch")
WAYS = {"reduced": Limits(reduced_jpeg=True), "full": Limits(reduced_jpeg=False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    images = [path.read_bytes() for path in sorted((arguments.folder / "large").glob("*.jpg"))]
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way, limits in WAYS.items():
            begun = time.perf_counter()
            for data in images:
                if not isinstance(decode(data, [KEY], limits), Decoded):
                    raise SystemExit("the benchmark's own image was rejected")
            seconds[way].append((time.perf_counter() - begun) / len(images))
    ratio = statistics.median(
        full / reduced for full, reduced in zip(seconds["full"], seconds["reduced"], strict=True)
    )
    rates = {way: 1 / statistics.median(values) for way, values in seconds.items()}
    print(json.dumps({"images_per_s": rates, "ratio": ratio}))


if __name__ == "__main__":
    main()
