"""Pascal VOC as other tools write it: layouts, difficult, lists, outlines, encodings."""

import math

import numpy as np
import pytest

from cvbatch.core.errors import SourceError
from tests.support.datasets import (
    boxes_of,
    check_sums,
    imported,
    kinds,
    picture,
    put,
    voc,
    voc_xml,
)

GOOD = [("cat", 2, 2, 6, 6)]
GOOD_BOX = ("cat", 1, 1, 6, 6)


def with_object(inner, name="cat"):
    return f"<annotation><object><name>{name}</name>{inner}</object></annotation>"


def imported_object(tmp_path, xml):
    """Import one image with this annotation; return the report and its row."""
    put(tmp_path / "in", {"JPEGImages/a.png": picture(), "Annotations/a.xml": xml})
    report, rows = imported("voc", tmp_path / "in", tmp_path / "out")
    check_sums(report)
    return report, rows["JPEGImages/a.png"]


BNDBOX = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>6</xmax><ymax>6</ymax></bndbox>"
DIFFICULT = {
    "0": False, "1": True, "": False, " 0 ": False, "False": False, "false": False, "no": False,
    "0.0": False, "True": True, "yes": True, "1.0": True, "Unspecified": None, "maybe": None,
}  # fmt: skip


@pytest.mark.parametrize("text", [*DIFFICULT, None])
def test_only_a_clear_yes_makes_an_object_difficult(tmp_path, text):
    element = "" if text is None else f"<difficult>{text}</difficult>"
    report, row = imported_object(tmp_path, with_object(BNDBOX + element))
    is_difficult = DIFFICULT[text] if text is not None else False
    assert row["box_is_crowd"] == [bool(is_difficult)]
    assert kinds(report) == ({} if is_difficult is not None else {"difficult_unclear": 1})


def rotated_bounds(x, y, width, height, angle):
    """Return the bounds of a rotated rectangle by turning many points of its border."""
    t = np.linspace(-0.5, 0.5, 201)
    border = [(a, b) for s in t for a, b in ((s, -0.5), (s, 0.5), (-0.5, s), (0.5, s))]
    turned = [
        (x + a * width * math.cos(angle) - b * height * math.sin(angle),
         y + a * width * math.sin(angle) + b * height * math.cos(angle))
        for a, b in border
    ]  # fmt: skip
    return *np.min(turned, axis=0), *np.max(turned, axis=0)


OUTLINES = {
    "polygon of x1, y1": (
        "<polygon><x1>3</x1><y1>2</y1><x2>9</x2><y2>4</y2><x3>5</x3><y3>8</y3></polygon>",
        (3, 2, 9, 8),
    ),
    "polygon of pt": (
        "<polygon><pt><x>3</x><y>2</y></pt><pt><x>9</x><y>4</y></pt><pt><x>5</x><y>8</y></pt>"
        "</polygon>",
        (3, 2, 9, 8),
    ),
    "empty bndbox beside a polygon": (
        "<bndbox/><polygon><x1>3</x1><y1>2</y1><x2>9</x2><y2>4</y2><x3>5</x3><y3>8</y3></polygon>",
        (3, 2, 9, 8),
    ),
    "rotated": (
        "<robndbox><cx>10</cx><cy>6</cy><w>8</w><h>3</h><angle>0.4</angle></robndbox>",
        rotated_bounds(10, 6, 8, 3, 0.4),
    ),
}


@pytest.mark.parametrize("name", OUTLINES)
def test_a_box_is_derived_from_an_outline(tmp_path, name):
    inner, (x_min, y_min, x_max, y_max) = OUTLINES[name]
    report, row = imported_object(tmp_path, with_object(inner))
    ((_, *box),) = boxes_of(row)
    assert box == pytest.approx([x_min - 1, y_min - 1, x_max, y_max], abs=1e-5)
    assert kinds(report) == {"box_derived": 1}


