"""One image of a result: predictions as arrays, the image itself, and overlays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cvbatch.core.errors import SourceError
from cvbatch.core.types import VOID_CLASS, ChunkRef, EncodedImage, Failure, InputKey, Tiling
from cvbatch.geometry.resampling import heatmap_to_original
from cvbatch.geometry.resize import Placement, make_placement, mask_to_original
from cvbatch.geometry.tiling import tile_placements
from cvbatch.images.decode import decode
from cvbatch.images.drawing import draw_boxes, paint_mask, palette_value
from cvbatch.images.heatmaps import overlay
from cvbatch.images.masks import decode_png
from cvbatch.images.rle import check_runs, decode_rle, parse_compressed_rle
from cvbatch.results.parts import MISSING, box_corners
from cvbatch.results.schema import RESERVED_NAMES

if TYPE_CHECKING:
    from PIL.Image import Image

    from cvbatch.results.result import Result

Layer = Literal["mask", "heatmap", "boxes"]
_MASK_OPACITY = 0.5


@dataclass(frozen=True)
class Row:
    """One image and its predictions; None if no model of the job predicts that kind."""

    image_id: str
    uri: str
    width: int | None  # of the upright image, pixels; None: it was not decoded
    height: int | None
    error: Failure | None  # None: the image is ok
    labels: list[dict[str, Any]] | None  # class_id, label, score; best first
    # x_min, y_min, x_max, y_max, class_id, label, score; mask (RLE: size, counts) if there is one
    boxes: list[dict[str, Any]] | None
    mask_areas: list[dict[str, Any]] | None  # class_id, label, area in pixels; largest first
    _values: dict[str, Any] = field(repr=False)  # of the Parquet row
    _result: Result = field(repr=False)
    _ref: ChunkRef = field(repr=False)

    @classmethod
    def of(cls, values: dict[str, Any], result: Result, ref: ChunkRef) -> Row:
        """Return the row of a chunk whose Parquet values are given.

        Raises:
            SourceError: the row failed without a reason, or has more or fewer masks than boxes,
                which cvbatch never writes.
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
            _with_masks(values),
            values.get("mask_areas"),
            values,
            result,
            ref,
        )

    @property
    def kept(self) -> dict[str, Any]:
        """Return the columns of the source that the job kept (`source.keep_columns`)."""
        return {name: value for name, value in self._values.items() if name not in RESERVED_NAMES}

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
        """Return the class of every pixel at the image's size; 255: outside of the network's input.

        Raises:
            SourceError: the PNG is damaged.
        """
        mask = self.stored_mask
        model = self._result.models.get("mask", {})
        if mask is None or model["options"].get("mask_size") != "model":
            return mask
        return mask_to_original(mask, make_placement(*self.size_hw, _input_key(model)))

    def box_mask_runs(self, number: int) -> np.ndarray | None:  # (R,) int64
        """Return the run lengths of the mask of a box, see `cvbatch.images.rle`.

        Args:
            number: index into `boxes`.

        Returns:
            Runs that sum to the pixels of the image; None if the box has no mask.

        Raises:
            SourceError: the RLE is damaged, or of another size.
        """
        rle = (self.boxes or [])[number].get("mask")
        if rle is None:
            return None
        try:
            if tuple(rle["size"]) != self.size_hw:
                raise ValueError(f"its size is {rle['size']}")
            return check_runs(parse_compressed_rle(rle["counts"]), self.size_hw)
        except (ValueError, TypeError, AttributeError) as error:  # null is of another type
            raise SourceError(f"a mask of a box of {self.image_id!r}: {error}") from None

    def box_mask(self, number: int) -> np.ndarray | None:  # (height, width) bool
        """Return the mask of a box at the image's size; None if it has none.

        Args:
            number: index into `boxes`.

        Raises:
            SourceError: as `box_mask_runs`.
        """
        runs = self.box_mask_runs(number)
        return None if runs is None else decode_rle(runs, self.size_hw)

    def box_mask_map(self, values: Sequence[int]) -> np.ndarray | None:  # (height, width) uint8
        """Return a value for every pixel: that of the first box whose mask has it, or `VOID_CLASS`.

        Args:
            values: of the first boxes; the others are left out.

        Returns:
            The map, or None if no box has a mask.

        Raises:
            SourceError: as `box_mask`.
        """
        if not any(box.get("mask") for box in self.boxes or ()):
            return None
        merged = np.full(self.size_hw, VOID_CLASS, np.uint8)
        for number in reversed(range(len(values))):
            region = self.box_mask(number)
            if region is not None:
                merged[region] = values[number]
        return merged

    def with_min_score(self, min_score: float) -> Row:
        """Return the row with the labels and boxes of a minimum score."""
        labels, boxes = (
            elements and [element for element in elements if element["score"] >= min_score]
            for elements in (self.labels, self.boxes)
        )
        return replace(self, labels=labels, boxes=boxes)

    @cached_property
    def embedding(self) -> np.ndarray | None:  # (D,) float32
        """Return the feature vector of the image."""
        stored = self._values.get("embedding")
        return None if stored is None else np.array(stored, np.float32)

    @property
    def values(self) -> dict[str, float] | None:
        """Return the numbers of a regression by name, in the order of the network."""
        stored = self._values.get("values")
        if stored is None:
            return None
        models = self._result.metadata["models"]
        model = next(model for model in models if model["task"] == "regression")
        return dict(zip(model["classes"], stored, strict=True))

    @cached_property
    def heatmaps(self) -> list[dict[str, Any]] | None:
        """Return the heatmaps: model, layer, class_id, label, score, and values, (h, w) float32.

        Values are in 0..1 on the layer's grid, which covers the network's input, with a letterbox's
        borders and without what is cropped. `heat` resamples them to the image.
        """
        stored = self._values.get("heatmaps")
        return stored and [
            {
                **{key: row[key] for key in ("model", "layer", "class_id", "label", "score")},
                "values": np.array(row["values"], np.float32).reshape(row["height"], row["width"]),
            }
            for row in stored
        ]

    def heat(self, number: int = 0) -> np.ndarray:  # (h, w) float64 in 0..1
        """Return a heatmap over the image, 0 outside of the network's input.

        It has the image's size, each side limited to `cvbatch.geometry.resampling.MAX_SIDE`.

        Args:
            number: index into `heatmaps`.
        """
        values = np.nan_to_num((self.heatmaps or [])[number]["values"])
        models = self._result.metadata["models"]
        model = next(model for model in models if "heatmap" in model["options"])
        return heatmap_to_original(values, _placement(model, *self.size_hw))

    def image(self) -> Image:
        """Read the image from its source and return it as the models received it, upright and RGB.

        Raises:
            SourceError: the job could not read it, or it is missing or has changed since.
        """
        from PIL import Image

        return Image.fromarray(self._pixels())

    def overlay(self, *layers: Layer) -> Image:
        """Return the image with its predictions drawn over it.

        Args:
            *layers: layers to draw; default: mask and boxes, or the heatmap if there is neither.

        Raises:
            SourceError: as `image`.
        """
        from PIL import Image

        has_regions = self.boxes is not None or self._values.get("mask") is not None
        drawn = layers or (("mask", "boxes") if has_regions else ("heatmap",))
        pixels = self._pixels()
        if "mask" in drawn and self.mask is not None:
            pixels = paint_mask(pixels, self.mask, _MASK_OPACITY)
        class_ids = [box["class_id"] for box in self.boxes or ()]
        box_masks = self.box_mask_map(list(map(palette_value, class_ids)))
        if "boxes" in drawn and box_masks is not None:
            pixels = paint_mask(pixels, box_masks, _MASK_OPACITY)
        if "heatmap" in drawn and self.heatmaps:
            pixels = overlay(pixels, self.heat())
        # A box with NaN or infinity cannot be drawn.
        finite = np.flatnonzero(np.isfinite(self.xyxy).all(axis=1)).tolist()
        if "boxes" in drawn and self.boxes and finite:
            boxes = [self.boxes[i] for i in finite]
            pixels = draw_boxes(
                pixels,
                self.xyxy[finite],
                [box["label"] for box in boxes],
                np.array([box["score"] for box in boxes], np.float32),
                np.array([class_ids[i] for i in finite], np.int64),
            )
        return Image.fromarray(pixels)

    def decoded(
        self, image: EncodedImage | None, size_hw: tuple[int, int]
    ) -> np.ndarray | Failure:  # (h, w, 3) uint8 RGB
        """Decode the row's image, or return why it is not the image that the job read.

        Args:
            image: read from the source now; None: missing.
            size_hw: height and width to decode to.
        """
        if image is None:
            return MISSING
        if image.failure is not None:
            return image.failure
        key = InputKey(*size_hw, "stretch")
        decoded = decode(image.data, [key], self._result.limits)
        if isinstance(decoded, Failure):
            return decoded
        if (decoded.height, decoded.width) != (self.height, self.width):
            return Failure("read", "changed", f"it is {decoded.width} x {decoded.height} now")
        return decoded.pixels[key]

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


