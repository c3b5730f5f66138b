"""Import of COCO: consecutive class ids, half-open boxes, errors for malformed JSON."""

import json

import numpy as np
import pytest

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.images.masks import decode_png
from tests.support.datasets import boxes_of, check_sums, coco, imported, kinds, picture, put


def folder(path, text, images=("a.png",), name="instances_train2017"):
    """Write a data set of one split in the layout of COCO."""
    split_folder = name.removeprefix("instances_")
    put(path, {f"{split_folder}/{image}": picture() for image in images})
    return put(path, {f"annotations/{name}.json": text})


def check_refused(tmp_path, text, message, **options):
    source = folder(tmp_path / "in", text)
    with pytest.raises(SourceError, match=message) as error:
        imported("coco", source, tmp_path / "out", **options)
    assert len(str(error.value)) < 600
    assert not (tmp_path / "out").exists()


def test_no_images_are_refused(tmp_path):
    check_refused(tmp_path, coco([]), "contains no usable labelled image")


def test_an_image_without_annotations_is_imported(tmp_path):
    source = folder(tmp_path / "in", coco([{"id": 1, "file_name": "a.png"}]))
    report, rows = imported("coco", source, tmp_path / "out")
    assert rows["train2017/a.png"]["boxes"] == []
    assert rows["train2017/a.png"]["split"] == "train"
    assert kinds(report) == {"no_objects": 1}
    check_sums(report)


def test_class_ids_are_consecutive_in_the_order_of_the_category_ids(tmp_path):
    annotations = [
        {"image_id": 1, "category_id": 7, "bbox": [2, 3, 4.5, 5], "iscrowd": 1},
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 20, 12]},
    ]
    source = folder(tmp_path / "in", coco([{"id": 1, "file_name": "a.png"}], annotations))
    report, rows = imported("coco", source, tmp_path / "out")
    row = rows["train2017/a.png"]
    assert boxes_of(row) == [("cat", 2, 3, 6.5, 8), ("dog", 0, 0, 20, 12)]
    assert [box["class_id"] for box in row["boxes"]] == [1, 0]
    assert row["box_is_crowd"] == [True, False]
    assert [label["label"] for label in row["labels"]] == ["dog", "cat"]
    assert report.classes["boxes"] == {"dog": 1, "cat": 1}


def test_classes_can_be_set_and_others_dropped(tmp_path):
    annotations = [{"image_id": 1, "category_id": 7}, {"image_id": 1, "category_id": 3}]
    text = coco([{"id": 1, "file_name": "a.png"}], annotations)
    source = folder(tmp_path / "in", text)
    with pytest.raises(SourceError, match="class that is not listed"):
        imported("coco", source, tmp_path / "out", classes=("cat",))
    report, rows = imported("coco", source, tmp_path / "out", {"unknown": "drop"}, classes=("cat",))
    assert boxes_of(rows["train2017/a.png"]) == [("cat", 1, 2, 4, 6)]
    check_sums(report)


def test_splits_are_the_files_and_a_single_file_requires_images(tmp_path):
    source = folder(tmp_path / "in", coco([{"id": 1, "file_name": "a.png"}]))
    folder(source, coco([{"id": 1, "file_name": "a.png"}]), name="instances_val2017")
    report, rows = imported("coco", source, tmp_path / "out")
    splits = {name: row["split"] for name, row in rows.items()}
    assert splits == {"train2017/a.png": "train", "val2017/a.png": "validation"}
    check_sums(report)
    file = source / "annotations" / "instances_val2017.json"
    with pytest.raises(ConfigError, match="--images DIR"):
        imported("coco", file, tmp_path / "file")
    _, rows = imported("coco", file, tmp_path / "file", images=str(source / "val2017"))
    assert {name: row["split"] for name, row in rows.items()} == {"a.png": "validation"}
    assert imported("coco", source, tmp_path / "s", split=(1.0, 0, 0))[0].images["train"] == 2


def test_duplicates_missing_images_and_unassigned_objects_are_counted(tmp_path):
    images = [
        {"id": 1, "file_name": "a.png"},
        {"id": 2, "file_name": "gone.png"},
        {"id": 3, "file_name": "./a.png"},
        {"id": 1, "file_name": "b.png"},
    ]
    annotations = [{"image_id": key} for key in (1, 2, 3, 3, 9)]
    source = folder(tmp_path / "in", coco(images, annotations), images=("a.png", "b.png"))
    report, rows = imported("coco", source, tmp_path / "out")
    assert list(rows) == ["train2017/a.png"]
    assert kinds(report) == {"duplicate": 2, "image_missing": 1, "object_astray": 1}
    assert (report.num_found, report.num_objects_found) == (4, 5)
    check_sums(report)


