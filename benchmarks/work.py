"""Create the inputs of the prediction benchmark: photographs in Parquet, and three networks.

Run: python -m benchmarks.work --folder DIR --images N [N ...]
Existing inputs are reused. The photographs are warped crops of scikit-image's samples, with noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.settings import (
    HEIGHT,
    LARGE_HEIGHT,
    LARGE_WIDTH,
    NUM_CLASSES,
    SIDE,
    WIDTH,
    model_file,
    shards_folder,
)

SHARD_ROWS, GROUP_ROWS = 500, 100
DISTINCT = 1000  # later images repeat these, with another comment in the file
LARGE_COUNT = 4
DETECTOR_SIDE, DETECTOR_WIDTH, DETECTOR_CLASSES = 224, 16, 5
SEGMENTER_SIDE, SEGMENTER_WIDTH, SEGMENTER_CLASSES = 200, 32, 3
CANDIDATES = 0.95  # quantile of the detector's scores that is its threshold
LOGIT_DEVIATION = 3.0  # standard deviation of a class over the photographs
SCHEMA = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])


def _photographs() -> list[np.ndarray]:  # each (h, w, 3) uint8 RGB
    from skimage import data

    names = ("astronaut", "cat", "coffee", "rocket", "hubble_deep_field", "retina")
    return [np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in names]


def _render(
    photographs: list[np.ndarray], index: int, height: int, width: int
) -> np.ndarray:  # (height, width, 3) uint8 RGB
    """Return a rotated, scaled, mirrored, tinted part of one photograph, with camera noise."""
    rng = np.random.default_rng(index)
    photograph = photographs[index % len(photographs)]
    h, w = photograph.shape[:2]
    scale = max(height / h, width / w) * rng.uniform(1.0, 1.8)
    turn = np.array(cv2.getRotationMatrix2D((w / 2, h / 2), rng.uniform(-25, 25), scale))
    turn[:, 2] += ((width - w) / 2, (height - h) / 2)
    turn[:, 2] += rng.uniform(-0.15, 0.15, 2) * (width, height)
    image = cv2.warpAffine(
        photograph, turn, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    if rng.random() < 0.5:
        image = cv2.flip(image, 1)
    noise = rng.standard_normal((height, width, 1), np.float32) * 3
    tint = rng.uniform(0.8, 1.2, 3).astype(np.float32)
    lit = image.astype(np.float32) * tint + np.float32(rng.uniform(-15, 15)) + noise
    return np.clip(lit, 0, 255).astype(np.uint8)


def _jpeg(image: np.ndarray) -> bytes:  # (h, w, 3) uint8 RGB →
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    if not done:
        raise SystemExit("OpenCV could not write a JPEG")
    return data.tobytes()


def _commented(jpeg: bytes, comment: str) -> bytes:
    """Return the JPEG with a comment segment after its first marker: the same image."""
    text = comment.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:]


def _images(pool: list[bytes], num_images: int) -> Iterator[dict[str, Any]]:
    for i in range(num_images):
        data = pool[i % len(pool)]
        lap = i // len(pool)
        yield {"bytes": _commented(data, f"lap {lap}") if lap else data, "path": f"{i:06}.jpg"}


def _write_shards(pool: list[bytes], folder: Path, num_images: int) -> None:
    target = shards_folder(folder, num_images)
    beside = target.with_suffix(".part")
    beside.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    count = 0
    for i, image in enumerate(_images(pool, num_images), 1):
        rows.append({"image": image})
        if len(rows) == SHARD_ROWS or i == num_images:
            table = pa.Table.from_pylist(rows, schema=SCHEMA)
            pq.write_table(
                table, beside / f"shard-{count:04}.parquet",
                row_group_size=GROUP_ROWS, compression="none",
            )  # fmt: skip
            rows, count = [], count + 1
    beside.rename(target)


def _write_large(photographs: list[np.ndarray], folder: Path) -> None:
    target = folder / "large"
    beside = target.with_suffix(".part")
    beside.mkdir(parents=True, exist_ok=True)
    for i in range(LARGE_COUNT):
        image = _render(photographs, i, LARGE_HEIGHT, LARGE_WIDTH)
        (beside / f"{i}.jpg").write_bytes(_jpeg(image))
    beside.rename(target)


# ---------------------------------------------------------------- networks


def _write_models(photographs: list[np.ndarray], folder: Path) -> None:
    """Save the three networks, with random weights and calibrated normalisation.

    Random layers with initial batch normalisation give features of 1e-11, so the statistics are
    set to those of the photographs, as after training.
    """
    import keras

    from cvbatch.models import detectors, registry, segmenters

    keras.utils.set_random_seed(0)
    images = np.stack([_render(photographs, i, HEIGHT, WIDTH) for i in range(48)])
    built: dict[str, Callable[[], Any]] = {
        "classifier": lambda: registry.build("MobileNetV2", image_size=(SIDE, SIDE)),
        "segmenter": lambda: segmenters.encoder_decoder(
            SEGMENTER_CLASSES, (SEGMENTER_SIDE, SEGMENTER_SIDE), SEGMENTER_WIDTH
        ),
        "detector": lambda: detectors.yolo(
            DETECTOR_CLASSES, (DETECTOR_SIDE, DETECTOR_SIDE), width=DETECTOR_WIDTH
        ),
    }
    model_file(folder, "classifier").parent.mkdir(parents=True, exist_ok=True)
    for name, build in built.items():
        model = build()
        height, width = model.input_shape[1:3]
        pixels = np.stack([cv2.resize(image, (width, height)) for image in images])
        _calibrate(model, pixels.astype(np.float32))
        if name == "classifier":
            _spread(model, pixels.astype(np.float32))
        if name == "detector":
            scores = model.predict(pixels[:16].astype(np.float32), verbose=0)["scores"]
            threshold = float(np.quantile(scores.max(axis=-1), CANDIDATES))
            known = {"score_threshold": round(threshold, 4)}
        model.save(model_file(folder, name))
    names = "".join(f"class {i:04}\n" for i in range(NUM_CLASSES))
    (folder / "models" / "classes.txt").write_text(names)
    (folder / "models" / "facts.json").write_text(json.dumps(known))


def _calibrate(model: Any, pixels: np.ndarray) -> None:  # (B, H, W, 3) float32, 0..255
    """Set the statistics of every batch normalisation to those of one batch."""
    import keras

    layers = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    model(pixels, training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def _spread(model: Any, pixels: np.ndarray) -> None:  # (B, H, W, 3) float32, 0..255
    """Centre and scale the last layer, so that different photographs get different classes."""
    import keras

    last = model.layers[-1]
    features = keras.Model(model.inputs, last.input).predict(pixels, verbose=0)  # (B, c)
    kernel = last.kernel.numpy()
    kernel *= LOGIT_DEVIATION / (features @ kernel).std(axis=0).mean()
    last.set_weights([kernel, -(features.mean(axis=0) @ kernel)])


def make(folder: Path, sizes: list[int]) -> None:
    """Create missing inputs."""
    photographs = _photographs()
    missing = [n for n in sizes if not shards_folder(folder, n).is_dir()]
    if missing:
        distinct = min(DISTINCT, max(missing))
        pool = [_jpeg(_render(photographs, i, HEIGHT, WIDTH)) for i in range(distinct)]
        for num_images in missing:
            _write_shards(pool, folder, num_images)
    if not (folder / "large").is_dir():
        _write_large(photographs, folder)
    if not (folder / "models" / "facts.json").is_file():
        _write_models(photographs, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", required=True)
    arguments = parser.parse_args()
    make(arguments.folder, arguments.images)
    print(json.dumps({"folder": str(arguments.folder)}))


if __name__ == "__main__":
    main()
