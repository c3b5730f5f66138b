"""Import of a CSV file of images and classes."""

import csv
import io

import pytest

from cvbatch.core.errors import ConfigError, SourceError
from tests.support.datasets import check_sums, imported, kinds, picture, put


def labels_of(rows):
    return {name: [label["label"] for label in row["labels"]] for name, row in rows.items()}


def written(rows, delimiter=","):
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "header", [("image", "class"), ("File_Name", "label"), ("path", "category")]
)
def test_classes_splits_and_quotes(tmp_path, delimiter, header):
    table = [
        (*header, "split"), ("x/a b.png", "cat, black", "train"), ("y.png", 'dog "x"', "val"), [],
        ("./z.png", "dog \"x\"", ""),
    ]  # fmt: skip
    files = {"x/a b.png": picture(), "y.png": picture(), "z.png": picture()}
    source = put(tmp_path / "in", files | {"labels.csv": "\ufeff" + written(table, delimiter)})
    report, rows = imported("csv", source / "labels.csv", tmp_path / "out")
    assert labels_of(rows) == {
        "x/a b.png": ["cat, black"], "y.png": ['dog "x"'], "z.png": ['dog "x"'],
    }  # fmt: skip
    assert [rows[n]["split"] for n in ("x/a b.png", "y.png")] == ["train", "validation"]
    assert list(report.classes["labels"]) == ["cat, black", 'dog "x"']
    check_sums(report)


def test_every_row_is_an_image_or_counted(tmp_path):
    table = [
        ("image", "class"), ("a.png", "cat"), ("a.png", "dog"), ("gone.png", "cat"), ("b.png", ""),
        ("", "cat"), ("../../secret.png", "cat"), ("C:\\x\\c.png", "cat"), ("d.png",),
        ("e.png", "bird"),
    ]  # fmt: skip
    files = {f"in/{name}.png": picture() for name in "abcde"} | {"secret.png": picture()}
    put(tmp_path, files | {"in/l.csv": written(table)})
    options = {"classes": ("cat", "dog")}
    with pytest.raises(SourceError, match="a class that is not in --classes"):
        imported("csv", tmp_path / "in/l.csv", tmp_path / "out", **options)
    report, rows = imported(
        "csv", tmp_path / "in/l.csv", tmp_path / "out", {"unknown": "drop"}, **options
    )
    assert labels_of(rows) == {"a.png": ["cat"], "c.png": ["cat"]}
    assert kinds(report) == {
        "duplicate": 1, "image_missing": 2, "annotation_missing": 2, "image_invalid": 1,
        "image_by_name": 1, "label_unknown": 1,
    }  # fmt: skip
    assert report.num_found == 9
    check_sums(report)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_texts_of_excel_are_read(tmp_path, encoding):
    text = "image\tclass\nbär.png\tBär\n"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    source = put(tmp_path, {"bär.png": picture(), "l.csv": mark + text.encode(encoding)})
    _, rows = imported("csv", source / "l.csv", tmp_path / "out")
    assert labels_of(rows) == {"bär.png": ["Bär"]}
    put(tmp_path, {"l.csv": text.encode("latin-1")})
    with pytest.raises(SourceError, match="is not UTF-8 text; convert it"):
        imported("csv", source / "l.csv", tmp_path / "no")


def test_several_classes_per_image(tmp_path):
    table = [
        ("image", "class"),
        ("a.png", "cat;dog"),
        ("a.png", "owl"),
        ("b.png", ""),
        ("c.png", "dog"),
    ]
    files = {f"{name}.png": picture() for name in "abc"}
    source = put(tmp_path / "in", files | {"l.csv": written(table)})
    _, rows = imported("csv", source / "l.csv", tmp_path / "out", separator=";")
    assert labels_of(rows) == {"a.png": ["cat", "dog", "owl"], "b.png": [], "c.png": ["dog"]}


def test_each_class_may_have_a_column(tmp_path):
    table = [("filename", " split", " cat", " dog", " owl"), ("a.png", "val", 1, 0, 0)]
    table += [("b.png", "train", " 1", " 1", "0"), ("c", "test", 0, 0, 0)]
    files = {f"images/{name}.png": picture() for name in "abc"}
    source = put(tmp_path / "in", files | {"_classes.csv": written(table)})
    report, rows = imported("csv", source / "_classes.csv", tmp_path / "out")
    assert labels_of(rows) == {
        "images/a.png": ["cat"], "images/b.png": ["cat", "dog"], "images/c.png": [],
    }  # fmt: skip
    assert list(report.classes["labels"]) == ["cat", "dog", "owl"]
    assert rows["images/a.png"]["split"] == "validation"
    assert kinds(report) == {"image_by_name": 3, "no_objects": 1}
    put(source, {"_classes.csv": written([*table, ("a.png", "val", 1, "x", 0)])})
    with pytest.raises(SourceError, match=r"line 5: no column is called class.*'dog' is 'x'"):
        imported("csv", source / "_classes.csv", tmp_path / "no")


def test_labels_alone(tmp_path):
    put(tmp_path, {"l.csv": "image,class\nx/a.png,cat\n"})
    _, rows = imported("csv", tmp_path / "l.csv", tmp_path / "out", has_images=False)
    assert labels_of(rows) == {"x/a.png": ["cat"]}
    assert rows["x/a.png"]["image"] is None


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("", {}, SourceError, "set --image-column"),
        ("a,b\nx,y\n", {}, SourceError, "has the columns a, b, none of which is called image"),
        ("image,b,c\nx,y,0\n", {}, SourceError, "must have a column of 0 and 1"),
        ("image,b\nx,y\n", {}, SourceError, "set --class-column"),
        ("image,class\n", {"image_column": "imag"}, ConfigError, "'imag' is no column"),
        ('image,class\n"' + "x" * 2_000_000 + '",y\n', {}, SourceError, "line 2: field larger"),
        ("image,class\n", {}, SourceError, "no usable labelled image"),
    ],
)
def test_an_invalid_file_is_refused(tmp_path, text, options, error, message):
    put(tmp_path, {"in/l.csv": text, "in/x.png": picture()})
    with pytest.raises(error, match=message):
        imported("csv", tmp_path / "in/l.csv", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
