"""A result as one picture: a sheet of images with what was found in them, for a first look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cvbatch.images.drawing import contact_sheet
from cvbatch.results.row import Row

_COLUMNS = 6


def picture_sheet(rows: Sequence[Row]) -> np.ndarray:  # (H, W, 3) uint8 RGB
    """Return images of a result, each with its boxes, under its mask, under its heatmap.

    Those that failed come last, as a grey tile with the reason.

    Raises:
        SourceError: an image is not there any more as the job read it.
    """
    drawn = [tile for row in sorted(rows, key=lambda row: row.error is not None)
             for tile in _tiles(row)]  # fmt: skip
    tiles, captions = [tile for tile, _ in drawn], [caption for _, caption in drawn]
    return contact_sheet(tiles, captions, _COLUMNS)


def _tiles(row: Row) -> list[tuple[np.ndarray, str]]:
    """Return as many pictures of an image as there are kinds of answers."""
    name = Path(row.image_id).name
    if row.error is not None:
        return [(np.full((180, 240, 3), 200, np.uint8), f"{name}: {row.error.kind}")]
    tiles = [(np.asarray(row.overlay("boxes")), name)]
    if row.mask_areas is not None:
        found = ", ".join(area["label"] for area in row.mask_areas[:3])
        tiles.append((np.asarray(row.overlay("mask")), found))
    for heatmap in (row.heatmaps or [])[:1]:
        caption = f"{heatmap['label']} {heatmap['score']:.2f}"
        tiles.append((np.asarray(row.overlay("heatmap")), caption))
    return tiles
