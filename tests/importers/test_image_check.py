"""Images that cannot be decoded are found at import; names of cameras are data, junk is counted."""

import io
import json
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from cvbatch.core.errors import SourceError
from cvbatch.core.types import EncodedImage
from cvbatch.importers.image_check import ImageCheck
from tests.support.datasets import check_sums, coco, files, imported, kinds, picture, put


def jpeg(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def is_readable(data):
    """Return whether Pillow alone decodes an image."""
    try:
        Image.open(io.BytesIO(data)).load()
    except (OSError, UnidentifiedImageError, SyntaxError):
        return False
    return True


GOOD = {f"cat/{i}.jpg": jpeg(i) for i in range(20)}
BAD = {f"dog/{i}.jpg": jpeg(i)[: 800 + 200 * i] for i in range(6)}
BAD["dog/x.png"] = picture(40, 50)[:3000]


def test_truncated_images_are_dropped_and_named(tmp_path):
    assert all(map(is_readable, GOOD.values()))
    assert not any(map(is_readable, BAD.values()))
    source = put(tmp_path / "in", GOOD | BAD | {"dog/ok.jpg": jpeg()})
    report, rows = imported("folders", source, tmp_path / "out", check_images=True)
    assert set(rows) == {*GOOD, "dog/ok.jpg"}
    assert kinds(report) == {"image_damaged": len(BAD)}
    assert all("/dog/" in example for example in report.issues["image_damaged"].examples)
    lines = (tmp_path / "out" / "_cvbatch" / "issues.jsonl").read_text().splitlines()
    issues = [json.loads(line) for line in lines]
    assert {(issue["kind"], issue["action"]) for issue in issues} == {("image_damaged", "drop")}
    named = {issue["place"].split(": ")[0].removeprefix(f"{source}/") for issue in issues}
    assert named == set(BAD)  # all of them, not only the examples of the report
    check_sums(report)
    with pytest.raises(SourceError, match=r"cannot be decoded.*use --damaged drop"):
        imported("folders", source, tmp_path / "refused", {"damaged": "refuse"}, check_images=True)
    assert not (tmp_path / "refused").exists()
    _, rows = imported("folders", source, tmp_path / "kept", {"damaged": "keep"}, check_images=True)
    assert set(rows) == {*GOOD, *BAD, "dog/ok.jpg"}
    report, _ = imported("folders", source, tmp_path / "unchecked")
    assert kinds(report) == {}
    assert files(tmp_path / "unchecked") == files(tmp_path / "kept")


def test_objects_of_damaged_images_are_counted(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 96} for i in (1, 2)]
    text = coco(images, [{"image_id": 1}, {"image_id": 2}, {"image_id": 2}])
    source = put(tmp_path / "in", {"labels.json": text, "data/1.jpg": jpeg()})
    put(source, {"data/2.jpg": jpeg()[:1500]})
    report, rows = imported("coco", source, tmp_path / "out", check_images=True)
    assert list(rows) == ["data/1.jpg"]
    assert report.as_json()["objects"]["of_dropped_images"] == 2
    check_sums(report)


def test_the_order_is_that_of_the_images_and_each_is_decoded_once():
    decoded = []
    images = [EncodedImage(f"{i}", "", bytes([i])) for i in range(60)]
    check = ImageCheck(
        is_enabled=True,
        new_decoder=lambda: nullcontext(lambda data, keys, limits: decoded.append(data[0])),
    )
    assert [image for image, _ in check.with_damage(iter(images))] == images
    check.finish_first_pass()
    assert [image for image, _ in check.with_damage(iter(images))] == images
    assert sorted(decoded) == list(range(60))
    assert list(check.with_damage(iter([]))) == []


def test_names_of_cameras_are_imported_and_junk_is_counted(tmp_path):
    names = ("_background_/_DSC0001.jpg", "_background_/.hidden.jpg", "cat/_MG_0001.jpg")
    junk = ("cat/._a.jpg", "cat/.DS_Store", "__MACOSX/cat/a.jpg", "cat/Thumbs.db")
    source = put(tmp_path / "in", dict.fromkeys((*names, *junk), jpeg()))
    report, rows = imported("folders", source, tmp_path / "out")
    assert set(rows) == set(names)
    assert report.as_json()["ignored"] == {"junk": 4}
    assert "ignored  4 junk, such as " in report.as_text()
    assert list(report.classes["labels"]) == ["_background_", "cat"]
