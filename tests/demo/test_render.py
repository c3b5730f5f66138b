"""Rendered scenes and their labels, boxes and masks agree to the pixel."""

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from cvbatch.demo import render
from cvbatch.demo.shapes import CLASSES

BACKGROUNDS = (np.full((300, 400, 3), 128, np.uint8),)
SEEDS = range(40)


@pytest.fixture(scope="module")
def scenes() -> list[render.Scene]:
    return [render.render_scene(seed, BACKGROUNDS) for seed in SEEDS]


def test_an_archive_without_scenes_has_ground_truth_and_broken_files(tmp_path):
    render.render_archive(tmp_path, 0, seed=1)

    assert pq.read_table(tmp_path / "truth.parquet").num_rows == 0
    assert list((tmp_path / "images/scenes").iterdir()) == []
    assert sorted(p.name for p in (tmp_path / "images/broken").iterdir()) == [
        "empty.png",
        "not-an-image.jpg",
        "truncated.jpg",
    ]


def test_archives_depend_on_the_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        render.render_archive(tmp_path / name, 2, seed)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]

    assert len(files) >= 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    for scene in ("scene-00000.jpg", "scene-00001.jpg"):
        first, second = (tmp_path / name / "images/scenes" / scene for name in "ac")
        assert first.read_bytes() != second.read_bytes()


def test_a_longer_archive_starts_with_the_shorter_one(tmp_path):
    render.render_archive(tmp_path / "short", 1, seed=3)
    render.render_archive(tmp_path / "long", 2, seed=3)

    first = "images/scenes/scene-00000.jpg"
    assert (tmp_path / "short" / first).read_bytes() == (tmp_path / "long" / first).read_bytes()


def test_the_ground_truth_equals_the_scenes(tmp_path):
    render.render_archive(tmp_path, 3, seed=4)
    rows = pq.read_table(tmp_path / "truth.parquet").to_pylist()
    backgrounds = render.load_backgrounds()

    for i, row in enumerate(rows):
        scene = render.render_scene(render.scene_seed(4, i), backgrounds)
        stored = cv2.imread(str(tmp_path / "images" / row["image_id"]), cv2.IMREAD_COLOR_RGB)
        mask = cv2.imdecode(np.frombuffer(row["mask"]["bytes"], np.uint8), cv2.IMREAD_UNCHANGED)
        assert (row["height"], row["width"]) == stored.shape[:2] == scene.mask.shape
        assert np.abs(stored.astype(int) - scene.image).mean() < 8  # a JPEG of it
        np.testing.assert_array_equal(mask, scene.mask)
        assert row["label"] == CLASSES[scene.label]
        corners = [[b[k] for k in ("x_min", "y_min", "x_max", "y_max")] for b in row["boxes"]]
        np.testing.assert_array_equal(corners, scene.boxes)
        assert [b["class_id"] for b in row["boxes"]] == scene.box_class_id.tolist()
        assert [b["label"] for b in row["boxes"]] == [CLASSES[k] for k in scene.box_class_id]


def test_photographs_are_valid_and_the_truncated_file_is_not(tmp_path):
    pytest.importorskip("skimage")
    render.render_archive(tmp_path, 0, seed=0)
    photographs = sorted((tmp_path / "images/photos").iterdir())

    assert [p.name for p in photographs] == ["astronaut.jpg", "coffee.jpg"]
    assert all(cv2.imread(str(p)).std() > 20 for p in photographs)
    truncated = (tmp_path / "images/broken/truncated.jpg").read_bytes()
    assert truncated[:2] == b"\xff\xd8"
    assert truncated[-2:] != b"\xff\xd9"


def test_without_photographs_the_background_is_noise():
    scene = render.render_scene(5)

    assert scene.image[scene.mask == 0].std() > 5


def test_every_class_and_every_number_of_objects_occurs(scenes):
    assert {scene.label for scene in scenes} == set(range(len(CLASSES)))
    assert {int(k) for scene in scenes for k in scene.box_class_id} == set(range(len(CLASSES)))
    assert {len(scene.boxes) for scene in scenes} == {1, 2, 3, 4}


def test_masks_contain_exactly_the_classes_of_the_boxes(scenes):
    for scene in scenes:
        assert set(np.unique(scene.mask)) == {0, *(scene.box_class_id + 1)}


def test_the_boxes_of_a_class_are_tight_around_its_pixels(scenes):
    for scene in scenes:
        for class_id in np.unique(scene.box_class_id):
            boxes = scene.boxes[scene.box_class_id == class_id]
            ys, xs = np.nonzero(scene.mask == class_id + 1)
            assert xs.min() == boxes[:, 0].min()
            assert ys.min() == boxes[:, 1].min()
            assert xs.max() + 1 == boxes[:, 2].max()
            assert ys.max() + 1 == boxes[:, 3].max()


def test_a_single_object_is_drawn_inside_its_mask(scenes):
    single = [scene for scene in scenes if len(scene.boxes) == 1]
    for scene in single:
        drawn = np.abs(scene.image.astype(int) - 128).max(axis=-1) > 40
        assert np.count_nonzero(drawn != (scene.mask > 0)) < 0.1 * np.count_nonzero(scene.mask)
    assert single


def test_the_label_is_the_class_of_the_largest_object_by_far(scenes):
    for scene in scenes:
        area = np.bincount(scene.mask.ravel(), minlength=len(CLASSES) + 1)[1:]
        main_area = area[scene.label]
        for class_id in set(scene.box_class_id.tolist()) - {scene.label}:
            count = np.count_nonzero(scene.box_class_id == class_id)
            assert main_area >= render.MAIN_RATIO * area[class_id] / count