UNUSABLE = {
    "no box": (with_object(""), "box_invalid"),
    "empty box": (with_object("<bndbox/>"), "box_invalid"),
    "text": (voc_xml([("cat", "left", 1, 2, 3)]), "box_invalid"),
    "NaN": (voc_xml([("cat", "nan", 1, 2, 3)]), "box_invalid"),
    "infinite": (voc_xml([("cat", "1e999", 1, 2, 3)]), "box_invalid"),
    "two corners": (
        with_object("<polygon><x1>1</x1><y1>1</y1><x2>2</x2><y2>2</y2></polygon>"), "box_invalid",
    ),
    "no name": (with_object(BNDBOX, name=""), "object_invalid"),
    "size": (voc_xml(GOOD, size=("x", 3)), "size_invalid"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_object_is_counted_and_can_be_refused(tmp_path, name):
    xml, kind = UNUSABLE[name]
    source = voc(tmp_path / "in", {"b": GOOD})
    put(source, {"JPEGImages/a.png": picture(), "Annotations/a.xml": xml})
    report, rows = imported("voc", source, tmp_path / "out")
    assert boxes_of(rows["JPEGImages/a.png"]) == ([GOOD_BOX] if kind == "size_invalid" else [])
    assert report.issues[kind].count == 1
    check_sums(report)
    flag = "repaired" if kind == "size_invalid" else "faulty"
    with pytest.raises(SourceError, match=r"a\.xml"):
        imported("voc", source, tmp_path / "refused", {flag: "refuse"})


def test_broken_files_are_refused_together_or_dropped(tmp_path):
    source = voc(tmp_path / "in", dict.fromkeys("abcd", GOOD))
    doctype = "<!DOCTYPE a [<!ENTITY x 'y'>]><annotation>&x;</annotation>"
    put(source, {"Annotations/a.xml": "<annotation>", "Annotations/b.xml": doctype})
    put(source, {"Annotations/c.xml": "<html/>"})
    with pytest.raises(SourceError, match=r"cannot be read \(3\), such as .*use --broken drop"):
        imported("voc", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report, rows = imported("voc", source, tmp_path / "out", {"broken": "drop"})
    assert list(rows) == ["JPEGImages/d.png"]
    assert kinds(report) == {"annotation_unreadable": 3}
    check_sums(report)


def test_lists_may_have_spaces_flags_suffixes_and_folders(tmp_path):
    stems = ["a b", "c", "d 1", "#e", "f", "sub/g"]
    source = voc(tmp_path / "in", dict.fromkeys(stems, GOOD))
    put(source, {
        "ImageSets/Main/train.txt": "a b\nc  1\nd 1\n\n# a comment\n#e  -1\n",
        "ImageSets/Main/val.txt": "\ufeffJPEGImages/f.png\n",
        "ImageSets/Main/test.txt": "sub/g.png 0\r\ngone  1\n",
    })  # fmt: skip
    report, rows = imported("voc", source, tmp_path / "out")
    splits = {name.removeprefix("JPEGImages/"): row["split"] for name, row in rows.items()}
    assert splits == {
        "a b.png": "train", "c.png": "train", "d 1.png": "train", "#e.png": "train",
        "f.png": "validation", "sub/g.png": "test",
    }  # fmt: skip
    assert kinds(report) == {"image_missing": 1}
    assert "gone" in report.issues["image_missing"].examples[0]


BESIDE = {
    "one folder": ({"a.png": "a.xml", "b.jpg": "b.xml"}, {}),
    "Roboflow": (
        {"train/a.png": "train/a.xml", "valid/b.png": "valid/b.xml", "test/c.png": "test/c.xml"},
        {"train/a.png": "train", "valid/b.png": "validation", "test/c.png": "test"},
    ),
    "two folders": ({"images/a.png": "labels/a.xml", "images/b.png": "labels/b.xml"}, {}),
    "same name in two folders": ({"x/a.png": "x/a.xml", "y/a.png": "y/a.xml"}, {}),
    "images elsewhere": ({"pictures/a.png": "Annotations/a.xml"}, {}),
}


@pytest.mark.parametrize("layout", BESIDE)
def test_xml_files_need_no_folders_of_voc(tmp_path, layout):
    pairs, splits = BESIDE[layout]
    for i, (image, xml) in enumerate(pairs.items()):
        put(tmp_path / "in", {image: picture(seed=i), xml: voc_xml([("cat", 2, 2, 6 + i, 6)])})
    report, rows = imported("voc", tmp_path / "in", tmp_path / "out")
    assert sorted(rows) == sorted(pairs)
    for i, image in enumerate(pairs):
        assert boxes_of(rows[image]) == [("cat", 1, 1, 6 + i, 6)]
        assert image not in splits or rows[image]["split"] == splits[image]
    assert kinds(report) == {}
    check_sums(report)


def test_a_name_of_several_images_is_not_paired(tmp_path):
    files = {"x/a.png": picture(), "y/a.png": picture(), "xml/a.xml": voc_xml(GOOD)}
    source = put(tmp_path / "in", files | {"b.png": picture(), "b.xml": voc_xml(GOOD)})
    report, rows = imported("voc", source, tmp_path / "out")
    assert list(rows) == ["b.png"]
    assert kinds(report) == {"annotation_missing": 2, "image_missing": 1}
    check_sums(report)


def test_labels_alone(tmp_path):
    source = put(tmp_path / "in", {"Annotations/a.xml": voc_xml([("cat", 15, 2, 25, 6)])})
    _, rows = imported("voc", source, tmp_path / "out", has_images=False)
    assert boxes_of(rows["JPEGImages/a"]) == [("cat", 14, 1, 20, 6)]
    xml = voc_xml(GOOD).replace("<size>", "<filename>a.jpg</filename><size>")
    put(source, {"Annotations/a.xml": xml})
    _, rows = imported("voc", source, tmp_path / "named", has_images=False)
    assert list(rows) == ["JPEGImages/a.jpg"]


ENCODINGS = [
    "utf-8", "utf-16", "utf-16-le", "utf-16-be", "iso-8859-1", "windows-1252", "gbk", "shift_jis",
    "euc-kr", "big5", "koi8-r",
]  # fmt: skip
NAME_OF = {
    "gbk": "汽车", "shift_jis": "くるま", "euc-kr": "자동차", "big5": "汽車", "koi8-r": "машина",
}  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("has_mark", [False, True])
def test_declared_encodings_are_read(tmp_path, encoding, has_mark):
    name = NAME_OF.get(encoding, "bär")
    declaration = f"<?xml version='1.0' encoding='{encoding.removesuffix('-le')}'?>\n"
    data = (declaration + voc_xml([(name, 2, 2, 6, 6)])).encode(encoding)
    marks = {"utf-8": b"\xef\xbb\xbf", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
    if has_mark and encoding in marks:
        data = marks[encoding] + data
    _, row = imported_object(tmp_path, data)
    assert boxes_of(row) == [(name, 1, 1, 6, 6)]


def test_a_text_that_only_says_utf_16_is_read(tmp_path):
    xml = '<?xml version="1.0" encoding="utf-16"?>' + voc_xml([("bär", 2, 2, 6, 6)])
    _, row = imported_object(tmp_path, xml.encode())
    assert boxes_of(row) == [("bär", 1, 1, 6, 6)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (voc_xml([("bär", 2, 2, 6, 6)]).encode("latin-1"), "declare the right one"),
        (b"<?xml version='1.0' encoding='hex'?><annotation/>", "is not XML|is not text"),
        (b"<?xml version='1.0' encoding='gbk'?><annotation>\xff\xff</annotation>", "not text of"),
        ("<!DOCTYPE a [<!ENTITY x 'y'>]><annotation/>".encode("utf-16"), "declares a DOCTYPE"),
        (b"<?xml version='1.0' encoding='utf-7'?>+ADwAIQ-DOCTYPE a+AD4-<annotation/>", "DOCTYPE"),
    ],
)
def test_a_wrong_encoding_and_hidden_entities_are_refused(tmp_path, data, message):
    source = put(tmp_path / "in", {"JPEGImages/a.png": picture(), "Annotations/a.xml": data})
    with pytest.raises(SourceError, match=message) as error:
        imported("voc", source, tmp_path / "out")
    assert "a.xml" in str(error.value)
    assert not (tmp_path / "out").exists()
