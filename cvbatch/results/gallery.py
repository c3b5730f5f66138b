"""A small gallery of rows in HTML, for notebooks."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable

from cvbatch.core.errors import SourceError
from cvbatch.results.row import Row

NUM_ROWS = 8
_SIDE = 160  # pixels of a thumbnail
_MAX_LABELS = 3


def as_html(rows: Iterable[Row], num_rows: int, title: str) -> str:
    """Return pictures of the rows with their predictions, as HTML without scripts.

    Args:
        rows: that are shown.
        num_rows: of the whole result.
        title: of the result.
    """
    cards = [_card(row) for row in rows]
    more = f"; the first {len(cards)} are shown" if len(cards) < num_rows else ""
    return (
        f"<div><p>{html.escape(title)}: {num_rows:,} images{more}</p>"
        f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(cards)}</div></div>'
    )


def _card(row: Row) -> str:
    name = html.escape(row.image_id)
    return (
        f'<figure style="margin:0;width:{_SIDE}px;font-size:12px;overflow-wrap:anywhere">'
        f"{_picture(row)}<figcaption><b>{name}</b><br>{html.escape(_caption(row))}</figcaption>"
        "</figure>"
    )


def _caption(row: Row) -> str:
    """Return the best labels, the number of boxes, values, or why the image failed."""
    if row.error is not None:
        return f"failed: {row.error.kind}"
    parts = [f"{label['label']} {label['score']:.2f}" for label in (row.labels or [])[:_MAX_LABELS]]
    if row.boxes is not None:
        parts.append(f"{len(row.boxes)} boxes")
    parts += [f"{area['label']}" for area in (row.mask_areas or [])[:_MAX_LABELS]]
    parts += [f"{name} {value:.4g}" for name, value in (row.values or {}).items()][:_MAX_LABELS]
    return ", ".join(parts)


def _picture(row: Row) -> str:
    """Return the image with its predictions as a data URI, or "" if it cannot be read."""
    if row.error is not None:
        return ""
    try:
        picture = row.overlay("mask", "boxes")
    except SourceError:  # the image has moved since: its predictions are still shown
        return ""
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'
