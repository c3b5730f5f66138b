"""A few images of a job, on which its networks are checked while they are built."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np

from cvbatch.config.predict import SourceConfig
from cvbatch.core.errors import CvbatchError
from cvbatch.core.types import Chunk, Decoded, InputKey, SourceOptions
from cvbatch.images.isolated_decode import IsolatedDecoder
from cvbatch.images.options import Limits
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage

NUM_IMAGES = 4
NUM_TRIED = 16  # images that are read until NUM_IMAGES of them have pixels


@dataclass(frozen=True)
class SampleImages:
    """Where the first images of a job are.

    Attributes:
        format: of the source.
        image_column: of the source.
        options: of the source.
        chunk: the first NUM_TRIED items of the plan.
        limits: maximum sizes of files and images.
        timeout_s: maximum seconds to decode one image.
    """

    format: str
    image_column: str
    options: SourceOptions
    chunk: Chunk
    limits: Limits
    timeout_s: float

    @classmethod
    def of(cls, source: SourceConfig, format: str, chunk: Chunk, timeout_s: float) -> SampleImages:
        """Return the images of a chunk of a planned source."""
        return cls(
            format,
            source.image_column,
            source.options,
            chunk,
            Limits.from_source(source.model_dump()),
            timeout_s,
        )

    def read(self, storage: Storage, key: InputKey) -> list[np.ndarray]:
        """Return up to NUM_IMAGES decoded images; unreadable ones are left out.

        Raises:
            CvbatchError: the source does not respond.
        """
        reader = ChunkReader(storage, self.format, self.image_column, options=self.options)
        pixels: list[np.ndarray] = []
        with IsolatedDecoder(self.timeout_s) as decode_one:
            for image in islice(reader.read(self.chunk, self.limits.max_bytes), NUM_TRIED):
                decoded = image.failure or decode_one(image.data, [key], self.limits)
                if isinstance(decoded, Decoded):
                    pixels.append(decoded.pixels[key])
                if len(pixels) == NUM_IMAGES:
                    break
        return pixels


def sample_pixels(
    samples: SampleImages | None, storage: Storage, key: InputKey
) -> np.ndarray:  # (N, H, W, 3) uint8
    """Return images of the job, or generated ones if there is none or the source fails.

    The run itself reports a source that fails.
    """
    size, pixels = (key.height, key.width), []
    if samples is not None:
        try:
            pixels = samples.read(storage, key)
        except CvbatchError:
            return generated_pixels(size)
    return np.stack(pixels) if pixels else generated_pixels(size)


def generated_pixels(size: tuple[int, int]) -> np.ndarray:  # (N, H, W, 3) uint8
    """Return images of smooth random colours with a little noise, always the same."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(NUM_IMAGES):
        colors = random.uniform(0, 255, (5, 5, 3)).astype(np.float32)
        smooth = cv2.resize(colors, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        images.append(np.clip(smooth + random.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8))
    return np.stack(images)
