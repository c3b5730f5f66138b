"""What an explanation leaves behind: names of its pictures, and the arrays as rows of Parquet."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cvbatch.core.types import Failure, ImageBatch
from cvbatch.results import schema
from cvbatch.results.safe_names import split_name
from cvbatch.sources.formats import INPUT_FORMATS

_CHANNELS = pa.struct(
    [
        ("layer", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("channels", pa.int32()),
        ("picture", pa.string()),
        ("values", pa.list_(pa.float32())),  # row by row, the channels of a position together
    ]
)
_BOX = pa.struct([(name, pa.float32()) for name in ("x_min", "y_min", "x_max", "y_max")])
_HEATMAP = pa.struct([*schema.COLUMN_TYPES["heatmaps"].value_type, ("box", _BOX),
                      ("picture", pa.string())])  # fmt: skip
COLUMN_TYPES: dict[str, pa.DataType] = {  # by the section that is asked for
    "activations": pa.list_(_CHANNELS),
    "gradcam": pa.list_(_HEATMAP),
    "dream": schema.IMAGE,
}
_COLUMN_NAMES = {"gradcam": "heatmaps"}
FILTERS = pa.schema(
    [
        ("layer", pa.string()),
        ("filter", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("channels", pa.int32()),
        ("picture", pa.string()),
        ("values", pa.list_(pa.float32())),  # row by row, the channels of a pixel together
    ]
)
PATTERNS = FILTERS.append(pa.field("activation", pa.float32()))
_HASHED = re.compile(r"-[0-9a-f]{16}\Z")
_MAX_LAYER_NAME = 150


def image_name(image_id: str, source_format: str) -> str:
    """Return the name of an image's pictures: its id, or a safe one with a hash of the id.

    source_format: a key of INPUT_FORMATS; in a container "#" stands before the key.
    No name leads out of the folder it is put into, and no two images of a source have the same.
    """
    key = INPUT_FORMATS[source_format].key
    is_inside = key != ""
    stem, suffix = split_name(image_id, is_inside=is_inside, is_flat=False)
    plain = image_id.replace("#", "/", 1) if is_inside else image_id
    # without a suffix a name could be a folder of others', except that of a row, a number
    is_leaf = suffix != "" or key == "row"
    if is_leaf and stem + suffix == plain and not _HASHED.search(stem):
        return plain
    return f"{stem}-{_digest(image_id)}{suffix}"


def layer_name(text: str) -> str:
    """Return the name of a layer's, or a class's, file: one part of a path; no two have the same.

    A path outer/inner/layer becomes outer.inner.layer.
    """
    plain = text.replace("/", ".")
    safe = re.sub(r"[^A-Za-z0-9_. -]", "_", plain)[:_MAX_LAYER_NAME].strip(" ").lstrip(".") or "x"
    if safe == plain and "." not in text and not _HASHED.search(safe):
        return safe
    return f"{safe}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Located(NamedTuple):
    """Where in an image a class has its score from."""

    layer: str
    class_id: int
    label: str
    score: float
    values: np.ndarray  # (h, w) float32 in 0..1
    box_in_input: np.ndarray | None = None  # (4,) whose score it is, pixels of the input
    box: np.ndarray | None = None  # (4,) the same in pixels of the original


class Explanation(NamedTuple):
    """What was found out about one image; what was not asked for is None."""

    pixels: np.ndarray  # (H, W, 3) uint8, as the network was fed
    activations: dict[str, np.ndarray] | None = None  # layer → (h, w, c) float32
    gradcam: list[Located] | None = None
    dream: np.ndarray | None = None  # (H, W, 3) uint8


class Map(NamedTuple):
    """What one layer made of an image."""

    layer: str
    values: np.ndarray  # (h, w, c) float32
    picture: str


class Seen(NamedTuple):
    """A heatmap and the picture that shows it over its image."""

    model: str
    located: Located
    picture: str


class Explained(NamedTuple):
    """What the row of one image says; what was not asked for is None."""

    activations: list[Map] | None = None
    gradcam: list[Seen] | None = None
    dream: tuple[bytes, str] | None = None  # a PNG, and the name of the picture


def images_schema(sections: Sequence[str]) -> pa.Schema:
    """Return the schema of the images' rows: a prediction's first columns, and one a section."""
    asked = [(_COLUMN_NAMES.get(name, name), COLUMN_TYPES[name]) for name in sections]
    return pa.schema([*schema.result_schema([]), *asked])


def image_rows(
    batch: ImageBatch,
    failures: Mapping[int, Failure],  # position → why
    explained: Mapping[int, Explained],  # position → what
    sections: Sequence[str],
) -> pa.Table:  # N rows
    """Return one row for every image of the batch, in its order; a failed one has its error."""
    whole = images_schema(sections)
    columns: list[pa.Array] = [
        pa.array(batch.image_id, pa.string()),
        pa.array(batch.uri, pa.string()),
        *(pa.array([int(v) or None for v in side], pa.int32())
          for side in (batch.width, batch.height)),
        pa.array(["failed" if i in failures else "ok" for i in range(len(batch))], pa.string()),
        pa.array([failures[i].__dict__ if i in failures else None for i in range(len(batch))],
                 whole.field("error").type),
    ]  # fmt: skip
    rows = [explained.get(i, Explained()) for i in range(len(batch))]
    for name in sections:
        columns.append(_COLUMNS[name](rows))
    return pa.table(columns, schema=whole)


def _activations(rows: Sequence[Explained]) -> pa.Array:
    maps = [one for row in rows for one in row.activations or []]
    items = pa.StructArray.from_arrays(
        [
            pa.array([one.layer for one in maps], pa.string()),
            *(pa.array([one.values.shape[axis] for one in maps], pa.int32()) for axis in range(3)),
            pa.array([one.picture for one in maps], pa.string()),
            floats([one.values for one in maps]),
        ],
        fields=list(_CHANNELS),
    )
    lengths = [None if row.activations is None else len(row.activations) for row in rows]
    return _lists(items, lengths)


def floats(arrays: Sequence[np.ndarray]) -> pa.ListArray:
    """Return arrays of any shape as lists of float32, row by row."""
    sizes = np.array([0, *(array.size for array in arrays)], np.int64)
    flat = [np.empty(0, np.float32), *(array.astype(np.float32).reshape(-1) for array in arrays)]
    return pa.ListArray.from_arrays(np.cumsum(sizes).astype(np.int32), np.concatenate(flat))


def _lists(items: pa.Array, lengths: Sequence[int | None]) -> pa.ListArray:
    offsets = np.cumsum([0, *(length or 0 for length in lengths)]).astype(np.int32)
    mask = pa.array([length is None for length in lengths], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), items, mask=mask)


def _gradcam(rows: Sequence[Explained]) -> pa.Array:
    said = [None if row.gradcam is None else [_heatmap(one) for one in row.gradcam] for row in rows]
    return pa.array(said, COLUMN_TYPES["gradcam"])


def _heatmap(seen: Seen) -> dict[str, Any]:
    one = seen.located
    corners = [field.name for field in _BOX]
    return {
        "model": seen.model,
        "layer": one.layer,
        "class_id": one.class_id,
        "label": one.label,
        "score": one.score,
        "height": one.values.shape[0],
        "width": one.values.shape[1],
        "values": one.values.reshape(-1),
        "box": None if one.box is None else dict(zip(corners, one.box.tolist(), strict=True)),
        "picture": seen.picture,
    }


def _dream(rows: Sequence[Explained]) -> pa.Array:
    said = [row.dream and {"bytes": row.dream[0], "path": row.dream[1]} for row in rows]
    return pa.array(said, COLUMN_TYPES["dream"])


_COLUMNS = {"activations": _activations, "gradcam": _gradcam, "dream": _dream}


def filter_rows(
    layer: str,
    arrays: np.ndarray,  # (N, h, w, c)
    picture: str,
    activation: np.ndarray | None = None,  # (N,)
) -> pa.Table:  # N rows
    """Return one row for every filter of a layer."""
    count, *sides = arrays.shape
    columns: list[pa.Array] = [
        pa.array([layer] * count, pa.string()),
        pa.array(range(count), pa.int32()),
        *(pa.array([side] * count, pa.int32()) for side in sides),
        pa.array([picture] * count, pa.string()),
        floats(list(arrays)),
    ]
    if activation is None:
        return pa.table(columns, schema=FILTERS)
    return pa.table([*columns, pa.array(activation, pa.float32())], schema=PATTERNS)
