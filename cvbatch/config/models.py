"""Schema of one model's section: task, network, thresholds, heatmap."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from cvbatch.config.base import (
    Fraction,
    ModuleNames,
    Name,
    Section,
    Sha256,
    Size,
    check_model,
    check_sha256,
)
from cvbatch.config.network_input import Rescale, Resize, ResizeConfig, TilesConfig
from cvbatch.core.tasks import Task
from cvbatch.core.types import InputKey, Interpolation

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
MaskKind = Literal["box", "image", "prototypes"]
DetectorFormat = Literal[
    "auto",
    "boxes_scores",
    "suppressed",
    "tf_detection",
    "retinanet",
    "yolo_v8",
    "yolo_v5",
    "yolo_end_to_end",
    "detr",
    "rt_detr",
]


class HeatmapConfig(Section):
    """Grad-CAM of the top_k classes, at one layer."""

    layer: Name = "auto"
    top_k: int = Field(1, ge=1, le=100)
    score: Literal["probability", "logit"] = "probability"


Activation = Literal["auto", "softmax", "sigmoid", "none"]


class _ModelConfig(Section):
    added_keys: ClassVar[tuple[str, ...]] = (
        "activation",
        "layout",
        "trust",
        "interpolation",
        "antialias",
    )

    model: Name
    weights: Name | None = None
    sha256: Sha256 | None = None  # of the model file, or else of the weights file
    classes: list[str] | Name | None = None
    image_size: Size | None = None
    resize: Resize = "stretch"
    # area: sides that shrink are averaged over area; the others are those of Pillow
    interpolation: Interpolation = "area"
    antialias: bool = True  # false: as tf.image.resize
    preprocessing: Literal["none", "tf", "torch", "caffe"] = "none"
    rescale: Rescale | None = None
    output: Name | None = None  # name of the output to use, if the network has several
    # still to be applied to the scores of the network; none: they are probabilities
    activation: Activation = "auto"
    # of the input and the maps of ONNX and TFLite files, where their shapes do not show it
    layout: Literal["auto", "channels_first", "channels_last"] = "auto"
    build: dict[str, Any] | None = None  # options of a zoo network, such as backbone or width
    trust: ModuleNames = Field(default_factory=list)  # installed modules whose classes may be built

    @property
    def revision(self) -> dict[str, str]:
        """Return what else identifies the rows of this version; empty: as in version 0.1.0."""
        return {}

    @model_validator(mode="after")
    def _check_weights(self) -> _ModelConfig:
        check_model(self.model, self.weights, self.build)
        check_sha256(self.sha256, self.model, self.weights)
        return self

    @model_validator(mode="after")
    def _check_antialias(self) -> _ModelConfig:
        if not self.antialias and self.interpolation in ("area", "nearest"):
            raise ValueError(
                f"antialias: false has no meaning for interpolation: {self.interpolation}; remove "
                "it, or set interpolation: bilinear, bicubic or lanczos"
            )
        return self

    def input_key(self, height: int, width: int) -> InputKey:
        """Return the input of the network, of this size in pixels, without tiles."""
        resize = self.resize
        mode, fraction = (
            (resize.mode, resize.fraction) if isinstance(resize, ResizeConfig) else (resize, None)
        )
        return InputKey(height, width, mode, None, fraction, self.interpolation, self.antialias)


class TiledConfig(_ModelConfig):
    """A model whose images may be cut into tiles."""

    tiles: TilesConfig | None = None

    @model_validator(mode="after")
    def _check_resize_of_tiles(self) -> TiledConfig:
        if self.tiles is not None and self.resize not in ("stretch", "letterbox"):
            raise ValueError(
                "resize: crop or a fraction would cut off the borders of every tile; with tiles "
                "use stretch or letterbox"
            )
        return self


class ClassificationConfig(TiledConfig):
    """Class labels of the whole image."""

    task: Literal["classification"]
    top_k: int = Field(5, ge=1)
    multi_label: bool = False
    score_threshold: Fraction = 0.5  # minimum score of a label, if multi_label
    heatmap: HeatmapConfig | None = None


ADD_BACKGROUND = "add"


class SegmentationConfig(TiledConfig):
    """A class per pixel."""

    added_keys: ClassVar[tuple[str, ...]] = (
        *_ModelConfig.added_keys,
        *("score_threshold", "background"),
    )

    task: Literal["segmentation"]
    mask_size: Literal["original", "model"] = "original"
    score_threshold: Fraction | None = None  # a pixel whose best score is below is background
    background: Name | None = None  # name of the class of such pixels; add: one more, class 0

    @property
    def needs_probabilities(self) -> bool:
        """Return whether the best channel of each cell of the network is not enough."""
        keys = (self.score_threshold, self.background)
        return self.mask_size == "original" or keys != (None, None)

    @property
    def revision(self) -> dict[str, str]:
        """Return what identifies the rows of this version where those of 0.1.0 were different."""
        return {"mask_interpolation": "bilinear"} if self.mask_size == "original" else {}

    @model_validator(mode="after")
    def _check_background(self) -> SegmentationConfig:
        if self.background not in (None, ADD_BACKGROUND) and self.score_threshold is None:
            raise ValueError(
                f"background: {self.background} has no effect without score_threshold, below which "
                "pixels become background; set score_threshold, or remove background"
            )
        return self

    @model_validator(mode="after")
    def _check_mask_size(self) -> SegmentationConfig:
        if self.tiles is not None and self.mask_size == "model":
            raise ValueError(
                "mask_size: model is not possible with tiles, whose masks are merged at the size "
                "of the original; remove mask_size"
            )
        return self


class AnchorsConfig(Section):
    """Anchors of a RetinaNet, one grid for each level of its feature pyramid.

    The first five keys are those of `keras_hub.layers.AnchorGenerator`; their defaults are
    torchvision's too.
    """

    min_level: int = Field(3, ge=0, le=10)  # a cell of a level has sides of 2 ** level pixels
    max_level: int = Field(7, ge=0, le=10)
    num_scales: int = Field(3, ge=1, le=16)
    aspect_ratios: list[Annotated[float, Field(gt=0)]] = Field([0.5, 1.0, 2.0], min_length=1)
    anchor_size: float = Field(4.0, gt=0)  # cells
    clip: bool = False  # clip boxes to the input before suppression, as torchvision does


class DetectionConfig(TiledConfig):
    """Boxes with classes."""

    added_keys: ClassVar[tuple[str, ...]] = (
        *TiledConfig.added_keys,
        *("detector", "anchors", "masks"),
    )

    task: Literal["detection"]
    detector: DetectorFormat = "auto"  # of the network's outputs; auto: by their names and shapes
    anchors: AnchorsConfig | None = None  # of detector retinanet; None: the network's, or defaults
    score_threshold: Fraction = 0.25  # minimum score of a box
    iou_threshold: Fraction = 0.6  # of non-maximum suppression
    max_detections: int = Field(300, ge=1, le=100_000)  # per image
    class_agnostic: bool = False  # suppress boxes across classes
    keep_classes: list[str] | None = None  # None: all
    box_format: BoxFormat = "xyxy"
    # what the masks of the network cover, which are stored for every box; None: not stored
    masks: MaskKind | None = None


class LocalizationConfig(_ModelConfig):
    """Class labels of the image, and one box."""

    task: Literal["localization"]
    top_k: int = Field(5, ge=1)
    heatmap: HeatmapConfig | None = None
    box_format: BoxFormat = "xyxy"


class _VectorConfig(_ModelConfig):
    """Numbers of the whole image: no classes, no probabilities."""

    @model_validator(mode="before")
    @classmethod
    def _check_keys_of_classes(cls, values: Any) -> Any:
        present = values if isinstance(values, dict) else {}
        for key, reason in _NOT_OF_VECTORS.items():
            if present.get(key) not in (None, "auto", "none"):
                raise ValueError(f"{key} for task {present.get('task')}: {reason}; remove {key}")
        return values


_NOT_OF_VECTORS = {
    "classes": "its numbers have no classes (a regression names them with names)",
    "activation": "its numbers are not probabilities, and are stored as the network gives them",
    "tiles": "its numbers are of the whole image, and those of tiles cannot be merged",
}


class EmbeddingConfig(_VectorConfig):
    """A feature vector of the whole image."""

    task: Literal["embedding"]
    # None: the network's output; auto: the input of its last layer with weights, the head
    layer: Name | None = None
    pooling: Literal["average", "max"] | None = None  # of a feature map, over height and width
    normalize: bool = False  # divide by the L2 norm

    @model_validator(mode="after")
    def _check_source(self) -> EmbeddingConfig:
        if self.output is not None and self.layer not in (None, "auto"):
            raise ValueError(
                f"layer {self.layer!r} and output {self.output!r} are both set; keep the one that "
                "gives the embedding"
            )
        return self


class RegressionConfig(_VectorConfig):
    """Numbers that the network predicts, such as an age."""

    task: Literal["regression"]
    names: Annotated[list[Name], Field(min_length=1)] | None = None  # of the numbers, in order

    @field_validator("names")
    @classmethod
    def _check_unique(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("must be different names, one for each number")
        return value


# pydantic selects the class by its literal `task`.
ModelConfig = Annotated[
    ClassificationConfig
    | SegmentationConfig
    | DetectionConfig
    | LocalizationConfig
    | EmbeddingConfig
    | RegressionConfig,
    Field(discriminator="task"),
]
MODEL_SECTIONS: dict[Task, type[Section]] = {
    get_args(section.model_fields["task"].annotation)[0]: section
    for section in get_args(get_args(ModelConfig)[0])
}
