"""Boxes in a wrong format are refused with the format that fits."""

import numpy as np
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ModelError
from cvbatch.inference.detection_check import check_boxes

HEIGHT, WIDTH = 100, 300


def config(box_format):
    job = {"source": {"uri": "in"}, "sink": {"uri": "out"}}
    model = {"task": "detection", "model": "a.keras", "box_format": box_format}
    return parse_job({**job, "models": [model]}).models[0]


def objects(count=80):
    """Boxes of objects (x_min, y_min, width, height) in the image, in pixels."""
    random = np.random.default_rng(0)
    sizes = random.uniform((8, 8), (60, 40), (count, 2))
    corners = random.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sizes)
    return corners, sizes


def written_as(box_format):
    """Write the boxes in a format, by the words of its name."""
    corners, sizes = objects()
    scale = np.array([WIDTH, HEIGHT]) if box_format.startswith("rel_") else np.ones(2)
    name = box_format.removeprefix("rel_")
    first = corners + sizes / 2 if name.startswith("center_") else corners
    second = sizes if name.endswith(("wh", "hw")) else corners + sizes
    pairs = [first / scale, second / scale]
    if name.removeprefix("center_").startswith("y"):
        pairs = [pair[:, ::-1] for pair in pairs]
    return np.concatenate(pairs, axis=1).astype(np.float32)


FORMATS = [
    *("xyxy", "yxyx", "xywh", "center_xywh", "center_yxhw"),
    *("rel_xyxy", "rel_yxyx", "rel_xywh", "rel_center_xywh"),
]


@pytest.mark.parametrize("box_format", FORMATS)
def test_the_right_format_is_accepted(box_format):
    check_boxes(config(box_format), written_as(box_format), HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("xywh", "xyxy"),
        ("center_xywh", "xyxy"),
        ("rel_xyxy", "xyxy"),
        ("rel_yxyx", "xyxy"),
        ("rel_center_xywh", "xyxy"),
        ("xyxy", "rel_xyxy"),
        ("yxyx", "xyxy"),
    ],
)
def test_a_wrong_format_is_refused_with_the_one_that_fits(written, read):
    with pytest.raises(ModelError, match="box_format") as caught:
        check_boxes(config(read), written_as(written), HEIGHT, WIDTH)
    suggestion = str(caught.value).split("that fits is ")[1].split(";")[0].split(" or ")
    assert written in suggestion
    assert read not in suggestion


def test_boxes_that_fit_no_format_are_accepted():
    noise = np.random.default_rng(1).normal(0, 1000, (50, 4))
    check_boxes(config("xyxy"), noise.astype(np.float32), HEIGHT, WIDTH)


def test_boxes_that_are_not_numbers_are_refused():
    with pytest.raises(ModelError, match="NaN"):
        check_boxes(config("xyxy"), np.full((5, 4), np.nan, np.float32), HEIGHT, WIDTH)
