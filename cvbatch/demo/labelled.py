"""Rendered scenes are written here as labelled Parquet, so that any training job can learn them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cvbatch.demo.render import Scene, encode_jpeg, load_backgrounds, render_scene, scene_seed
from cvbatch.demo.shapes import CLASSES, MASK_CLASSES
from cvbatch.importers.annotations import AnnotatedDataset
from cvbatch.importers.shard_writer import ShardWriter
from cvbatch.importers.validation import Row
from cvbatch.storage.store import Storage

_TRUTH = AnnotatedDataset(
    columns=("labels", "boxes", "mask"),
    classes={"labels": CLASSES, "boxes": CLASSES, "mask": MASK_CLASSES},
    is_multi_label=False,
    batches=lambda report: iter(()),
)
_SHARD_IMAGES = 256


def write_labelled(folder: str | Path, splits: Mapping[str, tuple[int, int]]) -> None:
    """Write scenes with their labels, boxes and masks below `folder`, as an import would.

    splits: split → (seed of its archive, number of scenes). The same splits give the same bytes.
    """
    backgrounds = load_backgrounds()
    writer = ShardWriter(Storage(), str(folder), _TRUTH, "rendered", _SHARD_IMAGES)
    for split, (seed, count) in splits.items():
        for i in range(count):
            scene = render_scene(scene_seed(seed, i), backgrounds)
            writer.add(_row(f"{split}/scene-{i:05d}.jpg", split, scene))
    writer.close()


def _row(image_id: str, split: str, scene: Scene) -> Row:
    height, width = scene.mask.shape
    return Row(
        image_id=image_id,
        data=encode_jpeg(scene.image),
        width=width,
        height=height,
        split=split,
        labels=[(scene.label, 1.0)],
        boxes=scene.boxes,
        class_id=scene.box_class_id,
        score=np.ones(len(scene.boxes), np.float32),
        is_crowd=np.zeros(len(scene.boxes), bool),
        mask=scene.mask,
    )
