"""Draws a result for a person: a picture sheet of images with what the models saw in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from cvbatch.arrays.drawing import contact_sheet, draw_boxes, paint_mask
from cvbatch.arrays.heatmaps import overlay
from cvbatch.arrays.masks import decode_png
from cvbatch.data import store
from cvbatch.data.decode import Limits, decode
from cvbatch.types import Failure, InputKey

_MASK_OPACITY = 0.5
_LIMITS = Limits()


def read_result(folder: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a result on this machine, in the order of its files' names."""
    dataset = ds.dataset(str(folder), format="parquet")
    return dataset.to_table(columns=None if columns is None else list(columns))


def picture_sheet(rows: pa.Table, num_images: int) -> np.ndarray:  # (H, W, 3) uint8 RGB
    """Return up to `num_images` images of a result, each with its boxes, mask and heatmap.

    The images must be files; those that failed come last, as a grey tile with the reason.
    """
    said = rows.slice(0, num_images).to_pylist()
    tiles, captions = [], []
    for row in sorted(said, key=lambda row: row["status"] == "failed"):
        for tile, caption in _tiles(row):
            tiles.append(tile)
            captions.append(caption)
    return contact_sheet(tiles, captions, columns=6)


def write_png(path: Path, image: np.ndarray) -> None:  # (H, W, 3) uint8 RGB
    """Write a picture."""
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    path.write_bytes(encoded.tobytes())


def _tiles(row: dict[str, Any]) -> list[tuple[np.ndarray, str]]:
    """Return an image with its boxes, under its mask, under its heatmap; as many as there are."""
    name = Path(row["image_id"]).name
    if row["status"] == "failed":
        return [(np.full((180, 240, 3), 200, np.uint8), f"{name}: {row['error']['kind']}")]
    image = _pixels(row["uri"], row["height"], row["width"])
    boxes = row.get("boxes") or []
    xyxy = np.array([[b["x_min"], b["y_min"], b["x_max"], b["y_max"]] for b in boxes], np.float32)
    boxed = draw_boxes(
        image,
        xyxy.reshape(-1, 4),
        [box["label"] for box in boxes],
        np.array([box["score"] for box in boxes], np.float32),
        # a mask's class 0 is the background: one further, a box has its object's colour
        np.array([box["class_id"] for box in boxes], np.int64) + 1,
    )
    tiles = [(boxed, name)]
    mask = (row.get("mask") or {}).get("bytes")
    if mask is not None:
        found = ", ".join(area["label"] for area in row["mask_areas"][:3])
        tiles.append((paint_mask(image, _fitted(decode_png(mask), image), _MASK_OPACITY), found))
    for heatmap in (row.get("heatmaps") or [])[:1]:
        values = np.array(heatmap["values"], np.float32)
        grid = values.reshape(heatmap["height"], heatmap["width"])
        tiles.append((overlay(image, grid), f"{heatmap['label']} {heatmap['score']:.2f}"))
    return tiles


def _fitted(mask: np.ndarray, image: np.ndarray) -> np.ndarray:  # (h, w) → (H, W) uint8
    """Return the mask at the image's size, where the job left it at the network's."""
    height, width = image.shape[:2]
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _pixels(uri: str, height: int, width: int) -> np.ndarray:  # (H, W, 3) uint8
    key = InputKey(height, width, "stretch")
    decoded = decode(store.read_bytes(uri), [key], _LIMITS)
    if isinstance(decoded, Failure):
        raise ValueError(f"{uri} was decoded by the job, and now is {decoded.kind}")
    return decoded.pixels[key]
