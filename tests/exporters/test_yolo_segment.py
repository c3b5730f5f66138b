"""Polygons of YOLO: a mask is traced and drawn again without a changed pixel."""

from fractions import Fraction

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from cvbatch.exporters.contours import trace_regions
from cvbatch.images.masks import decode_png
from tests.support.datasets import boxes_of, imported
from tests.support.results import CLASSES, SIZE, corners, exported

pytestmark = pytest.mark.process

REGIONS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def inside(polygon, x, y):
    """Return whether a point is inside a polygon, by the even-odd rule in exact numbers."""
    is_inside = False
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (y0 <= y) != (y1 <= y):
            crossing = Fraction(x0) + (y - Fraction(y0)) * Fraction(x1 - x0) / Fraction(y1 - y0)
            is_inside ^= crossing <= x
    return is_inside


@given(region=REGIONS)
@settings(max_examples=60, deadline=None)
def test_the_centres_of_exactly_the_pixels_of_a_region_are_in_its_polygons(region):
    polygons = [polygon.astype(int).tolist() for polygon in trace_regions(region)]
    half = Fraction(1, 2)
    drawn = [
        [sum(inside(p, x + half, y + half) for p in polygons) for x in range(region.shape[1])]
        for y in range(region.shape[0])
    ]
    np.testing.assert_array_equal(np.array(drawn), region.astype(int))  # in one polygon each
    assert len(polygons) == ndimage.label(region, np.ones((3, 3)))[1]


def test_no_region_gives_no_polygon():
    assert list(trace_regions(np.zeros((3, 4), bool))) == []


def test_a_straight_edge_has_two_corners():
    (polygon,) = trace_regions(np.ones((300, 400), bool))
    assert sorted(map(tuple, polygon.tolist())) == [(0, 0), (0, 300), (400, 0), (400, 300)]


def test_an_import_gives_every_mask_back(tmp_path, result, predictions):
    report = exported("yolo-segment", result, tmp_path / "out", split=(0.5, 0.25, 0.25))
    assert report["images"]["written"] == 12
    dataset = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert dataset["names"] == dict(enumerate(CLASSES[1:]))
    _, rows = imported("yolo", tmp_path / "out", tmp_path / "back", has_masks=True)
    assert len(rows) == 12
    by_name = {name.rsplit("/", 1)[1]: row for name, row in rows.items()}
    for name, prediction in predictions.items():
        expected = decode_png(prediction["mask"]["bytes"])
        expected[expected == 255] = 0  # YOLO has no void
        row = by_name[name.replace("/", "_").replace(" ", "_")]
        np.testing.assert_array_equal(decode_png(row["mask"]["bytes"]), expected)


@pytest.mark.parametrize("split", [None, (0.5, 0.25, 0.25)])
def test_an_import_gives_every_box_back(tmp_path, result, predictions, split):
    exported("yolo", result, tmp_path / "out", split=split)
    _, rows = imported("yolo", tmp_path / "out", tmp_path / "back", has_masks=False)
    by_name = {name.rsplit("/", 1)[1]: row for name, row in rows.items()}
    assert len(by_name) == len(predictions)
    if split is None:
        assert {row["split"] for row in rows.values()} == {"train"}
    for name, prediction in predictions.items():
        boxes = boxes_of(by_name[name.replace("/", "_").replace(" ", "_")])
        assert [box[0] for box in boxes] == [box["label"] for box in prediction["boxes"]]
        xyxy = np.array([box[1:] for box in boxes]).reshape(-1, 4)
        # Nine digits of the size, then float32.
        np.testing.assert_allclose(xyxy, corners(prediction), rtol=0, atol=2e-7 * max(SIZE))
