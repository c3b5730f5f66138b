"""Read a result for an export: check all parts, then yield its rows with their images.

Images come in the order of the manifest, a few in memory at a time.
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
    """A row of a result, with labels and boxes of the minimum score, and its image."""

    row: Row
    data: bytes | None  # the encoded image, where images are copied
    failure: Failure | None  # why it is not exported


def is_in_containers(result: Result) -> bool:
    """Say whether the images are in containers: Parquet files or tars."""
    return result.reader.format.key != ""


def name_collisions(result: Result, *, is_flat: bool, has_links: bool) -> frozenset[int]:
    """Check all parts; return the keys of file names that several images would have.

    Args:
        result: what is exported.
        is_flat: names have no folders, see `cvbatch.results.safe_names.split_name`.
        has_links: images will be linked, and so must be files on this machine.

    Raises:
        SourceError: a part is damaged or of another job, or an image id is there twice.
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
                        f"--images link: {name!r} is not a file on this machine; use --images copy "
                        "or none"
                    )
            stems = [split_name(name, is_inside=is_inside, is_flat=is_flat)[0] for name in names]
            keys.append(np.array([key_of(stem) for stem in stems], np.int64))
            ids.append(np.array([digest_of(name) for name in names], np.int64))
    if next(repeated(ids), None) is not None:
        raise SourceError(
            f"{result.uri} holds an image_id twice, which cvbatch never writes; remove part files "
            "that were copied there"
        )
    return frozenset(repeated(keys))


def read_with_images(
    result: Result, columns: Sequence[str], options: ExportOptions
) -> Iterator[ImageRow]:
    """Yield every row of the chunks that are done, in order; `columns` of labels, boxes and mask.

    Raises:
        SourceError: a part is damaged.
    """
    for ref in result.done:
        with closing(result.images(ref)) as images:  # nothing is read before the first one
            for row in result.rows(ref, columns):
                yield _with_image(row.with_min_score(options.min_score), images, options.images)


def _with_image(row: Row, images: Iterator[EncodedImage], mode: str) -> ImageRow:
    if row.error is not None:
        return ImageRow(row, None, row.error)
    if not np.isfinite(row.xyxy).all():
        raise SourceError(f"a box of {row.image_id!r} has NaN or infinity")
    if mode == "link" and not Path(store.Location.of(row.uri).path).is_file():
        return ImageRow(row, None, MISSING)
    if mode != "copy":
        return ImageRow(row, None, None)
    # images come in the order of the rows, failed ones too
    for image in images:
        if image.image_id == row.image_id:
            return ImageRow(row, image.data, image.failure)
    return ImageRow(row, None, MISSING)
