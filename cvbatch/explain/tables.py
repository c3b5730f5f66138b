"""Output of an explanation: file names of pictures, and Arrow tables of arrays."""

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
        ("values", pa.list_(pa.float32())),  # (height, width, channels), flattened
    ]
)
_BOX = pa.struct([(name, pa.float32()) for name in ("x_min", "y_min", "x_max", "y_max")])
_HEATMAP = pa.struct([*schema.COLUMN_TYPES["heatmaps"].value_type, ("box", _BOX),
                      ("picture", pa.string())])  # fmt: skip
COLUMN_TYPES: dict[str, pa.DataType] = {  # by section of the job
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
        ("values", pa.list_(pa.float32())),  # (height, width, channels), flattened
    ]
)
PATTERNS = FILTERS.append(pa.field("activation", pa.float32()))
_HASHED = re.compile(r"-[0-9a-f]{16}\Z")
_MAX_FILE_NAME = 150


def image_name(image_id: str, source_format: str) -> str:
    """Return the relative path of an image's pictures, without .png.

    It is the image id if that is a safe path, else a safe path with a hash of the id. It never
    leaves its folder, and images of one source never share it.

    Args:
        image_id: in a container it has "#" before the key of the image.
        source_format: a key of INPUT_FORMATS.
    """
    key = INPUT_FORMATS[source_format].key
    is_inside = key != ""
    stem, suffix = split_name(image_id, is_inside=is_inside, is_flat=False)
    plain = image_id.replace("#", "/", 1) if is_inside else image_id
    # A path without a suffix could be the folder of other images, unless it ends in a row number.
    is_leaf = suffix != "" or key == "row"
    if is_leaf and stem + suffix == plain and not _HASHED.search(stem):
        return plain
    return f"{stem}-{_digest(image_id)}{suffix}"


def safe_file_name(name: str) -> str:
    """Return a safe and unique file name, without suffix, for a layer path or a class name.

    A path outer/inner/layer becomes outer.inner.layer with a hash.
    """
    plain = name.replace("/", ".")
    safe = re.sub(r"[^A-Za-z0-9_. -]", "_", plain)[:_MAX_FILE_NAME].strip(" ").lstrip(".") or "x"
    if safe == plain and "." not in name and not _HASHED.search(safe):
        return safe
    return f"{safe}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ClassHeatmap(NamedTuple):
    """Grad-CAM heatmap of one class in one image.

    Attributes:
        layer: path of the layer whose feature map was used.
        class_id: of the class.
        label: name of the class.
        score: the score that is explained.
        values: heatmap in 0..1.
        box_in_input: detector only: the box whose score is explained, in pixels of the input.
        box: the same box in pixels of the original.
    """

    layer: str
    class_id: int
    label: str
    score: float
    values: np.ndarray  # (h, w) float32
    box_in_input: np.ndarray | None = None  # (4,)
    box: np.ndarray | None = None  # (4,)


class Explanation(NamedTuple):
    """Arrays computed for one image; sections that the job does not have are None."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB, at the size of the network's input
    activations: dict[str, np.ndarray] | None = None  # layer → (h, w, c) float32
    gradcam: list[ClassHeatmap] | None = None
    dream: np.ndarray | None = None  # (H, W, 3) uint8 RGB


class LayerActivations(NamedTuple):
    """Output of one layer for an image, and the file name of its picture."""

    layer: str
    values: np.ndarray  # (h, w, c) float32
    picture: str


class HeatmapPicture(NamedTuple):
    """A heatmap, and the file name of the picture that overlays it on its image."""

    model: str
    heatmap: ClassHeatmap
    picture: str


class ImageRow(NamedTuple):
    """Values of one image's row by section; sections that the job does not have are None."""

    activations: list[LayerActivations] | None = None
    gradcam: list[HeatmapPicture] | None = None
    dream: tuple[bytes, str] | None = None  # PNG, file name of the picture


def images_schema(sections: Sequence[str]) -> pa.Schema:
    """Return the schema of image rows: the common columns of results, one column per section."""
    columns = [(_COLUMN_NAMES.get(name, name), COLUMN_TYPES[name]) for name in sections]
    return pa.schema([*schema.result_schema([]), *columns])


