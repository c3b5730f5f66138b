"""Rendered labels equal the scenes, in the format that a training job reads."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cvbatch.datasets.reader import LabelSpec, scan_dataset
from cvbatch.demo.labelled import write_labelled
from cvbatch.demo.render import load_backgrounds, render_scene, scene_seed
from cvbatch.demo.shapes import CLASSES, MASK_CLASSES
from cvbatch.images.masks import decode_png
from cvbatch.storage.store import Storage

SPLITS = {"train": (5, 4), "test": (6, 2)}
SIDES = ("x_min", "y_min", "x_max", "y_max")


def test_no_scenes_write_no_file(tmp_path):
    write_labelled(tmp_path, {"train": (5, 0)})
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("column", "classes"), [("labels", CLASSES), ("boxes", CLASSES), ("mask", MASK_CLASSES)]
)
def test_the_labels_of_every_task_are_present(column, classes, tmp_path):
    write_labelled(tmp_path, SPLITS)
    dataset = scan_dataset(Storage(), [str(tmp_path)], LabelSpec(column))
    assert dataset.classes == classes
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 4, "test": 2}
    assert all(split.num_unlabelled == 0 for split in dataset.splits.values())


def test_rows_equal_the_scenes_and_are_reproducible(tmp_path):
    for name in ("one", "two"):
        write_labelled(tmp_path / name, SPLITS)
    one, two = (sorted((tmp_path / name).glob("*.parquet")) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]

    backgrounds = load_backgrounds()
    for split, (seed, count) in SPLITS.items():
        (path,) = (tmp_path / "one").glob(f"part-{split}-*.parquet")
        rows = pq.read_table(path).to_pylist()
        assert len(rows) == count
        for i, row in enumerate(rows):
            scene = render_scene(scene_seed(seed, i), backgrounds)
            assert row["split"] == split
            assert [label["label"] for label in row["labels"]] == [CLASSES[scene.label]]
            boxes = [[box[side] for side in SIDES] for box in row["boxes"]]
            assert boxes == scene.boxes.tolist()
            assert [box["class_id"] for box in row["boxes"]] == scene.box_class_id.tolist()
            np.testing.assert_array_equal(decode_png(row["mask"]["bytes"]), scene.mask)
            image = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
            assert image.shape == scene.image.shape
            assert np.abs(image.astype(int) - scene.image).mean() < 10  # a JPEG of it
