"""Tiles cover an image with the required overlap; an image that fits one tile is not tiled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.core.types import VOID_CLASS, InputKey, Tiling
from cvbatch.geometry import resize as r
from cvbatch.geometry.tiling import canvas_size, count_tiles, tile_placements

SIDE = st.integers(1, 900)


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    height, width = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    return Tiling(
        height, width, draw(st.integers(0, height * 3 // 4)), draw(st.integers(0, width * 3 // 4))
    ) if min(height, width) > 3 else Tiling(height, width, 0, 0)  # fmt: skip


KEY = st.builds(
    lambda *values: InputKey(*values),
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from(("stretch", "letterbox")),
    tilings(),
)


def starts_of(placements: list[r.Placement]) -> tuple[list[int], list[int]]:
    tops = sorted({placement.source.top for placement in placements})
    return tops, sorted({placement.source.left for placement in placements})


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("size", [(1, 1), (30, 40), (40, 40), (17, 3)])
def test_an_image_that_fits_one_tile_is_not_tiled(size, resize) -> None:  # type: ignore[no-untyped-def]
    plain = InputKey(20, 24, resize)
    key = plain._replace(tiling=Tiling(40, 40, 10, 10))
    assert (
        tile_placements(*size, key)
        == tile_placements(*size, plain)
        == [r.make_placement(*size, plain)]
    )
    assert count_tiles(*size, key) == count_tiles(*size, plain) == 1
    assert r.required_size(*size, key) == r.required_size(*size, plain)


@settings(max_examples=300, deadline=None)
@given(SIDE, SIDE, KEY)
def test_tiles_reach_every_border_with_the_required_overlap(
    height: int, width: int, key: InputKey
) -> None:
    tiling = key.tiling
    assert tiling is not None
    if count_tiles(height, width, key) > 2000:
        return
    placements = tile_placements(height, width, key)
    assert len(placements) == count_tiles(height, width, key)
    assert len({placement.source for placement in placements}) == len(placements)
    for starts, length, tile, overlap, size in zip(
        starts_of(placements),
        (height, width),
        tiling[:2],
        tiling[2:],
        placements[0].source[2:],
        strict=True,
    ):
        assert size == min(tile, length)
        assert starts[0] == 0 and starts[-1] + size == length
        strides = np.diff(starts)
        assert (strides >= 1).all() and (strides <= tile - overlap).all()
        assert strides.size == 0 or strides.max() - strides.min() <= 1  # evenly spaced
        if len(starts) > 1:  # one tile fewer has too little overlap
            assert (len(starts) - 2) * (tile - overlap) + tile < length
    assert {(placement.height, placement.width) for placement in placements} == {(height, width)}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), KEY)
def test_every_pixel_is_in_a_tile(height: int, width: int, key: InputKey) -> None:
    if count_tiles(height, width, key) > 200:
        return
    is_covered = np.zeros((height, width), bool)
    for placement in tile_placements(height, width, key):
        mask = r.mask_to_original(np.zeros((key.height, key.width), np.uint8), placement)
        top, left, h, w = placement.source
        assert (mask[top : top + h, left : left + w] == 0).all()
        assert (mask == VOID_CLASS).sum() == height * width - h * w
        is_covered |= mask == 0
    assert is_covered.all()


@pytest.mark.parametrize("size", [(30, 200), (200, 30), (200, 199), (10, 200), (200, 10)])
def test_tiles_are_ordered_along_the_shorter_lines(size: tuple[int, int]) -> None:
    key = InputKey(20, 20, "stretch", Tiling(20, 20, 5, 5))
    placements = tile_placements(*size, key)
    tops, lefts = starts_of(placements)
    corners = [(placement.source.top, placement.source.left) for placement in placements]
    by_row = [(top, left) for top in tops for left in lefts]
    by_column = [(top, left) for left in lefts for top in tops]
    assert corners == (by_column if len(tops) <= len(lefts) else by_row)


def test_a_tile_has_the_pixels_of_its_part_of_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    key = InputKey(20, 30, "stretch", Tiling(20, 30, 5, 6))
    for placement in tile_placements(50, 70, key):
        top, left, height, width = placement.source
        resized = r.resize_image(image, placement)
        np.testing.assert_array_equal(resized, image[top : top + height, left : left + width])


def test_a_box_in_a_tile_maps_back_to_the_original() -> None:
    key = InputKey(10, 10, "letterbox", Tiling(40, 20, 8, 4))
    placement = tile_placements(100, 100, key)[-1]
    assert placement.source == (60, 80, 40, 20)
    assert placement.target == (0, 2, 10, 5)
    boxes = np.array([[2, 0, 7, 10], [3, 1, 4, 2], [0, 0, 10, 10]], np.float32)
    np.testing.assert_array_equal(
        r.boxes_to_original(boxes, placement),
        [[80, 60, 100, 100], [84, 64, 88, 68], [72, 60, 100, 100]],
    )


def test_the_jpeg_reduction_follows_the_scale_of_the_tiles() -> None:
    untiled = InputKey(224, 224, "stretch")
    for tile, factor in ((224, 1), (448, 2), (1000, 4), (1792, 8)):
        key = untiled._replace(tiling=Tiling(tile, tile, 0, 0))
        assert r.jpeg_reduction(3000, 4000, [key]) == factor
        assert r.jpeg_reduction(3000, 4000, [untiled, key]) == factor
    key = untiled._replace(tiling=Tiling(448, 896, 0, 0))
    assert r.required_size(3000, 4000, key) == (1500, 1000)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), KEY, st.integers(1, 9), st.integers(1, 9))
def test_the_cells_of_a_canvas_have_the_size_of_the_grids_and_are_all_covered(
    height: int, width: int, key: InputKey, rows: int, columns: int
) -> None:
    if count_tiles(height, width, key) > 200:
        return
    placements = tile_placements(height, width, key)
    canvas = canvas_size(placements[0], (rows, columns))
    source, target = placements[0].source, placements[0].target
    cell = (
        source.height / target.height * key.height / rows,
        source.width / target.width * key.width / columns,
    )
    for cells, length, side in zip(canvas, (height, width), cell, strict=True):
        assert cells == 1 or abs(cells - length / side) <= 0.5 + 1e-9
    covered = np.zeros(canvas, bool)
    for placement in placements:
        top, rows_of, left, columns_of = r.sample_grid(placement, canvas, (rows, columns))
        covered[top : top + len(rows_of), left : left + len(columns_of)] = True
        assert ((rows_of >= 0) & (rows_of < rows)).all()
        assert ((columns_of >= 0) & (columns_of < columns)).all()
    assert covered.all()
