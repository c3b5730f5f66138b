"""Faults of COCO files are handled object by object, counted, and refused only on request."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from cvbatch.core.errors import SourceError
from cvbatch.images.masks import decode_png
from cvbatch.importers.parsing import to_key
from cvbatch.importers.rules import RULE_OF
from tests.support.datasets import boxes_of, check_sums, coco, imported, kinds, picture, put

IMAGE = {"id": 1, "file_name": "a.png"}
SQUARE = [[2, 2, 10, 2, 10, 8, 2, 8]]
GOOD = {"image_id": 1, "bbox": [2, 2, 8, 6], "segmentation": SQUARE, "area": 48.0}
GOOD_BOX = ("dog", 2, 2, 10, 8)
RLE = coco_masks.encode(np.asfortranarray(np.pad(np.ones((6, 8), np.uint8), ((2, 4), (2, 10)))))


def folder(path, text, images=("a.png",)):
    put(path, {f"train2017/{image}": picture() for image in images})
    return put(path, {"annotations/instances_train2017.json": text})


# changed values of one object → its kinds of issues, and its boxes
FAULTS = {
    "iscrowd null": ({"iscrowd": None}, {"crowd_unclear": 1}, [GOOD_BOX]),
    "iscrowd text": ({"iscrowd": "no"}, {"crowd_unclear": 1, "number_text": 1}, [GOOD_BOX]),
    "image id 1.0": ({"image_id": 1.0}, {}, [GOOD_BOX]),
    "image id text": ({"image_id": "1"}, {}, [GOOD_BOX]),
    "category 3.0": ({"category_id": 3.0}, {}, [GOOD_BOX]),
    "category text": ({"category_id": "3"}, {}, [GOOD_BOX]),
    "bbox text": ({"bbox": ["2", "2", "8", "6"]}, {"number_text": 1}, [GOOD_BOX]),
    "bbox missing": ({"bbox": None}, {"box_derived": 1}, [GOOD_BOX]),
    "bbox empty": ({"bbox": []}, {"box_derived": 1}, [GOOD_BOX]),
    "bbox NaN": ({"bbox": [2, 2, float("nan"), 6]}, {"box_derived": 1}, [GOOD_BOX]),
    "bbox 1e999": ({"bbox": [2, 2, 1e999, 6]}, {"box_derived": 1}, [GOOD_BOX]),
    "bbox flat": ({"bbox": [2, 2, 0, 0]}, {"box_derived": 1}, [GOOD_BOX]),
    "bbox of RLE": (
        {"bbox": [], "segmentation": {"size": [12, 20], "counts": RLE["counts"].decode()}},
        {"box_derived": 1},
        [GOOD_BOX],
    ),
    "no box at all": ({"bbox": [], "segmentation": None}, {"box_invalid": 1}, []),
    "three numbers": ({"bbox": [1, 2, 3], "segmentation": []}, {"box_invalid": 1}, []),
    "bbox of a flat polygon": (
        {"bbox": [], "segmentation": [[3, 4, 5, 4, 9, 4]]}, {"box_invalid": 1}, [],
    ),
    "bbox of a point": ({"bbox": [], "segmentation": [[3, 4]]}, {"box_invalid": 1}, []),
    "bbox of a broken RLE": (
        {"bbox": [], "segmentation": {"size": [12, 20], "counts": "~~"}}, {"box_invalid": 1}, [],
    ),
    "bbox of a huge RLE": (
        {"bbox": [], "segmentation": {"size": [10**9, 10**9], "counts": [10**18]}},
        {"box_invalid": 1},
        [],
    ),
    "area NaN": ({"area": float("nan")}, {"area_invalid": 1}, [GOOD_BOX]),
    "area negative": ({"area": -4}, {"area_invalid": 1}, [GOOD_BOX]),
    "area text": ({"area": "48"}, {"number_text": 1}, [GOOD_BOX]),
    "area null": ({"area": None}, {}, [GOOD_BOX]),
    "no category": ({"category_id": None}, {"object_invalid": 1}, []),
    "category 1.5": ({"category_id": 1.5}, {"object_invalid": 1}, []),
    "category 10^400": ({"category_id": 10**400}, {"object_invalid": 1}, []),
    "unlisted category": ({"category_id": 99}, {"category_unlisted": 1}, []),
    "unknown image": ({"image_id": 99}, {"object_astray": 1}, []),
    "no image": ({"image_id": None}, {"object_astray": 1}, []),
    "id repeated": ({"id": 5}, {"id_repeated": 1}, [GOOD_BOX]),
    "list": ("list", {"object_invalid": 1}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_concerns_one_object_is_counted_and_can_be_refused(tmp_path, name):
    change, expected, boxes = FAULTS[name]
    content = json.loads(coco([IMAGE], [GOOD, GOOD]))
    content["annotations"][0]["id"] = 5
    content["annotations"][1] = [1] if change == "list" else {**GOOD, "category_id": 3, **change}
    source = folder(tmp_path / "in", json.dumps(content))
    report, rows = imported("coco", source, tmp_path / "out")
    assert kinds(report) == expected
    assert boxes_of(rows["train2017/a.png"]) == [GOOD_BOX, *boxes]
    check_sums(report)
    for kind in expected:
        assert "annotations[1]" in report.issues[kind].examples[0]
        chosen = {RULE_OF[kind].flag: "refuse"}
        with pytest.raises(SourceError, match=f"use --{RULE_OF[kind].flag} (keep|drop)"):
            imported("coco", source, tmp_path / "refused", chosen)
        assert not (tmp_path / "refused").exists()


def test_objects_that_pycocotools_loads_are_all_found(tmp_path):
    changes = [change for change, _, _ in FAULTS.values() if change != "list"]
    annotations = [{"id": i, **GOOD, **change} for i, change in enumerate(changes)]
    source = folder(tmp_path / "in", coco([IMAGE], annotations))
    report, _ = imported("coco", source, tmp_path / "out")
    oracle = COCO(str(source / "annotations" / "instances_train2017.json"))
    assert report.num_objects_found == len(oracle.dataset["annotations"]) == len(changes)
    check_sums(report)


IMAGE_FAULTS = {
    "id null": ({"id": None}, "image_invalid"),
    "id 1.5": ({"id": 1.5}, "image_invalid"),
    "no name": ({"file_name": None}, "image_invalid"),
    "name of dots": ({"file_name": "../.."}, "image_invalid"),
    "name not Unicode": ({"file_name": "\ud800.png"}, "image_invalid"),
    "absolute": ({"file_name": "/etc/passwd"}, "image_missing"),
    "parent": ({"file_name": "../../secret.png"}, "image_missing"),
    "URI": ({"file_name": "s3://bucket/x.png"}, "image_missing"),
    "size text": ({"height": "12", "width": "20"}, "number_text"),
    "size negative": ({"height": -12}, "size_invalid"),
    "size NaN": ({"height": float("nan")}, "size_invalid"),
}


@pytest.mark.parametrize("name", IMAGE_FAULTS)
def test_a_faulty_image_entry_is_counted(tmp_path, name):
    change, kind = IMAGE_FAULTS[name]
    images = [{"id": 9, "file_name": "good.png"}, {**IMAGE, **change}]
    text = coco(images, [GOOD, {**GOOD, "image_id": 9}])
    put(tmp_path, {"secret.png": picture()})
    source = folder(tmp_path / "in" / "data", text, ("a.png", "good.png"))
    report, rows = imported("coco", source, tmp_path / "out")
    is_kept = kind in ("number_text", "size_invalid")
    assert sorted(rows) == [*(["train2017/a.png"] if is_kept else []), "train2017/good.png"]
    assert report.issues[kind].count == 1
    check_sums(report)
    chosen = {RULE_OF[kind].flag: "refuse"}
    with pytest.raises(SourceError, match=r"images\[1\]"):
        imported("coco", source, tmp_path / "refused", chosen)


OUTLINES = {
    "null": (None, "outline_missing"),
    "empty": ([], "outline_missing"),
    "number": (3, "outline_invalid"),
    "two points": ([[1, 2, 3, 4]], "outline_invalid"),
    "odd": ([[1, 2, 3, 4, 5, 6, 7]], "outline_invalid"),
    "flat": ([[1, 2, 3, 4, 7, 8]], "outline_invalid"),
    "one point three times": ([[1, 2, 1, 2, 1, 2]], "outline_invalid"),
    "text": ([[1, 2, 3, 4, 5, "x"]], "outline_invalid"),
    "far": ([[1, 2, 3, 4, 5, 1e30]], "outline_invalid"),
    "RLE without counts": ({"size": [12, 20]}, "outline_invalid"),
    "RLE without size": ({"size": [12], "counts": [240]}, "outline_invalid"),
    "RLE negative": ({"size": [12, 20], "counts": [-1, 241]}, "outline_invalid"),
}


@pytest.mark.parametrize("name", OUTLINES)
def test_the_box_of_an_object_without_an_outline_is_void_in_the_mask(tmp_path, name):
    segmentation, kind = OUTLINES[name]
    annotations = [GOOD, {"image_id": 1, "bbox": [8, 6, 6, 4], "segmentation": segmentation}]
    source = folder(tmp_path / "in", coco([IMAGE], annotations))
    report, rows = imported("coco", source, tmp_path / "out", has_masks=True)
    expected = np.zeros((12, 20), np.uint8)
    expected[6:10, 8:14] = 255
    expected[2:8, 2:10] = 1  # the outline of the other object
    mask = decode_png(rows["train2017/a.png"]["mask"]["bytes"])
    np.testing.assert_array_equal(mask, expected)
    assert report.issues[kind].count == 1
    assert len(rows["train2017/a.png"]["boxes"]) == 2


def test_polygons_of_other_shapes_are_drawn_as_pycocotools_draws_the_usual_one(tmp_path):
    points = [[2, 2], [10, 2], [10, 8], [2, 8]]
    forms = [SQUARE, SQUARE[0], [points], [*SQUARE, [1, 1]], [list(map(str, SQUARE[0]))]]
    expected = coco_masks.decode(coco_masks.frPyObjects(SQUARE, 12, 20))[..., 0]
    for number, form in enumerate(forms):
        source = folder(tmp_path / f"{number}", coco([IMAGE], [{**GOOD, "segmentation": form}]))
        _, rows = imported("coco", source, tmp_path / f"{number}-out", has_masks=True)
        mask = decode_png(rows["train2017/a.png"]["mask"]["bytes"])
        np.testing.assert_array_equal(mask, expected, err_msg=str(form))


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (1, 1), (1.0, 1), ("1", 1), (" 1 ", 1), (-1, -1), ("01", "01"), ("1.0", "1.0"), ("a", "a"),
        ("", None), (None, None), (True, None), (1.5, None), (float("nan"), None), ([], None),
        (float("inf"), None), (2**70, 2**70), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_equal_ids_are_equal_however_they_are_written(value, key):
    assert to_key(value) == key
    assert type(to_key(value)) is type(key)


def test_text_ids_join_images_objects_and_categories(tmp_path):
    content = {
        "images": [{"id": "img-a", "file_name": "a.png"}],
        "categories": [{"id": "z", "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [{"image_id": "img-a", "category_id": "z", "bbox": [2, 2, 8, 6]}],
    }
    report, rows = imported("coco", folder(tmp_path / "in", json.dumps(content)), tmp_path / "out")
    assert boxes_of(rows["train2017/a.png"]) == [GOOD_BOX]
    assert list(report.classes["boxes"]) == ["cat", "dog"]  # whole numbers first, then texts
