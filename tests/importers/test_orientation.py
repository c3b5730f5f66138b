"""Boxes and masks turn with the pixels they were drawn on, whatever EXIF says."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from cvbatch.images.masks import decode_png
from cvbatch.images.orientation import ImageInfo, LabelCoordinates
from cvbatch.importers.annotations import MaskFault
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


def drawn(orientation):
    """An image of zeros with BOX in white, with an EXIF orientation."""
    pixels = np.zeros((12, 20), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    return encoded(Image.fromarray(pixels), orientation)


def upright(data):
    """What Pillow, not this project, makes of the orientation."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


def extent(mask):
    y, x = np.nonzero(mask)
    return (x.min(), y.min(), x.max() + 1, y.max() + 1)


def test_no_boxes_turn_into_no_boxes():
    assert LabelCoordinates(ImageInfo((3, 4), 6), False).boxes_to_upright(
        np.empty((0, 4))
    ).shape == (0, 4)


def voc_of(tmp_path, data, size):
    x0, y0, x1, y1 = BOX
    xml = voc_xml([("cat", x0 + 1, y0 + 1, x1, y1)], size)
    return put(tmp_path / "in", {"JPEGImages/a.png": data, "Annotations/a.xml": xml})


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_boxes_of_stored_pixels_are_turned_with_them(tmp_path, orientation):
    data = drawn(orientation)
    report, rows = imported("voc", voc_of(tmp_path, data, (12, 20)), tmp_path / "out")
    row = rows["JPEGImages/a.png"]
    pixels = upright(data)
    assert (row["height"], row["width"]) == pixels.shape
    assert boxes_of(row) == [("cat", *extent(pixels))]
    assert kinds(report) == ({} if orientation == 1 else {"turned": 1})
    check_sums(report)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_annotation_of_the_upright_size_is_taken_at_its_word(tmp_path, orientation):
    source = voc_of(tmp_path, drawn(orientation), (20, 12))
    _, rows = imported("voc", source, tmp_path / "out")
    assert boxes_of(rows["JPEGImages/a.png"]) == [("cat", *BOX)]
    report, rows = imported(
        "voc", source, tmp_path / "x", {"declared-size": "keep"}, orientation="stored"
    )
    assert boxes_of(rows["JPEGImages/a.png"]) == [("cat", *extent(upright(drawn(orientation))))]
    assert kinds(report)["declared_size"] == 1


def test_what_the_annotation_cannot_tell_a_flag_does(tmp_path):
    source = voc_of(tmp_path, drawn(3), (12, 20))
    _, rows = imported("voc", source, tmp_path / "out", orientation="upright")
    assert boxes_of(rows["JPEGImages/a.png"]) == [("cat", *BOX)]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_masks_are_turned_with_the_pixels(tmp_path, orientation):
    data = drawn(orientation)
    stored = (np.asarray(Image.open(io.BytesIO(data))) > 0).astype(np.uint8)
    expected = (upright(data) > 0).astype(np.uint8)
    said = {"classes": ("no", "yes"), "images": str(tmp_path / "i"), "masks": str(tmp_path / "m")}
    put(tmp_path, {"i/a.png": data, "m/a.png": label_png(stored)})
    _, rows = imported("trimaps", tmp_path / "i", tmp_path / "out", **said)
    np.testing.assert_array_equal(decode_png(rows["a.png"]["mask"]["bytes"]), expected)
    put(tmp_path, {"m/a.png": label_png(expected)})  # sideways, its own shape says so
    _, rows = imported(
        "trimaps", tmp_path / "i", tmp_path / "out2", **said,
        orientation="auto" if orientation > 4 else "upright",
    )  # fmt: skip
    np.testing.assert_array_equal(decode_png(rows["a.png"]["mask"]["bytes"]), expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_outlines_are_turned_with_the_pixels(tmp_path, orientation):
    data = drawn(orientation)
    x0, y0, x1, y1 = BOX
    said = {"image_id": 1, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
    text = coco([{"id": 1, "file_name": "a.png"}], [said])
    source = put(tmp_path / "in", {"train/a.png": data, "annotations/instances_train.json": text})
    _, rows = imported("coco", source, tmp_path / "out", has_masks=True)
    found = decode_png(rows["train/a.png"]["mask"]["bytes"])
    np.testing.assert_array_equal(found > 0, upright(data) > 0)


VALUES = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4


def grey_png(bits):
    """Return VALUES as a grey PNG of few bits, written by hand: Pillow and OpenCV write 8."""
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
def test_a_mask_is_the_values_in_its_file_however_stored(data):
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
def test_what_is_no_mask_says_why(data, kind):
    fault = read_mask_file(data, (3, 4))
    assert isinstance(fault, MaskFault)
    assert fault.kind == kind
