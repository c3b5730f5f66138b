"""Rasterized segmentations equal a plain loop over pixel centres, and pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.images.rle import compress_rle, decode_rle, encode_rle, parse_compressed_rle
from cvbatch.importers.polygons import coco_region, fill_polygon, rasterize


def is_inside(x, y, corners):
    """The even-odd crossing test for one point, one edge at a time."""
    inside = False
    for (xa, ya), (xb, yb) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if (ya <= y) != (yb <= y) and xa + (y - ya) * (xb - xa) / (yb - ya) <= x:
            inside = not inside
    return inside


def by_loop(corners, height, width):
    return np.array(
        [[is_inside(c + 0.5, r + 0.5, corners) for c in range(width)] for r in range(height)]
    )


def filled(corners, height, width):
    region = np.zeros((height, width), bool)
    fill_polygon(region, np.array(corners, np.float64).reshape(-1, 2))
    return region


def test_empty_segmentations_have_no_pixels():
    assert not rasterize([], (3, 4)).any()
    assert not filled([(1, 1), (3, 1), (2, 1)], 5, 5).any()  # no height
    assert decode_rle(np.array([12]), (3, 4)).sum() == 0
    assert parse_compressed_rle("").shape == (0,)


def test_a_rectangle_has_its_half_open_pixels():
    region = filled([(1, 2), (4, 2), (4, 6), (1, 6)], 8, 8)
    expected = np.zeros((8, 8), bool)
    expected[2:6, 1:4] = True
    np.testing.assert_array_equal(region, expected)
    assert filled([(-9, -9), (99, -9), (99, 99), (-9, 99)], 3, 4).all()


@given(
    st.lists(
        st.tuples(st.floats(-4, 16, width=32), st.floats(-4, 13, width=32)), min_size=3, max_size=9
    )
)
@settings(max_examples=60, deadline=None)
def test_polygons_contain_the_centres_inside(corners):
    expected = by_loop(np.array(corners, np.float64), 9, 12)
    # Rounding may differ if an edge passes through a centre.
    assert (filled(corners, 9, 12) != expected).sum() <= 1


def test_the_number_of_rows_per_step_does_not_matter(monkeypatch):
    from cvbatch.importers import polygons

    corners = [(3, 1), (17, 8), (9, 19), (2, 11)]
    expected = filled(corners, 20, 20)
    monkeypatch.setattr(polygons, "_CELLS_AT_ONCE", 1)
    np.testing.assert_array_equal(filled(corners, 20, 20), expected)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_rle_equals_pycocotools(height, width, seed):
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    region = rng.random((height, width)) < rng.random()
    packed = coco.encode(np.asfortranarray(region.astype(np.uint8)))
    segmentation = {"size": (height, width), "counts": packed["counts"].decode()}
    np.testing.assert_array_equal(rasterize(segmentation, (height, width)), region)


def test_long_rle_equals_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    region = np.zeros((700, 900), bool)
    region[13:600, 40:41] = True
    region[300:310, 500:880] = True
    packed = coco.encode(np.asfortranarray(region.astype(np.uint8)))["counts"].decode()
    np.testing.assert_array_equal(decode_rle(parse_compressed_rle(packed), (700, 900)), region)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_nearly_equal_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    corners = np.stack([60 + 45 * np.cos(angle), 50 + 30 * np.sin(angle)], axis=1)
    reference = coco.decode(coco.frPyObjects([corners.reshape(-1).tolist()], 100, 120))[..., 0] > 0
    region = filled(corners, 100, 120)
    assert (region & reference).sum() / (region | reference).sum() > 0.97


@given(
    st.lists(
        st.lists(
            st.tuples(st.floats(-9, 25), st.floats(-9, 21)) | st.tuples(*[st.integers(-3, 20)] * 2),
            min_size=3,
            max_size=9,
        ),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=200, deadline=None)
def test_coco_regions_of_polygons_equal_pycocotools(polygons):
    coco = pytest.importorskip("pycocotools.mask")
    flat = [np.array(polygon, np.float64).reshape(-1).tolist() for polygon in polygons]
    rle = coco.merge(coco.frPyObjects(flat, 12, 17))
    region = coco_region([np.array(polygon, np.float64) for polygon in polygons], (12, 17))
    assert compress_rle(encode_rle(region)) == rle["counts"].decode()


def test_coco_regions_of_endless_polygons_have_the_centres_inside():
    corners = np.array([(-1e7, -1e7), (1e7, -1e7), (1e7, 1e7), (-1e7, 1e7)])
    assert coco_region([corners], (3, 4)).all()


@pytest.mark.parametrize(
    "counts", [[], [5], [13], [6, -1, 7], [2**62, 2**62, 2**62, 2**62, 12], [12, 12]]
)
def test_rle_with_a_wrong_sum_is_refused(counts):
    with pytest.raises(ValueError, match="do not sum to 3 x 4"):
        decode_rle(np.array(counts, np.int64), (3, 4))


@pytest.mark.parametrize("text", ["ä", "\x00", "P", "o" * 40, "oooooooooooo0" * 9])
def test_malformed_compressed_rle_is_refused(text):
    with pytest.raises(ValueError, match=r"run length|do not sum"):
        decode_rle(parse_compressed_rle(text), (3, 4))