def test_the_order_in_the_file_does_not_change_the_result(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(6)]
    names = [image["file_name"] for image in images]
    annotations = [{"image_id": i, "bbox": [i, 1, 2, 2]} for i in range(6)]
    for name, step in (("x", 1), ("y", -1)):
        folder(tmp_path / name, coco(images[::step], annotations[::step]), images=names)
        imported("coco", tmp_path / name, tmp_path / f"{name}-out")
    first, second = (sorted((tmp_path / f"{p}-out").glob("*.parquet")) for p in "xy")
    assert [path.name for path in first] == [path.name for path in second]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_masks_are_drawn_with_smaller_objects_over_larger(tmp_path):
    square = [[2, 2, 10, 2, 10, 10, 2, 10]]
    runs = np.zeros((12, 20), bool)
    runs[4:6, 3:7] = True
    flat = runs.T.reshape(-1)
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    annotations = [
        {"image_id": 1, "category_id": 7, "segmentation": {"size": [12, 20], "counts": counts}},
        {"image_id": 1, "category_id": 3, "segmentation": square},
    ]
    expected = np.zeros((12, 20), np.uint8)
    expected[2:10, 2:10] = 1
    expected[4:6, 3:7] = 2
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    for name, step in (("one", 1), ("two", -1)):
        text = coco(images, annotations[::step])
        source = folder(tmp_path / name, text, images=("a.png", "b.png"))
        report, rows = imported("coco", source, tmp_path / f"{name}-out", has_masks=True)
        mask = decode_png(rows["train2017/a.png"]["mask"]["bytes"])
        np.testing.assert_array_equal(mask, expected)
        assert not decode_png(rows["train2017/b.png"]["mask"]["bytes"]).any()
        assert report.classes["mask"] == {"background": 2, "dog": 1, "cat": 1}


def test_rle_of_another_size_drops_the_image(tmp_path):
    runs = {"size": [6, 20], "counts": [120]}
    text = coco(
        [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        [{"image_id": 1, "segmentation": runs}],
    )
    source = folder(tmp_path / "in", text, images=("a.png", "b.png"))
    report, rows = imported("coco", source, tmp_path / "out", has_masks=True)
    assert list(rows) == ["train2017/b.png"]
    assert kinds(report)["mask_unreadable"] == 1
    check_sums(report)


IMAGE = {"id": 1, "file_name": "a.png"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[1, 2", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        (b"\xff\xfe\x00".decode("latin-1"), "is not JSON"),
        ("[]", "has no list 'categories'"),
        ('{"images": 3, "categories": []}', "has no list 'images'"),
        ('{"images": [3], "categories": [], "annotations": []}', r"images\[0\] is 3"),
        (coco([{"id": None, "file_name": "a.png"}]), r"images\[0\].id"),
        (coco([{"id": 1, "file_name": 5}]), "file_name is 5"),
        (coco([{"id": 1, "file_name": "../../x.png"}]), "below the folder"),
        (coco([{"id": 1, "file_name": "/etc/passwd"}]), "below the folder"),
        (coco([{"id": 1, "file_name": "s3://b/x.png"}]), "below the folder"),
        (coco([{"id": 1, "file_name": "a\0.png"}]), "below the folder"),
        (coco([{"id": 1, "file_name": "\ud800.png"}]), "not Unicode"),
        (coco([IMAGE], categories={1: "cat", 2: "cat"}), "has two ids"),
        (coco([IMAGE], categories={1: ""}), "must be a non-empty name"),
    ],
)  # fmt: skip
def test_malformed_json_is_refused_with_a_short_message(tmp_path, text, message):
    check_refused(tmp_path, text, message)


def test_too_large_json_is_refused(tmp_path, monkeypatch):
    from cvbatch.importers import parsing

    monkeypatch.setattr(parsing, "MAX_JSON_BYTES", 10)
    check_refused(tmp_path, coco([IMAGE]), "the limit is 10")


def test_a_folder_that_is_not_coco_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"instances_\*.json"):
        imported("coco", put(tmp_path / "in", {"annotations/x.json": "{}"}), tmp_path / "out")
    source = put(tmp_path / "no", {"annotations/instances_val.json": coco([IMAGE])})
    with pytest.raises(SourceError, match="has no folder val"):
        imported("coco", source, tmp_path / "out")


def test_more_classes_than_a_mask_allows_are_refused(tmp_path):
    text = coco([IMAGE], categories={i: f"c{i}" for i in range(255)})
    with pytest.raises(ConfigError, match="a mask can have at most 255"):
        imported("coco", folder(tmp_path / "in", text), tmp_path / "out", has_masks=True)
    assert json.loads(text)["categories"][254]["name"] == "c254"
