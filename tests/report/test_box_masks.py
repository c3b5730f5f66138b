"""The page draws the mask of a box: the outline covers the pixels of the mask."""

import re

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_masks

import cvbatch
from cvbatch.report.columns import COLUMN_PAGES, Drawing
from cvbatch.report.svg_boxes import Tags, draw_box, draw_mask
from tests.support import jobs
from tests.support.datasets import picture
from tests.support.results import SIZE, random_row, write_predictions


def painted(path, size):
    """Draw a path of straight lines with OpenCV, by the even-odd rule, at four times the size."""
    region = np.zeros((size[0] * 4, size[1] * 4), np.uint8)
    polygons = [
        np.array(part.split(), np.float64).reshape(-1, 2) * 4
        for part in re.findall(r"M([^Z]*)Z", path)
    ]
    cv2.fillPoly(region, [polygon.round().astype(np.int32) for polygon in polygons], 1)
    return region[2::4, 2::4].astype(bool)


@pytest.mark.parametrize("size", [(300, 400), (1500, 900)])
def test_an_outline_covers_the_mask(size):
    y, x = np.indices(size)
    region = np.hypot(y - size[0] / 2, x - size[1] / 3) < size[1] / 4
    region &= ~(np.hypot(y - size[0] / 2, x - size[1] / 3) < size[1] / 9)  # a hole
    region[: size[0] // 8, -size[1] // 5 :] = True  # another part
    drawn = painted(draw_mask(region, "#112233").attrib["d"], size)
    assert (drawn & region).sum() / (drawn | region).sum() > 0.96


def test_a_mask_of_noise_has_a_short_outline():
    noise = np.random.default_rng(0).random((500, 500)) < 0.5
    assert len(draw_mask(noise, "#112233").attrib["d"]) < 20_000
    assert draw_mask(np.zeros((5, 5), bool), "#112233").attrib["d"] == ""


def test_every_box_with_a_mask_has_its_outline_below_it(tmp_path):
    prediction = random_row(5)
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE)})
    (row,) = cvbatch.read(
        write_predictions(
            tmp_path / "r", tmp_path / "images", {"a.png": prediction}, detection={"masks": "box"}
        )
    )
    layer = COLUMN_PAGES["boxes"].svg_layer(row, Drawing({"cat": 1}), Tags(SIZE))
    assert len(layer.elements) == 5
    masks = reversed(prediction["box_masks"])  # the first box is on top
    for group, rle in zip(layer.elements, masks, strict=True):
        path, *rest = group
        assert path.tag == "path"
        assert "path" not in {element.tag for element in rest}
        region = coco_masks.decode(rle).astype(bool)
        drawn = painted(path.attrib["d"], SIZE)
        assert (drawn & region).sum() / region.sum() > 0.6  # of blocks of 8 x 10 pixels


@pytest.mark.parametrize("size", [(300, 400), (1500, 900)])
def test_no_name_covers_another_one_in_a_small_image(size):
    rng, tags = np.random.default_rng(2), Tags(size)
    height, width = size
    corners = np.sort(rng.uniform(0, [[[width, height]]], (30, 2, 2)), axis=1).reshape(-1, 4)
    corners = np.concatenate([corners[:8], corners[:8], corners])  # found, missed or labelled
    scores = [0.5] * 8 + [None] * 8 + [0.4] * 30
    names = [
        draw_box(box, "a name", score, "#112233", tags)[-1]
        for box, score in zip(corners.tolist(), scores, strict=True)
    ]
    shown = [name for name in names if "crowded" not in name.get("class")]
    covered = np.zeros(size, int)
    for name in shown:
        x, y, w, h = (float(name[0].get(key)) for key in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + w <= width + 0.01 and y + h <= height + 0.01
        covered[int(y) + 1 : int(y + h), int(x) + 1 : int(x + w)] += 1
    assert covered.max() == 1 and 8 <= len(shown) < len(names)
