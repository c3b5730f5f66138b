"""Import of image and mask folders: Oxford-IIIT Pets trimaps, or any PNG masks."""

import numpy as np
import pytest

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.images.masks import decode_png
from tests.support.datasets import check_sums, imported, kinds, label_png, picture, put

TRIMAP = np.random.default_rng(0).integers(1, 4, (12, 20), np.uint8)


def pets(folder, stems, **lists):
    for i, stem in enumerate(stems):
        put(folder, {f"images/{stem}.png": picture(seed=i)})
        put(folder, {f"annotations/trimaps/{stem}.png": label_png(TRIMAP)})
    for name, listed in lists.items():
        lines = "".join(f"{stem} 1 1 1\n" for stem in listed)
        put(folder, {f"annotations/{name}.txt": "#Image CLASS-ID SPECIES BREED ID\n" + lines})
    return folder


def test_empty_folders_are_refused(tmp_path):
    with pytest.raises(SourceError, match="contains no images"):
        imported("trimaps", put(tmp_path / "in", {"x.txt": ""}), tmp_path / "out")
    with pytest.raises(SourceError, match="contains no masks"):
        imported("trimaps", put(tmp_path / "i", {"images/a.png": picture()}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_class_ids_are_trimap_values_minus_one(tmp_path):
    report, rows = imported("trimaps", pets(tmp_path / "in", "a"), tmp_path / "out")
    stored = decode_png(rows["images/a.png"]["mask"]["bytes"])
    np.testing.assert_array_equal(stored, TRIMAP - 1)
    assert report.classes == {"mask": {"foreground": 1, "background": 1, "contour": 1}}
    assert set(rows["images/a.png"]) == {"image_id", "image", "width", "height", "split", "mask"}


def test_split_lists_and_missing_images_are_counted(tmp_path):
    source = pets(tmp_path / "in", "abcd", trainval="ab", test=["c", "ghost"])
    (source / "images/b.png").unlink()
    put(source, {"annotations/trimaps/._a.png": b"AppleDouble file of macOS"})
    report, rows = imported("trimaps", source, tmp_path / "out")
    assert {name: row["split"] == "test" for name, row in rows.items()} == {
        "images/a.png": False,
        "images/c.png": True,
    }
    assert kinds(report) == {"image_missing": 2, "unlisted": 1}
    check_sums(report)


@pytest.mark.parametrize(
    ("mask", "kind", "flag"),
    [
        (label_png(np.ones((6, 20), np.uint8)), "mask_size", "mask-size"),
        (label_png(np.ones((20, 12), np.uint8)), "mask_size", "mask-size"),
        (b"not an image", "mask_unreadable", "unreadable"),
        (label_png(np.zeros((12, 20), np.uint8)), "mask_value", "unknown"),
    ],
)
def test_an_invalid_mask_is_dropped_or_refused(tmp_path, mask, kind, flag):
    source = put(pets(tmp_path / "in", "ab"), {"annotations/trimaps/b.png": mask})
    report, rows = imported("trimaps", source, tmp_path / "out", {flag: "drop"})
    assert list(rows) == ["images/a.png"]
    assert kinds(report) == {kind: 1}
    check_sums(report)
    with pytest.raises(SourceError, match=r"b\.png"):
        imported("trimaps", source, tmp_path / "refused", {flag: "refuse"})


def test_other_masks_with_their_classes(tmp_path):
    mask = np.zeros((12, 20), np.uint8)
    mask[3:] = 255
    put(tmp_path, {"i/x/a.png": picture(), "m/x/a.png": label_png(mask)})
    options = {
        "images": str(tmp_path / "i"),
        "masks": str(tmp_path / "m"),
        "classes": ("cell", "wall"),
    }
    _, rows = imported("trimaps", tmp_path, tmp_path / "out", values=(255, 0), **options)
    assert list(rows) == ["i/x/a.png"]
    np.testing.assert_array_equal(decode_png(rows["i/x/a.png"]["mask"]["bytes"]), mask == 0)
    _, rows = imported("trimaps", tmp_path, tmp_path / "void", **options)  # 255 is void otherwise
    np.testing.assert_array_equal(decode_png(rows["i/x/a.png"]["mask"]["bytes"]), mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": "m"}, "require --classes"),
        ({"values": (0, 1)}, "require --classes"),
        ({"classes": ("a", "b")}, "different values from 0 to 255"),
        (
            {"classes": ("a", "b"), "values": (1, 1)},
            "different values from 0 to 255",
        ),
        ({"classes": ("a", "b"), "values": (1, 256)}, "different values from 0 to 255"),
        ({"classes": tuple(map(str, range(256))), "masks": "m"}, "at most 255"),
    ],
)
def test_classes_and_values_that_disagree_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        imported("trimaps", pets(tmp_path / "in", "a"), tmp_path / "out", **options)
