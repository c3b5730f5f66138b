"""Outlines become the pixels that a plain loop over all centres gives, and COCO's own code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.importers.polygons import decode_runs, paint_polygon, region_of, unpack_runs


def is_inside(x, y, corners):
    """The crossing test, one point and one edge at a time."""
    inside = False
    for (xa, ya), (xb, yb) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if (ya <= y) != (yb <= y) and xa + (y - ya) * (xb - xa) / (yb - ya) <= x:
            inside = not inside
    return inside


def by_loop(corners, height, width):
    return np.array(
        [[is_inside(c + 0.5, r + 0.5, corners) for c in range(width)] for r in range(height)]
    )


def painted(corners, height, width):
    region = np.zeros((height, width), bool)
    paint_polygon(region, np.array(corners, np.float64).reshape(-1, 2))
    return region


def test_nothing_paints_nothing():
    assert not region_of([], (3, 4)).any()
    assert not painted([(1, 1), (3, 1), (2, 1)], 5, 5).any()  # no height
    assert decode_runs(np.array([12]), (3, 4)).sum() == 0
    assert unpack_runs("").shape == (0,)


def test_a_rectangle_is_its_half_open_pixels():
    region = painted([(1, 2), (4, 2), (4, 6), (1, 6)], 8, 8)
    expected = np.zeros((8, 8), bool)
    expected[2:6, 1:4] = True
    np.testing.assert_array_equal(region, expected)
    assert painted([(-9, -9), (99, -9), (99, 99), (-9, 99)], 3, 4).all()


@given(
    st.lists(
        st.tuples(st.floats(-4, 16, width=32), st.floats(-4, 13, width=32)), min_size=3, max_size=9
    )
)
@settings(max_examples=60, deadline=None)
def test_polygons_are_the_centres_inside(corners):
    expected = by_loop(np.array(corners, np.float64), 9, 12)
    # the two orders of arithmetic may part where an edge goes through a centre
    assert (painted(corners, 9, 12) != expected).sum() <= 1


def test_many_rows_at_once_are_the_same_as_few(monkeypatch):
    from cvbatch.importers import polygons

    corners = [(3, 1), (17, 8), (9, 19), (2, 11)]
    whole = painted(corners, 20, 20)
    monkeypatch.setattr(polygons, "_CELLS_AT_ONCE", 1)
    np.testing.assert_array_equal(painted(corners, 20, 20), whole)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_runs_are_what_pycocotools_wrote(height, width, seed):
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    region = rng.random((height, width)) < rng.random()
    packed = coco.encode(np.asfortranarray(region.astype(np.uint8)))
    outline = {"size": (height, width), "counts": packed["counts"].decode()}
    np.testing.assert_array_equal(region_of(outline, (height, width)), region)


def test_long_runs_are_what_pycocotools_wrote():
    coco = pytest.importorskip("pycocotools.mask")
    region = np.zeros((700, 900), bool)
    region[13:600, 40:41] = True
    region[300:310, 500:880] = True
    packed = coco.encode(np.asfortranarray(region.astype(np.uint8)))["counts"].decode()
    np.testing.assert_array_equal(decode_runs(unpack_runs(packed), (700, 900)), region)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_are_nearly_those_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    corners = np.stack([60 + 45 * np.cos(angle), 50 + 30 * np.sin(angle)], axis=1)
    other = coco.decode(coco.frPyObjects([corners.reshape(-1).tolist()], 100, 120))[..., 0] > 0
    ours = painted(corners, 100, 120)
    assert (ours & other).sum() / (ours | other).sum() > 0.97


@pytest.mark.parametrize(
    "counts", [[], [5], [13], [6, -1, 7], [2**62, 2**62, 2**62, 2**62, 12], [12, 12]]
)
def test_runs_of_another_sum_are_refused(counts):
    with pytest.raises(ValueError, match="do not sum to 3 x 4"):
        decode_runs(np.array(counts, np.int64), (3, 4))


@pytest.mark.parametrize("text", ["ä", "\x00", "P", "o" * 40, "oooooooooooo0" * 9])
def test_damaged_strings_of_runs_are_refused(text):
    with pytest.raises(ValueError, match=r"run length|do not sum"):
        decode_runs(unpack_runs(text), (3, 4))