def image_rows(
    batch: ImageBatch,
    failures: Mapping[int, Failure],  # by position in the batch
    explained: Mapping[int, ImageRow],  # by position in the batch
    sections: Sequence[str],
) -> pa.Table:  # N rows
    """Return one row for every image of the batch, in its order; failed images have an error."""
    table_schema = images_schema(sections)
    columns: list[pa.Array] = [
        pa.array(batch.image_id, pa.string()),
        pa.array(batch.uri, pa.string()),
        *(pa.array([int(v) or None for v in side], pa.int32())
          for side in (batch.width, batch.height)),
        pa.array(["failed" if i in failures else "ok" for i in range(len(batch))], pa.string()),
        pa.array([failures[i].__dict__ if i in failures else None for i in range(len(batch))],
                 table_schema.field("error").type),
    ]  # fmt: skip
    rows = [explained.get(i, ImageRow()) for i in range(len(batch))]
    columns += [_COLUMNS[name](rows) for name in sections]
    return pa.table(columns, schema=table_schema)


def _activations(rows: Sequence[ImageRow]) -> pa.Array:
    maps = [layer_map for row in rows for layer_map in row.activations or []]
    items = pa.StructArray.from_arrays(
        [
            pa.array([m.layer for m in maps], pa.string()),
            *(pa.array([m.values.shape[axis] for m in maps], pa.int32()) for axis in range(3)),
            pa.array([m.picture for m in maps], pa.string()),
            float_lists([m.values for m in maps]),
        ],
        fields=list(_CHANNELS),
    )
    lengths = [None if row.activations is None else len(row.activations) for row in rows]
    return _lists(items, lengths)


def float_lists(arrays: Sequence[np.ndarray]) -> pa.ListArray:
    """Return each array, of any shape, as a flattened list of float32."""
    sizes = np.array([0, *(array.size for array in arrays)], np.int64)
    flat = [np.empty(0, np.float32), *(array.astype(np.float32).reshape(-1) for array in arrays)]
    return pa.ListArray.from_arrays(np.cumsum(sizes).astype(np.int32), np.concatenate(flat))


def _lists(items: pa.Array, lengths: Sequence[int | None]) -> pa.ListArray:
    offsets = np.cumsum([0, *(length or 0 for length in lengths)]).astype(np.int32)
    mask = pa.array([length is None for length in lengths], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), items, mask=mask)


def _gradcam(rows: Sequence[ImageRow]) -> pa.Array:
    values = [row.gradcam if row.gradcam is None else [*map(_heatmap, row.gradcam)] for row in rows]
    return pa.array(values, COLUMN_TYPES["gradcam"])


def _heatmap(shown: HeatmapPicture) -> dict[str, Any]:
    heatmap = shown.heatmap
    box, corners = heatmap.box, [field.name for field in _BOX]
    return {
        "model": shown.model,
        "layer": heatmap.layer,
        "class_id": heatmap.class_id,
        "label": heatmap.label,
        "score": heatmap.score,
        "height": heatmap.values.shape[0],
        "width": heatmap.values.shape[1],
        "values": heatmap.values.reshape(-1),
        "box": None if box is None else dict(zip(corners, box.tolist(), strict=True)),
        "picture": shown.picture,
    }


def _dream(rows: Sequence[ImageRow]) -> pa.Array:
    values = [row.dream and {"bytes": row.dream[0], "path": row.dream[1]} for row in rows]
    return pa.array(values, COLUMN_TYPES["dream"])


_COLUMNS = {"activations": _activations, "gradcam": _gradcam, "dream": _dream}


def filter_rows(
    layer: str,
    arrays: np.ndarray,  # (N, h, w, c)
    picture: str,
    activation: np.ndarray | None = None,  # (N,)
) -> pa.Table:  # N rows
    """Return one row for every filter of a layer.

    Args:
        layer: path of the layer.
        arrays: pattern or kernel of each filter.
        picture: file name of the layer's picture.
        activation: of patterns: mean activation of each filter; None for kernels.
    """
    count, *sides = arrays.shape
    columns: list[pa.Array] = [
        pa.array([layer] * count, pa.string()),
        pa.array(range(count), pa.int32()),
        *(pa.array([side] * count, pa.int32()) for side in sides),
        pa.array([picture] * count, pa.string()),
        float_lists(list(arrays)),
    ]
    if activation is None:
        return pa.table(columns, schema=FILTERS)
    return pa.table([*columns, pa.array(activation, pa.float32())], schema=PATTERNS)
