"""Import of Pascal VOC: boxes, split lists and masks; issues are counted, not lost."""

import numpy as np
import pytest

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.images.masks import decode_png
from cvbatch.importers.voc import VOC_CLASSES
from tests.support.datasets import (
    boxes_of,
    check_sums,
    imported,
    kinds,
    label_png,
    picture,
    put,
    voc,
    voc_xml,
)


def test_a_source_without_annotations_is_refused(tmp_path):
    source = put(tmp_path / "in", {"JPEGImages/a.png": picture()})
    with pytest.raises(SourceError, match=r"contains no Annotations/\*.xml"):
        imported("voc", source, tmp_path / "out")
    with pytest.raises(SourceError, match="does not exist"):
        imported("voc", tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_without_objects_is_imported(tmp_path):
    report, rows = imported("voc", voc(tmp_path / "in", {"a": []}), tmp_path / "out")
    row = rows["JPEGImages/a.png"]
    assert (row["labels"], row["boxes"], row["box_is_crowd"]) == ([], [], [])
    assert (row["width"], row["height"]) == (20, 12)
    assert row["image"] == {"bytes": picture(), "path": "JPEGImages/a.png"}
    assert kinds(report) == {"no_objects": 1}
    check_sums(report)


def test_boxes_are_half_open_and_labels_are_the_classes_of_the_boxes(tmp_path):
    boxes = [("dog", 1, 1, 20, 12), ("cat", 3, 4, 5, 9), ("dog", 2, 2, 4.5, 3.5)]
    _, rows = imported("voc", voc(tmp_path / "in", {"a": boxes}), tmp_path / "out")
    row = rows["JPEGImages/a.png"]
    voc_boxes = [(name, x0 + 1, y0 + 1, x1, y1) for name, x0, y0, x1, y1 in boxes_of(row)]
    assert voc_boxes == boxes
    assert row["labels"] == [
        {"class_id": 0, "label": "cat", "score": 1.0},
        {"class_id": 1, "label": "dog", "score": 1.0},
    ]
    assert [box["class_id"] for box in row["boxes"]] == [1, 0, 1]
    assert {box["score"] for box in row["boxes"]} == {1.0}


def test_difficult_objects_are_crowd_boxes(tmp_path):
    source = voc(tmp_path / "in", {"a": [("cat", 1, 1, 5, 5)]})
    put(source, {"Annotations/a.xml": voc_xml([("cat", 1, 1, 5, 5)], difficult=1)})
    _, rows = imported("voc", source, tmp_path / "out")
    assert rows["JPEGImages/a.png"]["box_is_crowd"] == [True]


INVALID_BOXES = [
    (("cat", 15, 2, 25, 6), "box_partly_outside", "clip", [("cat", 14, 1, 20, 6)]),
    (("cat", 0, 2, 5, 6), "box_partly_outside", "clip", [("cat", 0, 1, 5, 6)]),
    (("cat", 15, 2, 25, 6), "box_partly_outside", "drop", []),
    (("cat", 21, 2, 25, 6), "box_outside", "drop", []),
    (("cat", -9, 2, 0, 6), "box_outside", "drop", []),
    (("cat", 4, 4, 4, 4), "box_no_area", "drop", []),
    (("cat", 9, 4, 5, 8), "box_no_area", "drop", []),
    (("bird", 2, 2, 5, 6), "class_unknown", "drop", []),
]
FLAG = {
    "box_partly_outside": "outside",
    "box_outside": "no-area",
    "box_no_area": "no-area",
    "class_unknown": "unknown",
}


@pytest.mark.parametrize(("box", "kind", "action", "remaining"), INVALID_BOXES)
def test_an_invalid_box_is_clipped_or_dropped(tmp_path, box, kind, action, remaining):
    good = ("dog", 2, 2, 5, 5)
    source = voc(tmp_path / "in", {"a": [good, box], "b": [good]})
    report, rows = imported(
        "voc", source, tmp_path / "out", {FLAG[kind]: action}, classes=("cat", "dog")
    )
    assert kinds(report) == {kind: 1}
    assert boxes_of(rows["JPEGImages/a.png"]) == [("dog", 1, 1, 5, 5), *remaining]
    assert "a.png" in report.issues[kind].examples[0]
    check_sums(report)


@pytest.mark.parametrize("box", [box for box, _, action, _ in INVALID_BOXES if action == "drop"])
def test_an_invalid_box_can_be_refused(tmp_path, box):
    source = voc(tmp_path / "in", {"a": [box], "b": [("dog", 2, 2, 5, 5)]})
    chosen = dict.fromkeys(FLAG.values(), "refuse")
    with pytest.raises(
        SourceError, match=r"is refused: .* \(1\), such as .*a\.png .*; fix them, or use --"
    ):
        imported("voc", source, tmp_path / "out", chosen, classes=("cat", "dog"))
    assert not (tmp_path / "out").exists()


def test_splits_come_from_the_lists_and_unlisted_images_are_counted(tmp_path):
    good = [("cat", 1, 1, 5, 5)]
    source = voc(
        tmp_path / "in", dict.fromkeys("abcde", good),
        train="ab", val="c", trainval="abc", test=["d", "b", "ghost"],
    )  # fmt: skip
    report, rows = imported("voc", source, tmp_path / "out")
    splits = {name[-5]: row["split"] for name, row in rows.items()}
    assert splits == {"a": "train", "b": "test", "c": "validation", "d": "test"}
    assert kinds(report) == {"unlisted": 1, "in_two_splits": 1, "image_missing": 1}
    assert report.num_found == 6
    check_sums(report)
    _, rows = imported("voc", source, tmp_path / "all", {"unlisted": "split"})
    assert len(rows) == 5
    _, rows = imported("voc", source, tmp_path / "shares", split=(1.0, 0.0, 0.0))
    assert {row["split"] for row in rows.values()} == {"train"}
    assert len(rows) == 5


def test_a_single_trainval_list_is_divided(tmp_path):
    stems = [f"i{i:02d}" for i in range(60)]
    source = voc(
        tmp_path / "in", {stem: [("cat", 1, 1, 5, 5)] for stem in stems},
        trainval=stems[:50], test=stems[50:],
    )  # fmt: skip
    report, rows = imported("voc", source, tmp_path / "out")
    assert report.images["test"] == 10
    assert 2 <= report.images["validation"] <= 12  # of 50, the share of 0.1 / 0.9 is 5.6
    tested = {name for name, row in rows.items() if row["split"] == "test"}
    assert tested == {f"JPEGImages/{stem}.png" for stem in stems[50:]}


def test_missing_and_duplicate_files_are_counted(tmp_path):
    source = voc(tmp_path / "in", {"a": [], "b": [], "c": []})
    (source / "JPEGImages/a.png").unlink()
    (source / "Annotations/b.xml").unlink()
    put(
        source,
        {"JPEGImages/c.jpg": picture(), "JPEGImages/notes.txt": "", "JPEGImages/d.png": b"no"},
    )
    put(source, {"Annotations/d.xml": voc_xml()})
    report, rows = imported("voc", source, tmp_path / "out")
    assert list(rows) == ["JPEGImages/c.jpg"]  # the first of the two names with the same stem
    assert kinds(report) == {
        "image_missing": 1, "annotation_missing": 1, "duplicate": 1, "image_unreadable": 1,
        "no_objects": 1,
    }  # fmt: skip
    assert report.num_ignored == 1
    check_sums(report)


def test_a_wrong_declared_size_is_counted(tmp_path):
    source = voc(tmp_path / "in", {"a": [], "b": [], "c": []})
    put(
        source,
        {"Annotations/a.xml": voc_xml(size=(24, 40)), "Annotations/b.xml": voc_xml(size=None)},
    )
    put(source, {"Annotations/c.xml": voc_xml(size=(0, 0))})
    report, rows = imported("voc", source, tmp_path / "out")
    assert sorted(rows) == ["JPEGImages/b.png", "JPEGImages/c.png"]
    assert kinds(report) == {"declared_size": 1, "no_objects": 2}
    report, rows = imported("voc", source, tmp_path / "kept", {"declared-size": "keep"})
    assert len(rows) == 3
    check_sums(report)


def test_masks_keep_their_palette_indices_and_void(tmp_path):
    mask = np.zeros((12, 20), np.uint8)
    mask[2:5, 3:9], mask[5] = 15, 255
    source = voc(tmp_path / "in", {"a": [("person", 4, 3, 9, 5)], "b": []})
    put(source, {"SegmentationClass/a.png": label_png(mask, palette=True)})
    report, rows = imported("voc", source, tmp_path / "out")
    stored = rows["JPEGImages/a.png"]["mask"]
    assert stored["path"] is None
    np.testing.assert_array_equal(decode_png(stored["bytes"]), mask)
    assert rows["JPEGImages/b.png"]["mask"] is None
    assert list(report.classes["mask"]) == ["background", *VOC_CLASSES]
    assert report.classes["mask"]["person"] == 1
    _, rows = imported("voc", source, tmp_path / "none", has_masks=False)
    assert "mask" not in rows["JPEGImages/a.png"]


def test_masks_with_unknown_classes_require_mask_classes(tmp_path):
    mask = np.full((12, 20), 1, np.uint8)
    source = voc(tmp_path / "in", {"a": [("RBC", 4, 3, 9, 5)]})
    put(source, {"SegmentationClass/a.png": label_png(mask)})
    with pytest.raises(ConfigError, match="--mask-classes"):
        imported("voc", source, tmp_path / "out")
    report, _ = imported("voc", source, tmp_path / "out", mask_classes=("nothing", "cell"))
    assert report.classes["mask"] == {"nothing": 0, "cell": 1}


BOMB = (
    '<!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;&lol;">]>'
    "<annotation><object><name>&lol2;</name></object></annotation>"
)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", "is not XML"),
        ("<annotation><object>", "is not XML"),
        (BOMB, "declares a DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "declares a DOCTYPE"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "is not XML"),
        ("<html/>", "is a <html>"),
        ("<annotation>" * 100_000, "is not XML"),
    ],
)
def test_malformed_xml_is_refused_with_a_short_message(tmp_path, xml, message):
    source = put(voc(tmp_path / "in", {"a": []}), {"Annotations/a.xml": xml})
    with pytest.raises(SourceError, match=message) as error:
        imported("voc", source, tmp_path / "out")
    assert "a.xml" in str(error.value)
    assert len(str(error.value)) < 500
    assert not (tmp_path / "out").exists()


def test_too_large_xml_is_refused(tmp_path, monkeypatch):
    from cvbatch.importers import parsing

    monkeypatch.setattr(parsing, "MAX_XML_BYTES", 10)
    with pytest.raises(SourceError, match="the limit is 10"):
        imported("voc", voc(tmp_path / "in", {"a": []}), tmp_path / "out")


def test_extreme_coordinates_are_outside_the_image(tmp_path):
    source = voc(
        tmp_path / "in", {"a": [("cat", -1e308, 3, 1e308, 5), ("cat", 1e308, 3, 1.1e308, 5)]}
    )
    report, rows = imported("voc", source, tmp_path / "out")
    assert boxes_of(rows["JPEGImages/a.png"]) == [("cat", 0, 2, 20, 5)]
    assert kinds(report) == {"box_partly_outside": 1, "box_outside": 1}
