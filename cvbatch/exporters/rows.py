"""Read the rows of a result for an export: check all part files, then yield rows with images.

Images are read in the order of the manifest, a few in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.core.types import EncodedImage, Failure
from cvbatch.exporters.options import ExportOptions
from cvbatch.results.parts import MISSING
from cvbatch.results.result import Result, Row
from cvbatch.results.safe_names import digest_of, key_of, repeated, split_name
from cvbatch.storage import store

_NAME_ROWS = 1 << 16


class ImageRow(NamedTuple):
    """A row of a result, with labels and boxes above the minimum score, and its image."""

    row: Row
    data: bytes | None  # the encoded image, if images are copied
    failure: Failure | None  # why it is not exported


def is_in_containers(result: Result) -> bool:
    """Return whether the images are in containers: Parquet files or tars."""
    return result.reader.format.key != ""


def name_collisions(result: Result, *, is_flat: bool, has_links: bool) -> frozenset[int]:
    """Check all part files; return the keys of file names that several images would have.

    Args:
        result: the prediction to export.
        is_flat: file names have no folders, see `cvbatch.results.safe_names.split_name`.
        has_links: images are linked, so they must be local files.

    Raises:
        SourceError: a part file is damaged or of another job, or an image id occurs twice.
        ConfigError: an image cannot be linked.
    """
    is_inside = is_in_containers(result)
    keys, ids = [], []
    for ref in result.done:
        for batch in result.batches(ref, ("image_id", "uri"), _NAME_ROWS):
            names, uris = batch["image_id"].to_pylist(), batch["uri"].to_pylist()
            for name, uri in zip(names, uris, strict=True):
                if has_links and (is_inside or store.Location.of(uri).scheme != "file"):
                    raise ConfigError(
                        f"--images link: {name!r} is not a local file; use --images copy or none"
                    )
            stems = [split_name(name, is_inside=is_inside, is_flat=is_flat)[0] for name in names]
            keys.append(np.array([key_of(stem) for stem in stems], np.int64))
            ids.append(np.array([digest_of(name) for name in names], np.int64))
    if next(repeated(ids), None) is not None:
        raise SourceError(
            f"{result.uri} contains an image_id twice, which cvbatch never writes; remove part "
            "files that were copied into it"
        )
    return frozenset(repeated(keys))


def read_with_images(
    result: Result, columns: Sequence[str], options: ExportOptions
) -> Iterator[ImageRow]:
    """Yield every row of the completed chunks, in order.

    Args:
        result: the prediction to export.
        columns: of labels, boxes and mask.
        options: minimum score, and how images are exported.

    Raises:
        SourceError: a part file is damaged.
    """
    for ref in result.done:
        with closing(result.images(ref)) as images:  # a generator: reads on the first next()
            for row in result.rows(ref, columns):
                yield _with_image(row.with_min_score(options.min_score), images, options.images)


def _with_image(row: Row, images: Iterator[EncodedImage], mode: str) -> ImageRow:
    if row.error is not None:
        return ImageRow(row, None, row.error)
    if not np.isfinite(row.xyxy).all():
        raise SourceError(f"a box of {row.image_id!r} contains NaN or infinity")
    if mode == "link" and not Path(store.Location.of(row.uri).path).is_file():
        return ImageRow(row, None, MISSING)
    if mode != "copy":
        return ImageRow(row, None, None)
    # images have the order of the rows, failed ones included
    for image in images:
        if image.image_id == row.image_id:
            return ImageRow(row, image.data, image.failure)
    return ImageRow(row, None, MISSING)
