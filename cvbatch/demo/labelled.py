"""Write rendered scenes as labelled Parquet, the input of a training job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cvbatch.demo.render import Scene, encode_jpeg, load_backgrounds, render_scene, scene_seed
from cvbatch.demo.shapes import CLASSES, MASK_CLASSES
from cvbatch.importers.annotations import AnnotatedDataset
from cvbatch.importers.shard_writer import ShardWriter
from cvbatch.importers.validation import LabelledImage
from cvbatch.storage.store import Storage

_DATASET = AnnotatedDataset(
    columns=("labels", "boxes", "mask"),
    classes={"labels": CLASSES, "boxes": CLASSES, "mask": MASK_CLASSES},
    is_multi_label=False,
    batches=lambda report: iter(()),
)
_SHARD_IMAGES = 256


def write_labelled(folder: str | Path, splits: Mapping[str, tuple[int, int]]) -> None:
    """Write scenes with labels, boxes and masks into `folder`, in the format of `cvbatch import`.

    The same splits give the same bytes.

    Args:
        folder: an empty folder.
        splits: split → (seed of its archive, number of scenes).
    """
    backgrounds = load_backgrounds()
    writer = ShardWriter(Storage(), str(folder), _DATASET, "rendered", _SHARD_IMAGES)
    for split, (seed, count) in splits.items():
        for i in range(count):
            scene = render_scene(scene_seed(seed, i), backgrounds)
            writer.add(_labelled_image(f"{split}/scene-{i:05d}.jpg", split, scene))
    writer.close()


def _labelled_image(image_id: str, split: str, scene: Scene) -> LabelledImage:
    height, width = scene.mask.shape
    return LabelledImage(
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
