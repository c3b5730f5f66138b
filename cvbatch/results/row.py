"""One image of a result: predictions as arrays, the image itself, and overlays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cvbatch.core.errors import SourceError
from cvbatch.core.types import ChunkRef, EncodedImage, Failure, InputKey, Tiling
from cvbatch.geometry.resampling import heatmap_to_original
from cvbatch.geometry.resize import Placement, make_placement, mask_to_original
from cvbatch.geometry.tiling import tile_placements
from cvbatch.images.decode import decode
from cvbatch.images.drawing import draw_boxes, paint_mask
from cvbatch.images.heatmaps import overlay
from cvbatch.images.masks import decode_png
from cvbatch.results.parts import MISSING, box_corners

if TYPE_CHECKING:
    from PIL.Image import Image

    from cvbatch.results.result import Result

Layer = Literal["mask", "heatmap", "boxes"]
_MASK_OPACITY = 0.5


@dataclass(frozen=True)
class Row:
    """One image and its predictions; None where no model of the job predicts that kind."""

    image_id: str
    uri: str
    width: int | None  # of the upright image, pixels; None: it was not decoded
    height: int | None
    error: Failure | None  # None: the image is ok
    labels: list[dict[str, Any]] | None  # class_id, label, score; best first
    boxes: list[dict[str, Any]] | None  # x_min, y_min, x_max, y_max, class_id, label, score
    mask_areas: list[dict[str, Any]] | None  # class_id, label, area in pixels; largest first
    _values: dict[str, Any] = field(repr=False)  # of the Parquet row
    _result: Result = field(repr=False)
    _ref: ChunkRef = field(repr=False)

    @classmethod
    def of(cls, values: dict[str, Any], result: Result, ref: ChunkRef) -> Row:
        """Return the row of a chunk whose Parquet values are given.

        Raises:
            SourceError: the row failed without a reason, which cvbatch never writes.
        """
        error = values["error"] if values["status"] != "ok" else None
        if values["status"] != "ok" and error is None:
            raise SourceError(
                f"{result.uri}: {values['image_id']!r} failed without a reason, which cvbatch "
                "never writes; predict again"
            )
        return cls(
            values["image_id"],
            values["uri"],
            values["width"],
            values["height"],
            None if error is None else Failure(**error),
            values.get("labels"),
            values.get("boxes"),
            values.get("mask_areas"),
            values,
            result,
            ref,
        )

    @property
    def size_hw(self) -> tuple[int, int]:
        """Return height and width of the upright image, pixels.

        Raises:
            SourceError: they are not known, because the image failed in the job.
        """
        if self.error is not None or self.height is None or self.width is None:
            why = self.error or Failure("decode", "unknown", "it has no size")
            raise SourceError(
                f"{self.image_id!r} failed in the job ({why.kind}: {why.message}); use only rows "
                "without an error"
            )
        return self.height, self.width

    @cached_property
    def xyxy(self) -> np.ndarray:  # (M, 4) float32
        """Return the boxes half-open, in pixels of the upright image, best first."""
        return box_corners(self.boxes).astype(np.float32)

    @property
    def stored_mask(self) -> np.ndarray | None:  # (h, w) uint8
        """Return the mask at its stored size, which is the network's with `mask_size: model`.

        Raises:
            SourceError: the PNG is damaged.
        """
        data = (self._values.get("mask") or {}).get("bytes")
        try:
            return None if data is None else decode_png(data)
        except ValueError as error:
            raise SourceError(f"the mask of {self.image_id!r}: {error}") from None

    @cached_property
    def mask(self) -> np.ndarray | None:  # (height, width) uint8
        """Return the class of every pixel, at the size of the image; 255: the model saw nothing.

        Raises:
            SourceError: the PNG is damaged.
        """
        mask = self.stored_mask
        model = self._result.models.get("mask", {})
        if mask is None or model["options"].get("mask_size") != "model":
            return mask
        return mask_to_original(mask, make_placement(*self.size_hw, _input_key(model)))

    def with_min_score(self, min_score: float) -> Row:
        """Return the row with the labels and boxes of a minimum score."""
        labels, boxes = (
            elements and [one for one in elements if one["score"] >= min_score]
            for elements in (self.labels, self.boxes)
        )
        return replace(self, labels=labels, boxes=boxes)

    @cached_property
    def heatmaps(self) -> list[dict[str, Any]] | None:
        """Return the heatmaps: model, layer, class_id, label, score, and values, (h, w) float32.

        Values are in 0..1 on the layer's own grid, which covers the network's input: the borders of
        a letterbox too, and not what a crop left out. `heat` resamples them to the image.
        """
        stored = self._values.get("heatmaps")
        return stored and [
            {
                **{key: one[key] for key in ("model", "layer", "class_id", "label", "score")},
                "values": np.array(one["values"], np.float32).reshape(one["height"], one["width"]),
            }
            for one in stored
        ]

    def heat(self, number: int = 0) -> np.ndarray:  # (h, w) float64 in 0..1
        """Return a heatmap over the whole image, 0 where the network saw nothing.

        It has the image's size, or its shape where a side is longer than
        `cvbatch.geometry.resampling.MAX_SIDE`.

        Args:
            number: index into `heatmaps`.
        """
        values = np.nan_to_num((self.heatmaps or [])[number]["values"])
        models = self._result.metadata["models"]
        model = next(one for one in models if "heatmap" in one["options"])
        return heatmap_to_original(values, _placement(model, *self.size_hw))

    def image(self) -> Image:
        """Return the image as the models saw it, upright and RGB, read from its source.

        Raises:
            SourceError: the job could not read it, or it is missing or has changed since.
        """
        from PIL import Image

        return Image.fromarray(self._pixels())

    def overlay(self, *layers: Layer) -> Image:
        """Return the image with its predictions drawn over it.

        Args:
            *layers: what is drawn; default: mask and boxes, or the heatmap if there is neither.

        Raises:
            SourceError: as `image`.
        """
        from PIL import Image

        has_places = self.boxes is not None or self._values.get("mask") is not None
        drawn = layers or (("mask", "boxes") if has_places else ("heatmap",))
        pixels = self._pixels()
        if "mask" in drawn and self.mask is not None:
            pixels = paint_mask(pixels, self.mask, _MASK_OPACITY)
        if "heatmap" in drawn and self.heatmaps:
            pixels = overlay(pixels, self.heat())
        # a box with NaN or infinity has no place in the image
        finite = np.flatnonzero(np.isfinite(self.xyxy).all(axis=1)).tolist()
        if "boxes" in drawn and self.boxes and finite:
            boxes = [self.boxes[i] for i in finite]
            pixels = draw_boxes(
                pixels,
                self.xyxy[finite],
                [box["label"] for box in boxes],
                np.array([box["score"] for box in boxes], np.float32),
                # a mask's class 0 is the background: + 1 gives a box the colour of its mask class
                np.array([box["class_id"] for box in boxes], np.int64) + 1,
            )
        return Image.fromarray(pixels)

    def decoded(
        self, image: EncodedImage | None, size_hw: tuple[int, int]
    ) -> np.ndarray | Failure:  # (h, w, 3) uint8 RGB
        """Return the row's image at some size, or why it is not the image of the prediction.

        Args:
            image: as it was read again; None: it was not there.
            size_hw: height and width to decode to.
        """
        if image is None:
            return MISSING
        if image.failure is not None:
            return image.failure
        key = InputKey(*size_hw, "stretch")
        found = decode(image.data, [key], self._result.limits)
        if isinstance(found, Failure):
            return found
        if (found.height, found.width) != (self.height, self.width):
            return Failure("read", "changed", f"it is {found.width} x {found.height} now")
        return found.pixels[key]

    def _pixels(self) -> np.ndarray:  # (height, width, 3) uint8 RGB
        size_hw = self.size_hw
        image = next(self._result.images(self._ref, [self.image_id]), None)
        pixels = self.decoded(image, size_hw)
        if isinstance(pixels, Failure):
            raise SourceError(
                f"{self.uri}: {self.image_id!r} cannot be read as the job read it ({pixels.kind}: "
                f"{pixels.message}); restore the image, or run the job again"
            )
        return pixels


def _input_key(model: dict[str, Any]) -> InputKey:
    height, width = model["input_size"]
    return InputKey(height, width, model["resize"])


def _placement(model: dict[str, Any], height: int, width: int) -> Placement:
    """Return where a heatmap of a model of the metadata is on an image."""
    key = _input_key(model)
    tiles = model["options"].get("tiles")
    if tiles is not None:
        tile_height, tile_width = tiles.get("size") or model["input_size"]
        cut = key._replace(tiling=Tiling(tile_height, tile_width, 0, 0))
        if len(tile_placements(height, width, cut)) > 1:
            key = key._replace(resize="stretch")  # heatmaps of several tiles are merged to the size
    return make_placement(height, width, key)
