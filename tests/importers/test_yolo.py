"""Import of YOLO: data.yaml and other layouts, boxes, polygons, faulty rows, masks."""

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.images.masks import decode_png
from cvbatch.importers.rules import RULE_OF
from tests.support.datasets import boxes_of, check_sums, encoded, imported, kinds, picture, put

# Of images of 12 x 20 pixels.
ROW = "0 0.5 0.5 0.5 0.5\n"
BOX = ("cat", 5.0, 3.0, 15.0, 9.0)
NAMES = {"names": ["cat", "dog"]}


def folder(path, config, images, labels=None):
    """Write a data set; images: path → row of its label file."""
    for i, (name, text) in enumerate(images.items()):
        put(path, {name: picture(seed=i)})
        label = name.replace("images/", "labels/").rsplit(".", 1)[0] + ".txt"
        if text is not None:
            put(path, {label: text})
    put(path, labels or {})
    return put(path, {"data.yaml": yaml.safe_dump(config)}) if config is not None else path


LAYOUTS = {
    "folders": ({"train": "images/train", "val": "images/val"}, "images/train", "images/val"),
    "path and folders": (
        {"path": "/home/me/pets", "train": "images/train", "val": "images/val"},
        "images/train", "images/val",
    ),
    "Roboflow": (
        {"train": "../train/images", "val": "../valid/images"}, "train/images", "valid/images",
    ),
    "absolute": (
        {"train": "/content/pets/train/images", "val": "C:\\pets\\valid\\images"},
        "train/images", "valid/images",
    ),
    "list of folders": (
        {"train": ["images/a"], "val": ["images/b"]}, "images/a", "images/b",
    ),
    "nested": ({"train": "images/train", "val": "images/val"}, "images/train/x/y", "images/val"),
    "folders without data.yaml": (None, "images/train", "images/val"),
    "splits first": (None, "train/images", "valid/images"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_of_every_layout(tmp_path, layout):
    config, train, val = LAYOUTS[layout]
    images = {f"{train}/a.png": ROW, f"{train}/b.png": None, f"{val}/c.png": ROW}
    full = config and config | NAMES
    source = folder(tmp_path / "in", full, images, {} if config else {"classes.txt": "cat\ndog\n"})
    report, rows = imported("yolo", source, tmp_path / "out", has_masks=False)
    assert {name: row["split"] for name, row in rows.items()} == {
        f"{train}/a.png": "train", f"{train}/b.png": "train", f"{val}/c.png": "validation",
    }  # fmt: skip
    assert boxes_of(rows[f"{train}/a.png"]) == [BOX]
    assert boxes_of(rows[f"{train}/b.png"]) == []  # without a label file: no objects
    assert kinds(report) == {"no_objects": 1}
    assert report.classes["boxes"] == {"cat": 2, "dog": 0}
    check_sums(report)


@pytest.mark.parametrize(
    "line", ["./images/{}", "images/{}", "/data/pets/images/{}", "data/images/{}"]
)
def test_splits_may_be_lists_of_images(tmp_path, line):
    config = {"train": "train.txt", "val": "val.txt", "test": "none.txt", **NAMES}
    images = {"images/a b.png": ROW, "images/c.png": ROW, "images/d.png": ROW}
    lists = {"train.txt": line.format("a b.png") + "\n\n", "val.txt": line.format("c.png")}
    source = folder(tmp_path / "in", config, images, lists)
    report, rows = imported("yolo", source, tmp_path / "out", has_masks=False)
    splits = {name: row["split"] for name, row in rows.items()}
    assert splits == {"images/a b.png": "train", "images/c.png": "validation"}
    expected = {"unlisted": 1, "split_missing": 1}
    if line.startswith(("/", "data")):
        expected["image_by_name"] = 2
    assert kinds(report) == expected
    check_sums(report)


def test_the_layout_of_cvat_without_yaml(tmp_path):
    source = put(tmp_path / "in", {
        "obj.names": "cat\ndog\n", "obj.data": "classes = 2\n",
        "train.txt": "data/obj_train_data/a.png\n",
        "obj_train_data/a.png": picture(), "obj_train_data/a.txt": ROW,
    })  # fmt: skip
    _, rows = imported("yolo", source, tmp_path / "out", has_masks=False)
    assert boxes_of(rows["obj_train_data/a.png"]) == [BOX]


def test_the_yaml_file_is_a_source_and_images_may_be_elsewhere(tmp_path):
    config = {"train": "images", "names": {1: "dog", 0: "cat"}}
    put(tmp_path / "configs", {"pets.yaml": yaml.safe_dump(config)})
    folder(tmp_path / "data", None, {"images/a.png": "1 0.5 0.5 0.5 0.5"})
    _, rows = imported(
        "yolo", tmp_path / "configs/pets.yaml", tmp_path / "out", has_masks=False,
        images=str(tmp_path / "data"),
    )  # fmt: skip
    assert boxes_of(rows["images/a.png"]) == [("dog", *BOX[1:])]


ROWS = {
    "box": ("1 0.5 0.5 0.5 0.5", None, [("dog", 5, 3, 15, 9)]),
    "class 1.0": ("1.0 0.5 0.5 0.5 0.5", None, [("dog", 5, 3, 15, 9)]),
    "with confidence": ("1 0.5 0.5 0.5 0.5 0.75", None, [("dog", 5, 3, 15, 9)]),
    "tabs": ("1\t0.5\t0.5  0.5 0.5 ", None, [("dog", 5, 3, 15, 9)]),
    "polygon": ("1 0.25 0.25 0.75 0.25 0.5 0.75", None, [("dog", 5, 3, 15, 9)]),
    "rotated box": ("1 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5", None, [("dog", 5, 3, 15, 9)]),
    "rounded": ("1 0.500001 0.5 1.0 1.0", None, [("dog", 0, 0, 20, 12)]),
    "partly outside": ("1 0.9 0.5 0.4 0.5", "box_partly_outside", [("dog", 14, 3, 20, 9)]),
    "pixels": ("1 100 50 20 10", "box_outside", []),
    "flat": ("1 0.5 0.5 0 0.5", "box_no_area", []),
    "negative size": ("1 0.5 0.5 -0.5 0.5", "box_no_area", []),
    "four values": ("1 0.5 0.5 0.5", "box_invalid", []),
    "class alone": ("1", "box_invalid", []),
    "odd polygon": ("1 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "box_invalid", []),
    "NaN": ("1 nan 0.5 0.5 0.5", "box_invalid", []),
    "text": ("1 a b c d", "box_invalid", []),
    "confidence 3": ("1 0.5 0.5 0.5 0.5 3", "box_invalid", []),
    "name": ("dog 0.5 0.5 0.5 0.5", "object_invalid", []),
    "class 1.5": ("1.5 0.5 0.5 0.5 0.5", "object_invalid", []),
    "class -1": ("-1 0.5 0.5 0.5 0.5", "object_invalid", []),
    "bytes": (b"\xff\xfe\x00\x81".decode("latin-1"), "object_invalid", []),
    "class 2": ("2 0.5 0.5 0.5 0.5", "class_unknown", []),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_faulty_row_is_counted_and_can_be_refused(tmp_path, name):
    text, kind, boxes = ROWS[name]
    source = folder(tmp_path / "in", {"train": "images", **NAMES}, {"images/a.png": ROW + text})
    chosen = {"unknown": "drop"} if kind == "class_unknown" else {}
    report, rows = imported("yolo", source, tmp_path / "out", chosen, has_masks=False)
    found = boxes_of(rows["images/a.png"])
    assert [box[0] for box in found] == ["cat", *(box[0] for box in boxes)]
    np.testing.assert_allclose(
        [b[1:] for b in found], [BOX[1:], *(b[1:] for b in boxes)], atol=1e-4
    )
    assert kinds(report) == ({kind: 1} if kind else {})
    check_sums(report)
    if kind:
        with pytest.raises(SourceError, match=f"use --{RULE_OF[kind].flag} "):
            imported("yolo", source, tmp_path / "no", {RULE_OF[kind].flag: "refuse"})
        assert not (tmp_path / "no").exists()


def test_rows_of_keypoints_give_their_boxes(tmp_path):
    config = {"train": "images", "kpt_shape": [2, 3], **NAMES}
    row = "0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.9 0.9 2"
    _, rows = imported(
        "yolo", folder(tmp_path / "in", config, {"images/a.png": row}), tmp_path / "out",
        has_masks=False,
    )  # fmt: skip
    assert boxes_of(rows["images/a.png"]) == [BOX]


def test_labels_without_image_and_second_images_are_counted(tmp_path):
    config = {"train": "images", **NAMES}
    images = {"images/a.png": ROW, "images/a.jpg": None}
    source = folder(
        tmp_path / "in", config, images, {"labels/gone.txt": ROW, "labels/classes.txt": "cat"}
    )
    report, rows = imported("yolo", source, tmp_path / "out", has_masks=False)
    assert list(rows) == ["images/a.jpg"]
    assert kinds(report) == {"duplicate": 1, "image_missing": 1}
    check_sums(report)


def test_masks_are_the_polygons_and_boxes_are_void(tmp_path):
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 13, (5, 2))
    canvas = Image.new("L", (200, 120))  # ten pixels per pixel
    ImageDraw.Draw(canvas).polygon([tuple(map(float, c * 10)) for c in corners], fill=1)
    expected = np.asarray(canvas)[5::10, 5::10] * 2  # at the centres of pixels
    polygon = " ".join(f"{x / 20} {y / 12}" for x, y in corners)
    source = folder(
        tmp_path / "in", {"train": "images", **NAMES},
        {"images/a.png": f"1 {polygon}\n", "images/b.png": ROW},
    )  # fmt: skip
    report, rows = imported("yolo", source, tmp_path / "out", has_masks=True)
    mask = decode_png(rows["images/a.png"]["mask"]["bytes"])
    differs = mask != expected
    assert differs.mean() < 0.02  # Pillow also fills pixels on the edge
    mask = decode_png(rows["images/b.png"]["mask"]["bytes"])
    assert (mask[3:9, 5:15] == 255).all()
    assert kinds(report) == {"outline_missing": 1}
    assert list(report.classes["mask"]) == ["background", "cat", "dog"]


def test_labels_refer_to_the_upright_image(tmp_path):
    image = encoded(Image.new("RGB", (20, 12)), orientation=6)  # upright: 12 wide, 20 high
    source = folder(tmp_path / "in", {"train": "images", **NAMES}, {"images/a.png": ROW})
    put(source, {"images/a.png": image})
    _, rows = imported("yolo", source, tmp_path / "out", has_masks=False)
    assert boxes_of(rows["images/a.png"]) == [("cat", 3, 5, 9, 15)]
    _, rows = imported("yolo", source, tmp_path / "s", has_masks=False, orientation="stored")
    assert (rows["images/a.png"]["width"], rows["images/a.png"]["height"]) == (12, 20)


@pytest.mark.parametrize(
    ("config", "images", "error", "message"),
    [
        ("train: [", {"images/a.png": ROW}, SourceError, "is not YAML"),
        ("[1]", {"images/a.png": ROW}, SourceError, "is not a YOLO data set"),
        ("names: {0: a, 2: b}", {"images/a.png": ROW}, SourceError, "a mapping from 0, 1, 2"),
        ("names: [a, a]", {"images/a.png": ROW}, SourceError, "two classes are called 'a'"),
        ("names: [a, '']", {"images/a.png": ROW}, SourceError, "non-empty name"),
        ("names: [a]", {}, SourceError, "has no images"),
        ("names: [a]", {"images/a.png": None}, SourceError, "no label file for any of 1 images"),
        ("{train: no/such, names: [a]}", {"images/a.png": ROW}, ConfigError, "neither a folder"),
        ("train: images", {"images/a.png": ROW}, ConfigError, "set --classes"),
        ("!!python/object/apply:os.system [true]", {"images/a.png": ROW}, SourceError, "not YAML"),
    ],
)
def test_an_invalid_data_set_is_refused(tmp_path, config, images, error, message):
    source = put(folder(tmp_path / "in", None, images), {"data.yaml": config})
    with pytest.raises(error, match=message) as raised:
        imported("yolo", source, tmp_path / "out", has_masks=False)
    assert len(str(raised.value)) < 500
    assert not (tmp_path / "out").exists()
