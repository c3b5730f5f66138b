"""Masks as PNG and areas of their classes, compared with Pillow, NumPy and pycocotools."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco

from cvbatch.core.types import VOID_CLASS
from cvbatch.images import masks as m

MASK = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=60))
LABELS = arrays(
    np.uint8,
    array_shapes(min_dims=2, max_dims=2, max_side=30),
    elements=st.sampled_from([0, 1, 2, 3, 20, 254, VOID_CLASS]),
)


@settings(max_examples=100, deadline=None)
@given(MASK)
def test_png_round_trip_also_with_pillow(mask: np.ndarray) -> None:
    data = m.encode_png(mask)
    assert data == m.encode_png(mask.copy(order="F"))
    np.testing.assert_array_equal(m.decode_png(data), mask)
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("PNG", "L")
    np.testing.assert_array_equal(np.asarray(image), mask)


def test_a_png_of_pillow_is_decoded() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (30, 41), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    np.testing.assert_array_equal(m.decode_png(buffer.getvalue()), mask)


def test_bytes_that_are_not_a_grey_png_are_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "PNG")
    png = m.encode_png(np.zeros((9, 9), np.uint8))
    for data in (b"", b"GIF89a", buffer.getvalue(), png[:30]):
        with pytest.raises(ValueError, match=f"{len(data)} bytes"):
            m.decode_png(data)


def class_areas(mask: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    return m.largest_first(m.count_pixels(mask, num_classes))


def test_a_void_mask_has_no_areas() -> None:
    class_id, area = class_areas(np.full((5, 7), VOID_CLASS, np.uint8), 255)
    assert (class_id.tolist(), area.tolist()) == ([], [])
    assert (class_id.dtype, area.dtype) == (np.int32, np.int64)


@settings(max_examples=100, deadline=None)
@given(LABELS)
def test_areas_equal_numpy_and_pycocotools(mask: np.ndarray) -> None:
    class_id, area = class_areas(mask, 255)
    counts = np.bincount(mask.reshape(-1), minlength=256)[:255]
    expected = sorted((-int(count), c) for c, count in enumerate(counts) if count)
    assert [(-int(a), int(c)) for c, a in zip(class_id, area, strict=True)] == expected
    for c, a in zip(class_id, area, strict=True):
        assert coco.area(coco.encode(np.asfortranarray(mask == c).astype(np.uint8))) == a


def test_areas_are_exact_beyond_float32() -> None:
    mask = np.zeros((4100, 4100), np.uint8)
    mask[-1, -2:] = 1
    class_id, area = class_areas(mask, 2)
    assert (class_id.tolist(), area.tolist()) == ([0, 1], [4100 * 4100 - 2, 2])
