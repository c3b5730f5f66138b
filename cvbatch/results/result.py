"""A finished prediction as plain Python: its rows, masks and heatmaps as arrays, its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from cvbatch.core.errors import SourceError
from cvbatch.core.types import ChunkRef, Failure, InputKey, Tiling
from cvbatch.geometry.resampling import over_original
from cvbatch.geometry.resize import Placement, make_placement
from cvbatch.geometry.tiling import tile_placements
from cvbatch.images.decode import decode
from cvbatch.images.drawing import draw_boxes, paint_mask
from cvbatch.images.heatmaps import overlay
from cvbatch.results.parts import Parts, describe, limits_of, mask_of, read_job, read_rows
from cvbatch.storage import store

if TYPE_CHECKING:
    from PIL.Image import Image

Layer = Literal["mask", "heatmap", "boxes"]
_ROWS_AT_ONCE = 64  # held with their masks
_MASK_OPACITY = 0.5
_SIDES = ("x_min", "y_min", "x_max", "y_max")


@dataclass(frozen=True)
class Row:
    """One image and what the models said of it; what no model of the job says is None."""

    image_id: str
    uri: str
    width: int | None  # of the upright image; None where it was not decoded
    height: int | None
    error: Failure | None  # None: the image is ok
    labels: list[dict[str, Any]] | None  # class_id, label, score; best first
    boxes: list[dict[str, Any]] | None  # x_min, y_min, x_max, y_max, class_id, label, score
    mask_areas: list[dict[str, Any]] | None  # class_id, label, area in pixels; largest first
    _said: dict[str, Any] = field(repr=False)
    _result: Result = field(repr=False)
    _ref: ChunkRef = field(repr=False)

    @property
    def xyxy(self) -> np.ndarray:  # (M, 4) float32
        """Return the boxes half-open, in pixels of the upright image, best first."""
        corners = [[box[side] for side in _SIDES] for box in self.boxes or []]
        return np.array(corners, np.float32).reshape(-1, 4)

    @cached_property
    def mask(self) -> np.ndarray | None:  # (height, width) uint8
        """Return the class of every pixel, at the size of the image; 255 where none was looked for.

        Raises:
            SourceError: the PNG is broken.
        """
        return mask_of(self._said, self._result.metadata["models"])

    @cached_property
    def heatmaps(self) -> list[dict[str, Any]] | None:
        """Return the heatmaps: model, layer, class_id, label, score, and values, (h, w) float32.

        Values lie in 0..1 on the layer's own grid, which covers what the network was fed: a
        letterbox's borders too, and not what a crop left out. `heat` lays them over the image.
        """
        maps = self._said.get("heatmaps")
        return maps and [
            {
                **{key: one[key] for key in ("model", "layer", "class_id", "label", "score")},
                "values": np.array(one["values"], np.float32).reshape(one["height"], one["width"]),
            }
            for one in maps
        ]

    def heat(self, number: int = 0) -> np.ndarray:  # (h, w) float64 in 0..1
        """Return a heatmap over all of the image, 0 where the network did not look.

        It has the image's size, or its shape where a side is longer than
        `cvbatch.geometry.resampling.MAX_SIDE`. number: of the heatmap.
        """
        values = np.nan_to_num((self.heatmaps or [])[number]["values"])
        models = self._result.metadata["models"]
        model = next(one for one in models if "heatmap" in one["options"])
        return over_original(values, _placement(model, self.height or 1, self.width or 1))

    def image(self) -> Image:
        """Return the image as the models saw it, upright and RGB, read from where it lies.

        Raises:
            SourceError: the job could not read it, or it is not there any more as it was.
        """
        from PIL import Image

        return Image.fromarray(self._pixels())

    def overlay(self, *layers: Layer) -> Image:
        """Return the image under what was found in it.

        layers: what is drawn. None named: mask and boxes, or the heatmap where there is neither.

        Raises:
            SourceError: as `image` does.
        """
        from PIL import Image

        has_answer = self.boxes is not None or self._said.get("mask") is not None
        shown = layers or (("mask", "boxes") if has_answer else ("heatmap",))
        picture = self._pixels()
        if "mask" in shown and self.mask is not None:
            picture = paint_mask(picture, self.mask, _MASK_OPACITY)
        if "heatmap" in shown and self.heatmaps:
            picture = overlay(picture, self.heat())
        # a network that answers no number has found nothing there
        placed = np.flatnonzero(np.isfinite(self.xyxy).all(axis=1)).tolist()
        if "boxes" in shown and self.boxes and placed:
            boxes = [self.boxes[i] for i in placed]
            picture = draw_boxes(
                picture,
                self.xyxy[placed],
                [box["label"] for box in boxes],
                np.array([box["score"] for box in boxes], np.float32),
                # a mask's class 0 is the background: one further, a box has its object's colour
                np.array([box["class_id"] for box in boxes], np.int64) + 1,
            )
        return Image.fromarray(picture)

    def _pixels(self) -> np.ndarray:  # (height, width, 3) uint8 RGB
        if self.error is not None or self.height is None or self.width is None:
            why = self.error or Failure("decode", "unknown", "it has no size")
            raise SourceError(
                f"{self.image_id!r} failed in the job ({why.kind}: {why.message}); ask only of "
                "rows without an error"
            )
        found = next(
            self._result.parts.encoded(self._ref, [self.image_id], self._result.limits.max_bytes),
            None,
        )
        key = InputKey(self.height, self.width, "stretch")
        if found is None or found.failure:
            why = (found and found.failure) or Failure("read", "missing", "it is not there")
        else:
            decoded = decode(found.data, [key], self._result.limits)
            if isinstance(decoded, Failure):
                why = decoded
            elif (decoded.height, decoded.width) != (self.height, self.width):
                why = Failure("read", "changed", f"it is {decoded.width} x {decoded.height} now")
            else:
                return decoded.pixels[key]
        raise SourceError(
            f"{self.uri}: {self.image_id!r} cannot be read as the job read it ({why.kind}: "
            f"{why.message}); put the image back, or run the job again"
        )


class Result:
    """The result of `cvbatch predict`: iterate it for `Row`s, a few dozen in memory at a time."""

    def __init__(self, uri: str) -> None:
        self.parts = Parts.find(uri)
        self.uri = self.parts.uri
        self.job = read_job(self.uri)
        if self.parts.reading is None and self.job is None:
            raise SourceError(
                f"{self.uri} holds no result of `cvbatch predict`: it has no _cvbatch/manifest; "
                "check the name of the folder"
            )
        self.limits = limits_of(self.job)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Return what the files say of the job: models, box format, versions; {} without a file.

        Raises:
            SourceError: a file is damaged, or of another schema version.
        """
        return describe(self.parts.uri_of(self.parts.done[0])).document if self.parts.done else {}

    @property
    def num_chunks_left(self) -> int:
        """Return how many chunks are planned and not done; 0 for a finished job."""
        return len(self.parts.missing)

    def __iter__(self) -> Iterator[Row]:
        """Yield every image in the order of the manifest, those that failed too.

        Raises:
            SourceError: a file is damaged, of another job or another schema version.
        """
        for ref in self.parts.done:
            uri = self.parts.uri_of(ref)
            said = describe(uri)
            if said.document["fingerprint"] != self.metadata["fingerprint"]:
                raise SourceError(f"{uri} is of another job than the rest of {self.uri}")
            for row in read_rows(uri, None, _ROWS_AT_ONCE):
                yield self.row(row, ref)

    def row(self, said: dict[str, Any], ref: ChunkRef) -> Row:
        """Return a row that was read as plain values from a chunk's file."""
        error = said["error"] if said["status"] != "ok" else None
        if said["status"] != "ok" and error is None:
            raise SourceError(
                f"{self.uri}: {said['image_id']!r} failed without a reason, which no cvbatch "
                "writes; predict again"
            )
        return Row(
            image_id=said["image_id"],
            uri=said["uri"],
            width=said["width"],
            height=said["height"],
            error=None if error is None else Failure(**error),
            labels=said.get("labels"),
            boxes=said.get("boxes"),
            mask_areas=said.get("mask_areas"),
            _said=said,
            _result=self,
            _ref=ref,
        )

    def dataset(self) -> ds.Dataset:
        """Return the files as a pyarrow dataset, for filters and projections without a copy."""
        place = store.Location.of(self.uri)
        paths = [store.Location.of(self.parts.uri_of(ref)).path for ref in self.parts.done]
        if not paths:
            return ds.dataset(pa.table({}))
        try:
            return ds.dataset(paths, format="parquet", filesystem=place.files)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"{self.uri} cannot be read as Parquet ({str(error)[:200]}); predict again"
            ) from None

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows as one pyarrow table, whole in memory; columns: None for all.

        Raises:
            SourceError: a file is damaged, or there is no such column.
        """
        rows = self.dataset()
        unknown = set(columns or ()) - set(rows.schema.names)
        if unknown and rows.schema.names:
            raise SourceError(
                f"the result has no column {min(unknown)!r}; it has {', '.join(rows.schema.names)}"
            )
        try:
            return rows.to_table(columns=None if unknown or columns is None else list(columns))
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"{self.uri} cannot be read as Parquet ({str(error)[:200]}); predict again"
            ) from None


def _placement(model: dict[str, Any], height: int, width: int) -> Placement:
    """Return how an image lies under a heatmap of a model of the metadata."""
    input_height, input_width = model["input_size"]
    key = InputKey(input_height, input_width, model["resize"])
    tiles = model["options"].get("tiles")
    if tiles is not None:
        tile_height, tile_width = tiles.get("size") or model["input_size"]
        cut = key._replace(tiling=Tiling(tile_height, tile_width, 0, 0))
        if len(tile_placements(height, width, cut)) > 1:
            key = key._replace(resize="stretch")  # the map of an image that was cut covers it all
    return make_placement(height, width, key)
