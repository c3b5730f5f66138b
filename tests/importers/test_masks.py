"""Import of masks: pairs by folder and suffix, colours of labelmap.txt, values, TIFF."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.images.masks import decode_png
from tests.support.datasets import check_sums, encoded, imported, kinds, label_png, picture, put

MASK = np.random.default_rng(0).integers(0, 3, (12, 20)).astype(np.uint8)
NAMES = ("ground", "cat", "dog")
COLOURS = np.array([[0, 0, 0], [250, 50, 83], [51, 221, 255]], np.uint8)
LABELMAP = """# label:color_rgb:parts:actions
ground:0,0,0::
cat:250,50,83::

dog: 51, 221, 255 ::
"""


def tiff(mask, **options):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "TIFF", **options)
    return file.getvalue()


def palette_png(mask, colours=COLOURS):
    image = Image.fromarray(mask)
    image.putpalette(colours.reshape(-1).tolist())
    return encoded(image)


LAYOUTS = {
    "folders": ("images/a.png", "masks/a.png"),
    "CVAT": ("JPEGImages/a.png", "SegmentationClass/a.png"),
    "folders of a split": ("images/train/a.png", "masks/train/a.png"),
    "split of folders": ("train/images/a.png", "train/masks/a.png"),
    "suffix in a folder": ("images/a.png", "masks/a_mask.png"),
    "suffix beside": ("a.png", "a_mask.png"),
    "suffix beside, deeper": ("x/a.png", "x/a-mask.png"),
    "labels": ("images/a.png", "labels/a_labels.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_and_masks_are_paired(tmp_path, layout):
    image, mask = LAYOUTS[layout]
    source = put(tmp_path / "in", {image: picture(), mask: label_png(MASK)})
    report, rows = imported("masks", source, tmp_path / "out", classes=NAMES)
    assert list(rows) == [image]
    np.testing.assert_array_equal(decode_png(rows[image]["mask"]["bytes"]), MASK)
    assert "train" not in image or rows[image]["split"] == "train"
    assert kinds(report) == {}
    check_sums(report)


FILES = {
    "PNG of colours": cv2.imencode(".png", COLOURS[MASK][..., ::-1])[1].tobytes(),
    "PNG with alpha": encoded(Image.fromarray(COLOURS[MASK]).convert("RGBA")),
    "PNG with a palette": palette_png(MASK),
    "palette in another order": palette_png((MASK + 1) % 3, COLOURS[[2, 0, 1]]),
    "TIFF of colours": tiff(COLOURS[MASK], compression="tiff_lzw"),
    "TIFF of ids": tiff(MASK),
    "TIFF of 16 bits": tiff(MASK.astype(np.uint16), compression="tiff_deflate"),
    "BMP of colours": cv2.imencode(".bmp", COLOURS[MASK][..., ::-1])[1].tobytes(),
    "grey PNG of ids": label_png(MASK),
}


@pytest.mark.parametrize("name", FILES)
def test_colours_and_ids_give_the_classes_of_the_label_map(tmp_path, name):
    suffix = name[:4].strip().lower().replace("pale", "png").replace("grey", "png")
    files = {"images/a.png": picture(), f"masks/a.{suffix}": FILES[name]}
    source = put(tmp_path / "in", files | {"labelmap.txt": LABELMAP})
    report, rows = imported("masks", source, tmp_path / "out")
    np.testing.assert_array_equal(decode_png(rows["images/a.png"]["mask"]["bytes"]), MASK)
    assert list(report.classes["mask"]) == list(NAMES)


def test_masks_of_voc_use_the_label_map(tmp_path):
    xml = "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
    xml += "<ymax>9</ymax></bndbox></object></annotation>"
    coloured = COLOURS[MASK]
    coloured[0] = 224, 224, 192  # the contour in Pascal VOC
    source = put(tmp_path / "in", {
        "JPEGImages/a.png": picture(), "Annotations/a.xml": xml, "labelmap.txt": LABELMAP,
        "SegmentationClass/a.png": encoded(Image.fromarray(coloured)),
    })  # fmt: skip
    report, rows = imported("voc", source, tmp_path / "out")
    expected = MASK.copy()
    expected[0] = 255
    np.testing.assert_array_equal(decode_png(rows["JPEGImages/a.png"]["mask"]["bytes"]), expected)
    assert list(report.classes["mask"]) == list(NAMES)


def test_coloured_masks_of_voc_need_no_label_map(tmp_path):
    # The first colours of VOClabelcolormap.m.
    palette = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [224, 224, 192]], np.uint8)
    mask = np.where(MASK == 0, 3, MASK)
    source = put(tmp_path / "in", {
        "JPEGImages/a.png": picture(), "Annotations/a.xml": "<annotation/>",
        "SegmentationClass/a.png": encoded(Image.fromarray(palette[mask])),
    })  # fmt: skip
    _, rows = imported("voc", source, tmp_path / "out")
    expected = np.where(MASK == 0, 255, MASK)
    stored = decode_png(rows["JPEGImages/a.png"]["mask"]["bytes"])
    np.testing.assert_array_equal(stored, expected)


def test_a_colour_that_the_label_map_lacks_is_counted(tmp_path):
    odd = COLOURS[MASK]
    odd[3, 4] = 1, 2, 3
    source = put(tmp_path / "in", {
        "images/a.png": picture(), "masks/a.png": encoded(Image.fromarray(odd)),
        "images/b.png": picture(), "masks/b.png": FILES["PNG of colours"],
        "labelmap.txt": LABELMAP,
    })  # fmt: skip
    with pytest.raises(SourceError, match=r"colour 1,2,3 is not in labelmap.txt.*--unknown drop"):
        imported("masks", source, tmp_path / "out")
    report, rows = imported("masks", source, tmp_path / "out", {"unknown": "drop"})
    assert list(rows) == ["images/b.png"]
    check_sums(report)


def test_colours_without_a_label_map_are_not_guessed(tmp_path):
    source = put(
        tmp_path / "in", {"images/a.png": picture(), "masks/a.png": FILES["PNG of colours"]}
    )
    with pytest.raises(SourceError, match="colours, which need a labelmap"):
        imported("masks", source, tmp_path / "out", classes=NAMES)


def test_0_and_255_need_the_values(tmp_path):
    mask = np.where(MASK == 1, 255, 0).astype(np.uint8)
    source = put(tmp_path / "in", {"images/a.png": picture(), "masks/a.png": label_png(mask)})
    with pytest.raises(SourceError, match="set --values 0,255"):
        imported("masks", source, tmp_path / "out", classes=("ground", "cat"))
    _, rows = imported(
        "masks", source, tmp_path / "out", classes=("ground", "cat"), values=(0, 255)
    )
    np.testing.assert_array_equal(
        decode_png(rows["images/a.png"]["mask"]["bytes"]), (MASK == 1).astype(np.uint8)
    )


def test_every_file_is_paired_or_counted(tmp_path):
    source = put(tmp_path / "in", {
        "images/a.png": picture(), "masks/a.png": label_png(MASK), "masks/a.tif": tiff(MASK),
        "images/b.png": picture(), "masks/c_mask.png": label_png(MASK), "images/notes.txt": "",
        "images/d.png": picture(), "masks/d.png": label_png(MASK[:5]),
        "SegmentationObject/a.png": label_png(MASK),
    })  # fmt: skip
    report, rows = imported("masks", source, tmp_path / "out", classes=NAMES)
    assert list(rows) == ["images/a.png"]
    assert kinds(report) == {
        "duplicate": 1, "annotation_missing": 1, "image_missing": 1, "mask_size": 1,
    }  # fmt: skip
    check_sums(report)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ground", "must be name:red,green,blue"),
        ("ground:1,2::", "must be name:red,green,blue"),
        ("ground:1,2,256::", "must be name:red,green,blue"),
        ("ground:1,2,3::\nground:4,5,6::", "repeats a name or a colour"),
        ("ground:1,2,3::\ncat:1,2,3::", "repeats a name or a colour"),
        ("# nothing", "has 0 classes"),
        ("".join(f"c{i}:1,{i // 256},{i % 256}::\n" for i in range(300)), "has 300 classes"),
    ],
)
def test_an_invalid_label_map_is_refused(tmp_path, text, message):
    files = {"images/a.png": picture(), "masks/a.png": label_png(MASK), "labelmap.txt": text}
    with pytest.raises(SourceError, match=message):
        imported("masks", put(tmp_path / "in", files), tmp_path / "out")


def test_classes_are_required(tmp_path):
    source = put(tmp_path / "in", {"images/a.png": picture(), "masks/a.png": label_png(MASK)})
    with pytest.raises(ConfigError, match="set --classes"):
        imported("masks", source, tmp_path / "out")
    with pytest.raises(ConfigError, match="must be 3 different values"):
        imported("masks", source, tmp_path / "out", classes=NAMES, values=(0, 1))
    with pytest.raises(SourceError, match="contains no masks"):
        imported(
            "masks", put(tmp_path / "x", {"a.png": picture()}), tmp_path / "out", classes=NAMES
        )


def test_trimaps_takes_tiff_suffixes_and_colours_too(tmp_path):
    for number, (name, data) in enumerate(FILES.items()):
        suffix = name[:4].strip().lower().replace("pale", "png").replace("grey", "png")
        files = {"images/a.png": picture(), f"m/a_mask.{suffix}": data, "labelmap.txt": LABELMAP}
        source = put(tmp_path / f"{number}", files)
        _, rows = imported("trimaps", source, tmp_path / f"out{number}", masks=str(source / "m"))
        stored = decode_png(rows["images/a.png"]["mask"]["bytes"])
        np.testing.assert_array_equal(stored, MASK, err_msg=name)
    (source / "labelmap.txt").unlink()
    options = {"masks": str(source / "m"), "classes": NAMES, "mask_suffix": "_mask"}
    _, rows = imported("trimaps", source, tmp_path / "values", **options)  # the grey PNG of ids
    np.testing.assert_array_equal(decode_png(rows["images/a.png"]["mask"]["bytes"]), MASK)
