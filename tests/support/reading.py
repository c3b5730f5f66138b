"""Read items as a worker reads a chunk."""

from __future__ import annotations

from cvbatch.core.types import Chunk, EncodedImage, Item
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage

LIMIT = 100_000


def read(
    items: list[Item],
    format: str,
    max_bytes: int = LIMIT,
    reader: ChunkReader | None = None,
    storage: Storage | None = None,
) -> list[EncodedImage]:
    reader = reader or ChunkReader(storage or Storage(), format, "image", threads=3)
    return list(reader.read(Chunk("0" * 16, tuple(items)), max_bytes))


def kinds(images: list[EncodedImage]) -> list[str | None]:
    """Return the kind of each image's failure; checks that a failed image has no bytes."""
    for image in images:
        assert image.failure is None or (image.failure.stage, image.data) == ("read", b"")
    return [image.failure and image.failure.kind for image in images]
