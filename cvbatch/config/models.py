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
    """Name or path (outer/inner/layer) of the layer; auto: the last feature map."""
    top_k: int = Field(1, ge=1, le=100)
    """Number of classes, the best ones, that get a heatmap."""
    score: Literal["probability", "logit"] = "probability"
    """Score that is differentiated: after the activation, or before it (logit)."""


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
    """Name of the zoo or of keras.applications, or path or URI of a model file."""
    weights: Name | None = None
    """imagenet, demo, a path or URI, or random (untrained); absent for a model file."""
    sha256: Sha256 | None = None
    """Expected hash of the model file, or else of the weights file: 64 hex digits."""
    classes: list[str] | Name | None = None
    """Class names: a list, a file with one name per line, or imagenet; null: the model's own."""
    image_size: Size | None = None
    """[height, width] of the input in pixels, or one number; null: that of the network."""
    resize: Resize = "stretch"
    """How images are brought to the input size; crop or stretch may use a central fraction."""
    interpolation: Interpolation = "area"
    """area: sides that shrink are averaged over area; the others are those of Pillow."""
    antialias: bool = True
    """false: without antialiasing, as `tf.image.resize`."""
    preprocessing: Literal["none", "tf", "torch", "caffe"] = "none"
    """Scaling of keras.applications, for a network without its own."""
    rescale: Rescale | None = None
    """Scaling of the pixels, for a network without its own."""
    output: Name | None = None
    """Name of the output to use, if the network has several."""
    activation: Activation = "auto"
    """What is still to be applied to the scores; none: they are probabilities."""
    layout: Literal["auto", "channels_first", "channels_last"] = "auto"
    """Of the input and the maps of ONNX and TFLite files, where their shapes do not show it."""
    build: dict[str, Any] | None = None
    """Options of a zoo network, such as backbone or width."""
    trust: ModuleNames = Field(default_factory=list)
    """Installed modules whose registered layers may be built from the file."""

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
    """Cut images that are larger than a tile; null: resize them to the input."""

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
    """Class labels of the whole image."""
    top_k: int = Field(5, ge=1)
    """Number of labels, best first."""
    multi_label: bool = False
    """Every class over `score_threshold`, instead of the best `top_k`."""
    score_threshold: Fraction = 0.5
    """Minimum score of a label, if `multi_label`."""
    heatmap: HeatmapConfig | None = None
    """Grad-CAM in the same pass; null: none; {}: with its defaults."""


ADD_BACKGROUND = "add"


class SegmentationConfig(TiledConfig):
    """A class per pixel."""

    added_keys: ClassVar[tuple[str, ...]] = (
        *_ModelConfig.added_keys,
        *("score_threshold", "background"),
    )

    task: Literal["segmentation"]
    """A class per pixel."""
    mask_size: Literal["original", "model"] = "original"
    """Size of the mask: of the upright original, or of the network's input."""
    score_threshold: Fraction | None = None
    """A pixel whose best score is below is background; null: no threshold."""
    background: Name | None = None
    """Name of the class of such pixels; add: one more class, 0."""

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

    min_level: int = Field(3, ge=0, le=10)
    """Finest level of the pyramid; a cell of a level has sides of 2 ** level pixels."""
    max_level: int = Field(7, ge=0, le=10)
    """Coarsest level of the pyramid."""
    num_scales: int = Field(3, ge=1, le=16)
    """Sizes per cell, within an octave."""
    aspect_ratios: list[Annotated[float, Field(gt=0)]] = Field([0.5, 1.0, 2.0], min_length=1)
    """Shapes per cell, height / width."""
    anchor_size: float = Field(4.0, gt=0)
    """Size of the smallest anchor, in cells."""
    clip: bool = False
    """Clip boxes to the input before suppression, as torchvision does."""


class DetectionConfig(TiledConfig):
    """Boxes with classes."""

    added_keys: ClassVar[tuple[str, ...]] = (
        *TiledConfig.added_keys,
        *("detector", "anchors", "masks"),
    )

    task: Literal["detection"]
    """Boxes with classes."""
    detector: DetectorFormat = "auto"
    """Format of the network's outputs; auto: recognised by their names and shapes."""
    anchors: AnchorsConfig | None = None
    """Anchors of `detector: retinanet`; null: the network's, or the defaults."""
    score_threshold: Fraction = 0.25
    """Minimum score of a box."""
    iou_threshold: Fraction = 0.6
    """IoU of non-maximum suppression; 1: none."""
    max_detections: int = Field(300, ge=1, le=100_000)
    """Maximum number of boxes per image."""
    class_agnostic: bool = False
    """Suppress boxes across classes."""
    keep_classes: list[str] | None = None
    """Names of the classes whose boxes are stored; null: all."""
    box_format: BoxFormat = "xyxy"
    """Format of the network's boxes, by Keras name; in pixels of the input, or fractions with
    rel_."""
    masks: MaskKind | None = None
    """What the masks of the network cover, which are stored for every box; null: not stored."""


class LocalizationConfig(_ModelConfig):
    """Class labels of the image, and one box."""

    task: Literal["localization"]
    """Class labels of the whole image, and one box."""
    top_k: int = Field(5, ge=1)
    """Number of labels, best first."""
    heatmap: HeatmapConfig | None = None
    """Grad-CAM in the same pass; null: none; {}: with its defaults."""
    box_format: BoxFormat = "xyxy"
    """Format of the network's box, by Keras name; in pixels of the input, or fractions with
    rel_."""


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
    """A feature vector of the whole image."""
    layer: Name | None = None
    """Name or path of a layer; auto: the input of the head, the last layer with weights; null:
    the network's output."""
    pooling: Literal["average", "max"] | None = None
    """Pooling of a feature map over height and width; null: none, for a vector."""
    normalize: bool = False
    """Divide by the L2 norm."""

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
    """Numbers that the network predicts, such as an age."""
    names: Annotated[list[Name], Field(min_length=1)] | None = None
    """Names of the numbers, in the order of the output; null: 0, 1, ..."""

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
