"""The section of one model in a prediction job: task, input, thresholds, tiles, heatmap."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from cvbatch.config.base import (
    Fraction,
    Name,
    Section,
    Sha256,
    Size,
    check_sha256,
)
from cvbatch.core.errors import ModelError
from cvbatch.core.tasks import Task
from cvbatch.core.types import ResizeMode, Tiling

BoxFormat = Literal[
    "xyxy",
    "yxyx",
    "xywh",
    "center_xywh",
    "center_yxhw",
    "rel_xyxy",
    "rel_yxyx",
    "rel_xywh",
    "rel_center_xywh",
]
MAX_OVERLAP = 0.75  # of a tile's side: beyond it a pixel is computed more than four times an axis


class HeatmapConfig(Section):
    """Grad-CAM of the best classes, at one layer."""

    layer: Name = "auto"
    top_k: int = Field(1, ge=1, le=100)
    score: Literal["probability", "logit"] = "probability"


class Rescale(Section):
    """Pixels 0..255 become `pixel * scale + offset` before a network that lacks its own."""

    scale: float = 1.0
    offset: float = 0.0


class TilesConfig(Section):
    """An image larger than a tile is cut into overlapping ones, and the results are merged."""

    size: Size | None = None  # that a tile covers of the original; None: the input's
    overlap: float = Field(0.25, ge=0)  # pixels, or below 1 a fraction of the tile's side

    @field_validator("overlap")
    @classmethod
    def _pixels_or_fraction(cls, value: float) -> float:
        if value > MAX_OVERLAP and not value.is_integer():
            raise ValueError(
                f"an overlap is a fraction of the tile's side up to {MAX_OVERLAP}, or a whole "
                "number of pixels"
            )
        return value

    @model_validator(mode="after")
    def _leaves_a_stride(self) -> TilesConfig:
        if self.size is not None and self.overlap > MAX_OVERLAP * min(self.size):
            raise ValueError(_too_much_overlap(self.overlap, self.size))
        return self


def _too_much_overlap(overlap: float, size: tuple[int, int]) -> str:
    most = int(MAX_OVERLAP * min(size))
    return (
        f"tiles of {size[0]} x {size[1]} pixels overlap by {overlap:g} pixels, and {most} is the "
        "most; lower tiles.overlap or raise tiles.size"
    )


class _ModelConfig(Section):
    model: Name
    weights: Name | None = None
    sha256: Sha256 | None = None  # what the .keras file, or else the weights file, must have
    classes: list[str] | Name | None = None
    image_size: Size | None = None
    resize: ResizeMode = "stretch"
    preprocessing: Literal["none", "tf", "torch", "caffe"] = "none"
    rescale: Rescale | None = None
    output: Name | None = None  # which of several outputs the task is about
    build: dict[str, Any] | None = None  # options of a zoo network, such as backbone or width

    @model_validator(mode="after")
    def _weights_said(self) -> _ModelConfig:
        if self.weights is None and not self.model.endswith(".keras"):
            raise ValueError(
                f"weights are missing for model {self.model!r}: say imagenet, a path or URI, or "
                "random if untrained weights are meant"
            )
        if self.model.endswith(".keras"):
            for key in ("weights", "build"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key} for {self.model!r}: a .keras file is a whole network with its "
                        f"weights; leave {key} out"
                    )
        check_sha256(self.sha256, self.model, self.weights)
        return self


class _TiledConfig(_ModelConfig):
    tiles: TilesConfig | None = None

    @model_validator(mode="after")
    def _tiles_leave_no_holes(self) -> _TiledConfig:
        if self.tiles is not None and self.resize == "crop":
            raise ValueError(
                "resize: crop would leave out the borders of every tile; with tiles say stretch or "
                "letterbox"
            )
        return self


class ClassificationConfig(_TiledConfig):
    """Labels for the whole image."""

    task: Literal["classification"]
    top_k: int = Field(5, ge=1)
    multi_label: bool = False
    score_threshold: Fraction = 0.5  # of a multi-label class
    heatmap: HeatmapConfig | None = None


class SegmentationConfig(_TiledConfig):
    """A class for every pixel."""

    task: Literal["segmentation"]
    mask_size: Literal["original", "model"] = "original"

    @model_validator(mode="after")
    def _tiles_have_no_common_mask(self) -> SegmentationConfig:
        if self.tiles is not None and self.mask_size == "model":
            raise ValueError(
                "mask_size: model means nothing for tiles, whose mask is merged at the size of the "
                "original; leave mask_size out"
            )
        return self


class DetectionConfig(_TiledConfig):
    """Boxes with classes."""

    task: Literal["detection"]
    score_threshold: Fraction = 0.25
    iou_threshold: Fraction = 0.6
    max_detections: int = Field(300, ge=1, le=100_000)
    class_agnostic: bool = False
    keep_classes: list[str] | None = None
    box_format: BoxFormat = "xyxy"


class LocalizationConfig(_ModelConfig):
    """Labels for the image and one box."""

    task: Literal["localization"]
    top_k: int = Field(5, ge=1)
    heatmap: HeatmapConfig | None = None
    box_format: BoxFormat = "xyxy"


# The table of sections by task: pydantic chooses the class by its literal `task`.
ModelConfig = Annotated[
    ClassificationConfig | SegmentationConfig | DetectionConfig | LocalizationConfig,
    Field(discriminator="task"),
]
MODEL_SECTIONS: dict[Task, type[Section]] = {
    get_args(section.model_fields["task"].annotation)[0]: section
    for section in get_args(get_args(ModelConfig)[0])
}


def tiling_of(config: ModelConfig, height: int, width: int) -> Tiling | None:
    """Return how the model's images are cut, its input being `height` × `width`; None: not at all.

    Raises:
        ModelError: the tiles have the input's size, and the overlap is too much for it.
    """
    tiles: TilesConfig | None = getattr(config, "tiles", None)
    if tiles is None:
        return None
    overlap, size = tiles.overlap, tiles.size or (height, width)
    if overlap < 1:  # a side of one pixel or two has no room for the fraction, rounded
        overlaps = [min(round(overlap * side), side - 1) for side in size]
    elif overlap <= MAX_OVERLAP * min(size):
        overlaps = [int(overlap)] * 2
    else:
        raise ModelError(f"model {config.model!r}: {_too_much_overlap(overlap, size)}")
    return Tiling(*size, *overlaps)