def _with_masks(values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the boxes of a Parquet row with the masks of `box_masks`, if there are any.

    Raises:
        SourceError: the numbers of boxes and of masks differ.
    """
    boxes, masks = values.get("boxes"), values.get("box_masks")
    if boxes is None or masks is None:
        return boxes
    if len(boxes) != len(masks):
        raise SourceError(
            f"{values['image_id']!r} has {len(boxes)} boxes and {len(masks)} masks of boxes, which "
            "cvbatch never writes; predict again"
        )
    return [{**box, "mask": mask} for box, mask in zip(boxes, masks, strict=True)]


def _input_key(model: dict[str, Any]) -> InputKey:
    height, width = model["input_size"]
    return InputKey(height, width, model["resize"], fraction=model.get("fraction"))


def _placement(model: dict[str, Any], height: int, width: int) -> Placement:
    """Return how a heatmap of a model (from the metadata) maps to an image."""
    key = _input_key(model)
    tiles = model["options"].get("tiles")
    if tiles is not None:
        tile_height, tile_width = tiles.get("size") or model["input_size"]
        tiled = key._replace(tiling=Tiling(tile_height, tile_width, 0, 0))
        if len(tile_placements(height, width, tiled)) > 1:
            key = key._replace(resize="stretch")  # merged heatmaps of tiles cover the image
    return make_placement(height, width, key)
