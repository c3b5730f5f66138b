"""Batches of decoded images and of tiles: every image once, in order, within the limits."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cvbatch.core.types import Decoded, EncodedImage, Failure, ImageBatch, InputKey, Tiling
from cvbatch.geometry.resize import resize_image
from cvbatch.geometry.tiling import count_tiles, tile_placements
from cvbatch.images.decode import Limits, decode, decode_images
from tests.support.encoded_images import (
    HEIGHT,
    JPEGS,
    SAME_SIZE,
    WIDTH,
    encode,
    photo,
)

# ---- batches

GOOD = JPEGS["jpeg"]
OTHER_SIZE = InputKey(20, 30, "letterbox")


def batches_of(pattern: str, batch_size: int) -> list[ImageBatch]:
    """Return the batches of a sequence of images: "o" is a good one, "x" a broken one."""
    images = [
        EncodedImage(f"{i}", f"file:{i}", encode(photo(seed=i), "JPEG") if sign == "o" else b"no")
        for i, sign in enumerate(pattern)
    ]
    keys = [SAME_SIZE, OTHER_SIZE]
    return list(decode_images(images, keys, Limits(), "c0", batch_size))


def test_no_images_give_no_batches() -> None:
    assert batches_of("", 2) == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    "pattern", ["o", "x", "xxx", "ooo", "oooo", "oxoxo", "xxoooxxx", "ooxx", "xoox", "ooxxooxx"]
)
def test_batches_have_every_image_once_in_order(pattern: str, batch_size: int) -> None:
    batches = batches_of(pattern, batch_size)
    assert [i for batch in batches for i in batch.image_id] == [str(i) for i in range(len(pattern))]
    assert all(len(batch.decoded) == batch_size for batch in batches[:-1])
    assert len(batches) == max(1, -(-pattern.count("o") // batch_size))
    for batch in batches:
        assert batch.chunk_id == "c0"
        assert batch.uri == [f"file:{i}" for i in batch.image_id]
        assert batch.width.dtype == batch.height.dtype == np.int32
        signs = [pattern[int(i)] for i in batch.image_id]
        assert sorted(batch.failures) == [i for i, sign in enumerate(signs) if sign == "x"]
        assert batch.width.tolist() == [WIDTH if sign == "o" else 0 for sign in signs]
        assert batch.height.tolist() == [HEIGHT if sign == "o" else 0 for sign in signs]
        for key in (SAME_SIZE, OTHER_SIZE):
            assert batch.pixels[key].shape == (len(batch.decoded), key.height, key.width, 3)
        for row, position in enumerate(batch.decoded):
            data = encode(photo(seed=int(batch.image_id[position])), "JPEG")
            single = decode(data, [SAME_SIZE, OTHER_SIZE], Limits())
            assert isinstance(single, Decoded)
            for key, pixels in single.pixels.items():
                assert np.array_equal(batch.pixels[key][row], pixels)


def test_read_failures_pass_through() -> None:
    missing = Failure("read", "missing", "no such file")
    images = [EncodedImage("a", "a", b"", missing), EncodedImage("b", "b", GOOD)]
    (batch,) = decode_images(images, [SAME_SIZE], Limits(), "c0", 8)
    assert batch.failures == {0: missing}
    assert batch.decoded.tolist() == [1]


def test_yielded_batches_are_not_overwritten() -> None:
    images = (EncodedImage(f"{i}", "", encode(photo(seed=i), "JPEG")) for i in range(4))
    stream = decode_images(images, [SAME_SIZE], Limits(), "c0", 2)
    first = next(stream)
    copy = first.pixels[SAME_SIZE].copy()
    next(stream)
    assert np.array_equal(first.pixels[SAME_SIZE], copy)


# ---- tiles

TILED = InputKey(16, 24, "letterbox", Tiling(32, 32, 8, 8))


def images_of(sizes: list[tuple[int, int]]) -> list[EncodedImage]:
    """Return an image of each size; (0, 0) is a broken one."""
    return [
        EncodedImage(f"{i}", "", encode(photo(*size, seed=i), "PNG") if all(size) else b"no")
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 5), (48, 64), (100, 31)])
def test_tiles_equal_those_of_the_decoded_image(size: tuple[int, int]) -> None:
    image = photo(*size)
    untiled = TILED._replace(tiling=None)
    decoded = decode(encode(image, "PNG"), [TILED, untiled], Limits())
    assert isinstance(decoded, Decoded)
    expected = [resize_image(np.asarray(image), tile) for tile in tile_placements(*size, TILED)]
    np.testing.assert_array_equal(decoded.pixels[TILED], expected)
    if len(expected) == 1:
        np.testing.assert_array_equal(decoded.pixels[TILED][0], decoded.pixels[untiled])


def test_tiles_of_a_reduced_jpeg_are_similar() -> None:
    key = InputKey(16, 16, "stretch", Tiling(64, 64, 16, 16))
    data = encode(photo(300, 400), "JPEG", quality=95)
    reduced, full = (decode(data, [key], Limits(reduced_jpeg=value)) for value in (True, False))
    assert isinstance(reduced, Decoded) and isinstance(full, Decoded)
    difference = reduced.pixels[key].astype(int) - full.pixels[key]
    assert reduced.pixels[key].shape == (count_tiles(300, 400, key), 16, 16, 3)
    assert 0 < np.abs(difference).mean() < 6


def test_too_many_tiles_fail_before_the_image_is_decoded() -> None:
    count = count_tiles(48, 64, TILED)
    size = count * 16 * 24 * 3
    data = encode(photo(), "PNG")
    assert isinstance(decode(data, [TILED], Limits(max_tile_bytes=size)), Decoded)
    broken = data[: len(data) // 2]  # the header is complete
    for content in (data, broken):
        failure = decode(content, [SAME_SIZE, TILED], Limits(max_tile_bytes=size - 1))
        assert failure == Failure(
            "decode",
            "too_large",
            f"{count} tiles of 16 x 24 come to {size} bytes, over the limit of {size - 1}; raise "
            "tiles.size or lower tiles.overlap",
        )
    assert isinstance(decode(data, [SAME_SIZE], Limits(max_tile_bytes=1)), Decoded)


def test_one_tile_per_pixel_is_rejected_without_creating_tiles() -> None:
    key = InputKey(224, 224, "stretch", Tiling(1, 1, 0, 0))
    failure = decode(encode(Image.new("1", (9000, 9000)), "PNG"), [key], Limits())
    assert isinstance(failure, Failure)
    assert failure.kind == "too_large"
    assert "81000000 tiles" in failure.message


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
@pytest.mark.parametrize("tile_bytes", [1, 20_000, 1 << 30])
def test_batches_end_before_their_tiles_exceed_the_limit(batch_size: int, tile_bytes: int) -> None:
    sizes = [(48, 64), (0, 0), (10, 10), (200, 90), (31, 31), (0, 0), (64, 48), (5, 5), (0, 0)]
    images = images_of(sizes)
    keys = [TILED, SAME_SIZE]
    limits = Limits(batch_tile_bytes=tile_bytes)
    batches = list(decode_images(images, keys, limits, "c", batch_size))
    assert [i for batch in batches for i in batch.image_id] == [str(i) for i in range(len(sizes))]
    for batch in batches:
        assert batch.pixels[TILED].shape[1:] == (16, 24, 3)
        assert len(batch.pixels[SAME_SIZE]) == len(batch.decoded) <= batch_size
        num_bytes = batch.pixels[TILED].nbytes + int((batch.height * batch.width).sum())
        assert num_bytes <= tile_bytes or len(batch.decoded) == 1
        single = [decode(images[int(batch.image_id[i])].data, keys, limits) for i in batch.decoded]
        if single:
            for key in keys:
                tiles = [image.pixels[key].reshape(-1, *key[:2], 3) for image in single]  # type: ignore[union-attr]
                np.testing.assert_array_equal(batch.pixels[key], np.concatenate(tiles))
    if tile_bytes == 1 << 30:  # as without tiles
        assert all(len(batch.decoded) == batch_size for batch in batches[:-1])
    if tile_bytes == 1:
        assert len(batches) == 6 + 1  # the last failure follows an image that was yielded


def test_an_image_over_the_limit_is_yielded_before_the_next_is_read() -> None:
    read = []

    def images():  # type: ignore[no-untyped-def]
        for image in images_of([(48, 64), (48, 64)]):
            read.append(image.image_id)
            yield image

    stream = decode_images(images(), [TILED], Limits(batch_tile_bytes=100), "c", 8)
    assert next(stream).image_id == ["0"]
    assert read == ["0"]
