"""Images on which a network is checked while it is built."""

import numpy as np
import pytest
from PIL import Image

from cvbatch.core.types import Chunk, InputKey, Item, SourceOptions
from cvbatch.images.options import Limits
from cvbatch.inference.sample_images import NUM_IMAGES, SampleImages, sample_pixels
from cvbatch.storage.store import Storage

KEY = InputKey(6, 8, "stretch")
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (250, 250, 250)]


@pytest.fixture
def folder(tmp_path):
    """A damaged image, then five of one colour."""
    (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    for i, color in enumerate(COLORS, 1):
        Image.new("RGB", (20, 10), color).save(tmp_path / f"{i}.png")
    return tmp_path


def samples(paths):
    items = tuple(Item(str(path), path.name, 100) for path in paths)
    return SampleImages(
        "images", "", SourceOptions(), Chunk("a", items), Limits(max_bytes=1 << 20), 10.0
    )


def test_first_images_that_can_be_decoded(folder):
    found = sample_pixels(samples(sorted(folder.iterdir())), Storage(), KEY)
    assert found.shape == (NUM_IMAGES, 6, 8, 3)
    assert [tuple(image[3, 3]) for image in found] == COLORS[:NUM_IMAGES]


def test_generated_images_if_there_is_none(folder):
    missing = samples([folder / "0.png", folder / "missing.png"])
    for source in (missing, None):
        found = sample_pixels(source, Storage(), KEY)
        assert (found.shape, found.dtype) == ((NUM_IMAGES, 6, 8, 3), np.uint8)
        assert np.ptp(found, axis=0).max() > 50  # they differ
    again = sample_pixels(None, Storage(), KEY)
    np.testing.assert_array_equal(found, again)


def test_the_key_of_the_input_is_used(folder):
    pixels = samples([folder / "1.png"]).read(Storage(), InputKey(8, 8, "letterbox"))
    assert (pixels[0][4] == COLORS[0]).all()
    assert (pixels[0][0] != COLORS[0]).any()  # a bar of the letterbox
