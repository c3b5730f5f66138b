"""Read the rows of a source for an export: check all its ids, then yield rows with images.

Images are read in the order of the rows, a few in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.core.types import EncodedImage, Failure
from cvbatch.exporters.options import ExportOptions
from cvbatch.exporters.sources import ExportSource
from cvbatch.results.parts import MISSING
from cvbatch.results.row import Row
from cvbatch.results.safe_names import digest_of, key_of, repeated, split_name
from cvbatch.storage import store


class ImageRow(NamedTuple):
    """A row of a source, with labels and boxes above the minimum score, and its image."""

    row: Row
    split: str | None  # that the row declares
    data: bytes | None  # the encoded image, if images are copied
    failure: Failure | None  # why it is not exported


def name_collisions(
    source: ExportSource, *, is_flat: bool, has_links: bool
) -> tuple[frozenset[int], int]:
    """Check all ids; return keys of file names that several images would have, and all images.

    Args:
        source: what is exported.
        is_flat: file names have no folders, see `cvbatch.results.safe_names.split_name`.
        has_links: images are linked, so they must be local files.

    Raises:
        SourceError: a file is damaged or of another job, or an image id occurs twice.
        ConfigError: an image cannot be linked.
    """
    is_inside = source.has_keys
    keys, ids = [], []
    for names, uris in source.names():
        if has_links:
            _check_links(source, names, uris)
        stems = [split_name(name, is_inside=is_inside, is_flat=is_flat)[0] for name in names]
        keys.append(np.array([key_of(stem) for stem in stems], np.int64))
        ids.append(np.array([digest_of(name) for name in names], np.int64))
    if next(repeated(ids), None) is not None:
        raise SourceError(
            f"{source.uri} contains an image_id twice, which cvbatch never writes; remove part "
            "files that were copied into it"
        )
    return frozenset(repeated(keys)), sum(map(len, ids))


def _check_links(source: ExportSource, names: Sequence[str], uris: Sequence[str]) -> None:
    for name, uri in zip(names, uris, strict=True):
        if not source.can_link or store.Location.of(uri).scheme != "file":
            raise ConfigError(
                f"--images link: {name!r} is not a local file; use --images copy or none"
            )


def read_with_images(
    source: ExportSource, columns: Sequence[str], options: ExportOptions
) -> Iterator[ImageRow]:
    """Yield every row, in order.

    Args:
        source: what is exported.
        columns: of labels, boxes and mask.
        options: minimum score, and how images are exported.

    Raises:
        SourceError: a file is damaged.
    """
    for rows, images in source.parts(columns):
        for row, split in rows:
            confident = row.with_min_score(options.min_score)
            yield _with_image(confident, images, options.images)._replace(split=split)


def _with_image(row: Row, images: Iterator[EncodedImage], mode: str) -> ImageRow:
    if row.error is not None:
        return ImageRow(row, None, None, row.error)
    if not np.isfinite(row.xyxy).all():
        raise SourceError(f"a box of {row.image_id!r} contains NaN or infinity")
    if mode == "link" and not Path(store.Location.of(row.uri).path).is_file():
        return ImageRow(row, None, None, MISSING)
    if mode != "copy":
        return ImageRow(row, None, None, None)
    # images have the order of the rows, failed ones included
    for image in images:
        if image.image_id == row.image_id:
            return ImageRow(row, None, image.data, image.failure)
    return ImageRow(row, None, None, MISSING)
