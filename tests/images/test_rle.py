"""Run lengths and compressed strings equal those of pycocotools, also of a part of a mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_masks

from cvbatch.images.rle import (
    Window,
    compress_rle,
    decode_rle,
    encode_window,
    parse_compressed_rle,
)


@given(st.tuples(*[st.integers(1, 9)] * 2), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_a_part_of_a_mask_has_the_runs_of_the_whole_mask(size, seed):
    rng = np.random.default_rng(seed)
    top, left = (int(rng.integers(0, side)) for side in size)
    height, width = (
        int(rng.integers(1, n - first + 1)) for n, first in zip(size, (top, left), strict=True)
    )
    region = rng.random((height, width)) < rng.choice([0.1, 0.5, 0.9, 1.0])
    whole = np.zeros(size, np.uint8)
    whole[top : top + height, left : left + width] = region
    expected = coco_masks.encode(np.asfortranarray(whole))["counts"].decode()
    counts = encode_window(Window(top, left, region), size)
    assert compress_rle(counts) == expected
    np.testing.assert_array_equal(parse_compressed_rle(expected), counts)
    np.testing.assert_array_equal(decode_rle(counts, size), whole)


@given(st.lists(st.integers(0, 2**40), max_size=30))
@settings(max_examples=100, deadline=None)
def test_parsed_strings_have_the_runs_that_were_compressed(counts):
    runs = np.array(counts, np.int64)
    np.testing.assert_array_equal(parse_compressed_rle(compress_rle(runs)), runs)


@pytest.mark.parametrize("text", ["o" * 12 + "0", "oooooooooo0" * 9, "o", "0" * 5 + "p"])
def test_numbers_of_no_image_are_refused(text):
    with pytest.raises(ValueError, match="run length"):
        parse_compressed_rle(text)
