"""Boxes and masks are rotated with the pixels that they refer to, for all EXIF orientations."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from cvbatch.images.masks import decode_png
from cvbatch.images.orientation import ImageInfo, LabelCoordinates
from cvbatch.importers.annotations import MaskIssue
from cvbatch.importers.mask_files import read_mask_file
from tests.support.datasets import (
    boxes_of,
    check_sums,
    coco,
    encoded,
    imported,
    kinds,
    label_png,
    picture,
    put,
    voc_xml,
)

ORIENTATIONS = range(1, 9)
BOX = (3, 2, 11, 5)  # half-open, of 12 x 20 pixels as stored


def box_image(orientation):
    """A black PNG with BOX in white and an EXIF orientation."""
    pixels = np.zeros((12, 20), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    return encoded(Image.fromarray(pixels), orientation)


def upright(data):
    """The upright pixels according to Pillow (independent oracle)."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


def extent(mask):
    y, x = np.nonzero(mask)
    return (x.min(), y.min(), x.max() + 1, y.max() + 1)


def test_no_boxes_stay_no_boxes():
    assert LabelCoordinates(ImageInfo((3, 4), 6), False).boxes_to_upright(
        np.empty((0, 4))
    ).shape == (0, 4)


def voc_of(tmp_path, data, size):
    x0, y0, x1, y1 = BOX
    xml = voc_xml([("cat", x0 + 1, y0 + 1, x1, y1)], size)
    return put(tmp_path / "in", {"JPEGImages/a.png": data, "Annotations/a.xml": xml})


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_boxes_of_stored_pixels_are_rotated(tmp_path, orientation):
    data = box_image(orientation)
    report, rows = imported("voc", voc_of(tmp_path, data, (12, 20)), tmp_path / "out")
    row = rows["JPEGImages/a.png"]
    pixels = upright(data)
    assert (row["height"], row["width"]) == pixels.shape
    assert boxes_of(row) == [("cat", *extent(pixels))]
    assert kinds(report) == ({} if orientation == 1 else {"turned": 1})
    check_sums(report)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_annotation_with_the_upright_size_refers_to_upright_pixels(tmp_path, orientation):
    source = voc_of(tmp_path, box_image(orientation), (20, 12))
    _, rows = imported("voc", source, tmp_path / "out")
    assert boxes_of(rows["JPEGImages/a.png"]) == [("cat", *BOX)]
    report, rows = imported(
        "voc", source, tmp_path / "x", {"declared-size": "keep"}, orientation="stored"
    )
    assert boxes_of(rows["JPEGImages/a.png"]) == [("cat", *extent(upright(box_image(orientation))))]
    assert kinds(report)["declared_size"] == 1


def test_the_orientation_flag_decides_ambiguous_cases(tmp_path):
    source = voc_of(tmp_path, box_image(3), (12, 20))
    _, rows = imported("voc", source, tmp_path / "out", orientation="upright")
    assert boxes_of(rows["JPEGImages/a.png"]) == [("cat", *BOX)]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_masks_are_rotated(tmp_path, orientation):
    data = box_image(orientation)
    stored = (np.asarray(Image.open(io.BytesIO(data))) > 0).astype(np.uint8)
    expected = (upright(data) > 0).astype(np.uint8)
    options = {
        "classes": ("no", "yes"),
        "images": str(tmp_path / "i"),
        "masks": str(tmp_path / "m"),
    }
    put(tmp_path, {"i/a.png": data, "m/a.png": label_png(stored)})
    _, rows = imported("trimaps", tmp_path / "i", tmp_path / "out", **options)
    np.testing.assert_array_equal(decode_png(rows["a.png"]["mask"]["bytes"]), expected)
    put(tmp_path, {"m/a.png": label_png(expected)})  # if rotated by 90°, its shape shows it
    _, rows = imported(
        "trimaps", tmp_path / "i", tmp_path / "out2", **options,
        orientation="auto" if orientation > 4 else "upright",
    )  # fmt: skip
    np.testing.assert_array_equal(decode_png(rows["a.png"]["mask"]["bytes"]), expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_segmentations_are_rotated(tmp_path, orientation):
    data = box_image(orientation)
    x0, y0, x1, y1 = BOX
    annotation = {"image_id": 1, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
    text = coco([{"id": 1, "file_name": "a.png"}], [annotation])
    source = put(tmp_path / "in", {"train/a.png": data, "annotations/instances_train.json": text})
    _, rows = imported("coco", source, tmp_path / "out", has_masks=True)
    mask = decode_png(rows["train/a.png"]["mask"]["bytes"])
    np.testing.assert_array_equal(mask > 0, upright(data) > 0)


VALUES = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4


def grey_png(bits):
    """Return VALUES as a grey PNG with few bits; Pillow and OpenCV can only write 8."""
    import struct
    import zlib

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    lines = []
    for row in VALUES:
        text = "".join(f"{value:0{bits}b}" for value in row)
        lines.append(
            b"\0" + int(text.ljust(-len(text) // 8 * -8, "0"), 2).to_bytes(-(-len(text) // 8))
        )
    header = struct.pack(">IIBBBBB", 4, 3, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(b"".join(lines))),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize(
    "data",
    [
        label_png(VALUES),
        label_png(VALUES, palette=True),
        grey_png(2),
        grey_png(4),
        cv2.imencode(".png", VALUES.astype(np.uint16))[1].tobytes(),
    ],
    ids=["grey", "palette", "2 bits", "4 bits", "16 bits"],
)
def test_mask_values_are_read_from_every_kind_of_png(data):
    np.testing.assert_array_equal(read_mask_file(data, (3, 4)), VALUES)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "mask_unreadable"),
        (b"not a picture", "mask_unreadable"),
        (label_png(VALUES)[:50], "mask_unreadable"),
        (picture(3, 4), "mask_unreadable"),
        (cv2.imencode(".jpg", VALUES)[1].tobytes(), "mask_unreadable"),
        (label_png(np.zeros((5, 5), np.uint8)), "mask_size"),
        (cv2.imencode(".png", np.full((3, 4), 300, np.uint16))[1].tobytes(), "mask_value"),
    ],
)
def test_an_invalid_mask_is_an_issue(data, kind):
    issue = read_mask_file(data, (3, 4))
    assert isinstance(issue, MaskIssue)
    assert issue.kind == kind
