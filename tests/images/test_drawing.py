"""Drawing of boxes, masks and contact sheets."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from cvbatch.core.types import VOID_CLASS
from cvbatch.images import drawing as d

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
NAMES = ("disc", "", "größe 日本語 😀", "half \udc80 a pair\n\t", "x" * 3000)


def test_no_boxes_and_a_void_mask_change_nothing() -> None:
    empty = np.zeros((0, 4), np.float32)
    np.testing.assert_array_equal(d.draw_boxes(IMAGE, empty, [], empty[:, 0]), IMAGE)
    void = np.full(IMAGE.shape[:2], VOID_CLASS, np.uint8)
    np.testing.assert_array_equal(d.paint_mask(IMAGE, void, 0.5), IMAGE)
    sheet = d.contact_sheet([], [], columns=3)
    assert sheet.shape[0] == d.MARGIN and (sheet == 255).all()


def test_a_mask_is_blended_in_the_colours_of_its_classes() -> None:
    mask = np.random.default_rng(1).integers(0, 256, IMAGE.shape[:2], dtype=np.uint8)
    before = IMAGE.copy()
    painted = d.paint_mask(IMAGE, mask, 0.25)
    expected = 0.75 * IMAGE + 0.25 * d.PALETTE[mask].astype(np.float64)
    is_void = mask == VOID_CLASS
    assert np.abs(painted - expected)[~is_void].max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(painted[is_void], IMAGE[is_void])
    np.testing.assert_array_equal(IMAGE, before)


def test_neighbouring_classes_have_distinct_colours() -> None:
    assert d.PALETTE.shape == (256, 3)
    assert len(np.unique(d.PALETTE[:36], axis=0)) == 36
    for first, second in itertools.combinations(d.PALETTE[:8].astype(int), 2):
        assert np.abs(first - second).sum() > 60


def test_a_box_is_drawn_along_its_border_in_the_colour_of_its_class() -> None:
    image = np.zeros((300, 300, 3), np.uint8)
    box = np.array([[50, 100, 201, 251]], np.float32)
    for class_id in (0, 6, 254, 999):
        drawn = d.draw_boxes(image, box, ["star"], np.array([0.93]), np.array([class_id]))
        colour = d.PALETTE[1 + class_id % 254]
        rows, columns = np.nonzero((drawn == colour).all(axis=-1))
        border = max(1, round(300 / 160)) // 2 + 1
        for pixel in drawn[250, 60:190], drawn[110:240, 50], drawn[110:240, 200]:
            assert (pixel == colour).all()
        assert rows.max() - 250 <= border and columns.max() - 200 <= border
        assert not drawn[110:240, 60:190].any()
    assert not image.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (90, 120), (2, 400)])
def test_any_label_can_be_drawn_on_any_image_and_box(name: str, size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 128, np.uint8)
    boxes = np.array([[-50, -50, 1e5, 1e5], [3, 3, 3, 3], [0, 0, 1, 1]], np.float32)
    drawn = d.draw_boxes(image, boxes, [name] * 3, np.array([1, 0, 0.5]), np.arange(3))
    assert drawn.shape == image.shape and (drawn != 128).any()
    sheet = d.contact_sheet([image, drawn], [name, name], columns=1)
    assert sheet.dtype == np.uint8 and sheet.shape[1] == d.TILE_HW[1] + 2 * d.MARGIN


def test_a_contact_sheet_shows_every_tile_at_its_position_and_aspect_ratio() -> None:
    colours = [(200, 10, 10), (10, 200, 10), (10, 10, 200)]
    sizes = [(50, 10), (600, 800), (7, 70)]
    tiles = [np.full((*s, 3), c, np.uint8) for s, c in zip(sizes, colours, strict=True)]
    sheet = d.contact_sheet(tiles, ["", "", ""], columns=2)
    pitch = d.TILE_HW[0] + d.CAPTION_HEIGHT + d.MARGIN, d.TILE_HW[1] + d.MARGIN
    assert sheet.shape == (d.MARGIN + 2 * pitch[0], d.MARGIN + 2 * pitch[1], 3)
    for i, (size, colour) in enumerate(zip(sizes, colours, strict=True)):
        rows, columns = np.nonzero((sheet == colour).all(axis=-1))
        top, left = d.MARGIN + i // 2 * pitch[0], d.MARGIN + i % 2 * pitch[1]
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height == d.TILE_HW[0] or width == d.TILE_HW[1]
        assert abs(height * size[1] / size[0] - width) <= 0.5 * max(1, size[1] / size[0])
        assert rows.min() >= top and rows.max() < top + d.TILE_HW[0]
        assert columns.min() >= left and columns.max() < left + d.TILE_HW[1]


def test_a_caption_is_only_below_its_tile() -> None:
    tiles = [np.full((24, 32, 3), 255, np.uint8)] * 2
    sheet = d.contact_sheet(tiles, ["a long caption " * 40, ""], columns=2)
    rows, columns = np.nonzero((sheet != 255).any(axis=-1))
    assert rows.min() >= d.MARGIN + d.TILE_HW[0]
    assert columns.max() < d.MARGIN + d.TILE_HW[1] + d.MARGIN
    assert columns.max() > d.TILE_HW[1] * 3 // 4


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7)])
def test_png_round_trip(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(4).integers(0, 256, shape, np.uint8)
    flag = cv2.IMREAD_COLOR_RGB if len(shape) == 3 else cv2.IMREAD_GRAYSCALE
    assert np.array_equal(cv2.imdecode(np.frombuffer(d.to_png(image), np.uint8), flag), image)
