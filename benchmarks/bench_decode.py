"""Benchmark of decoding, images per second on one core: cvbatch, OpenCV, Pillow, Pillow draft mode.

Run: python benchmarks/bench_decode.py [--rounds N] [--json FILE]
All convert the same JPEG bytes to a 224 × 224 RGB array, in alternation; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import PIL
from PIL import Image, ImageOps

from cvbatch.core.types import Decoded, InputKey
from cvbatch.images.decode import Limits, decode

SIZE = 224
KEY = InputKey(SIZE, SIZE, "stretch")
WORK = {"640 x 480": (480, 640, 60), "12 megapixels": (3000, 4000, 3)}  # height, width, repeats


def photograph(height: int, width: int) -> bytes:
    """Return a JPEG of large shapes, fine texture and noise, about the size of a photograph."""
    rng = np.random.default_rng(0)
    image = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((8, 90), (40, 30), (200, 12)):
        layer = rng.standard_normal((cells * 3 // 4, cells, 3), np.float32) * strength
        image += cv2.resize(layer, (width, height), interpolation=cv2.INTER_CUBIC)
    image += rng.standard_normal((height, width, 1), np.float32) * 3
    file = BytesIO()
    Image.fromarray(np.clip(image + 128, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def cvbatch_decode(data: bytes, limits: Limits = Limits()) -> np.ndarray:  # noqa: B008 - frozen
    decoded = decode(data, [KEY], limits)
    if not isinstance(decoded, Decoded):
        raise SystemExit(f"the benchmark's own image was rejected: {decoded}")
    return decoded.pixels[KEY]


def cvbatch_full(data: bytes) -> np.ndarray:
    return cvbatch_decode(data, Limits(reduced_jpeg=False))


def opencv_full(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise SystemExit("OpenCV rejected the benchmark's own image")
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def pillow_full(data: bytes) -> np.ndarray:
    with Image.open(BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(upright.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def pillow_draft(data: bytes) -> np.ndarray:
    with Image.open(BytesIO(data)) as image:
        image.draft("RGB", (SIZE, SIZE))
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(upright.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


PEERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "cvbatch": cvbatch_decode,
    "cvbatch, full": cvbatch_full,
    "OpenCV, full": opencv_full,
    "Pillow, full": pillow_full,
    "Pillow, draft": pillow_draft,
}


def images_per_s(run: Callable[[bytes], np.ndarray], data: bytes, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run(data)
    return repeats / (time.perf_counter() - start)


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Return {work: {peer: images per second}}."""
    result = {}
    for work, (height, width, repeats) in WORK.items():
        data = photograph(height, width)
        rates: dict[str, list[float]] = {peer: [] for peer in PEERS}
        for _ in range(rounds + 1):
            for peer, run in PEERS.items():
                rates[peer].append(images_per_s(run, data, repeats))
        result[work] = {peer: statistics.median(rates[peer][1:]) for peer in PEERS}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the rates to this file")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    figures = measure(arguments.rounds)
    print(f"{'JPEG to 224 x 224, one core':30}{'images/s':>10}{'speed of cvbatch / peer':>30}")
    for work, rates in figures.items():
        for peer, rate in rates.items():
            print(f"{work + ', ' + peer:30}{rate:10.1f}{rates['cvbatch'] / rate:30.2f}")
    if arguments.json:
        machine = {"processor": platform.machine(), "python": platform.python_version()}
        versions = {"opencv": cv2.__version__, "pillow": PIL.__version__}
        document = {"machine": machine | versions, "images_per_s": figures}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
