"""The job file: what may stand in it, what is wrong with it, and what of it changes the rows.

Everything that can be wrong is found here and told at once, before Ray or TensorFlow start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from cvbatch.core.errors import ModelError
from cvbatch.core.types import ResizeMode, Tiling

SCHEMA_VERSION = 1
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
Name = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$", to_lower=True)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=65_536)]
NAMED_WEIGHTS = ("imagenet", "random", "demo")  # that are no file
MAX_OVERLAP = 0.75  # of a tile's side: beyond it a pixel is computed more than four times an axis
# `auto` in the file is None here: one branch, so that faults name the key and nothing else.
Auto = BeforeValidator(lambda value: None if value == "auto" else value)
Uris = Annotated[
    list[Name],
    Field(min_length=1),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
Size = Annotated[  # height, width; one number is both
    tuple[Side, Side],
    BeforeValidator(lambda value: (value, value) if isinstance(value, int) else value),
]


class Section(BaseModel):
    """A part of a job file: no key but its own, no value that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(Section):
    """What is read."""

    uri: Uris
    format: Literal["auto", "images", "parquet", "webdataset", "manifest"] = "auto"
    image_column: Name = "image"
    max_bytes: int = Field(256 << 20, ge=1)
    max_pixels: int = Field(100_000_000, ge=1)
    reduced_jpeg: bool = True


class SinkConfig(Section):
    """Where results go."""

    uri: Name


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


def check_pin(sha256: str | None, model: str, weights: str | None) -> None:
    """Raise ValueError where a model is pinned that comes from no file of the user's."""
    if sha256 is not None and not model.endswith(".keras") and weights in NAMED_WEIGHTS:
        raise ValueError(
            f"sha256 for model {model!r} with weights {weights}: it pins a file, the .keras file "
            "or else the one of the weights; leave sha256 out"
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
        check_pin(self.sha256, self.model, self.weights)
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


ModelConfig = Annotated[
    ClassificationConfig | SegmentationConfig | DetectionConfig | LocalizationConfig,
    Field(discriminator="task"),
]


def tiling_of(config: ModelConfig, height: int, width: int) -> Tiling | None:
    """Return how the model's images are cut, its input being `height` × `width`; None: not at all.

    Raises:
        ModelError: the tiles have the input's size, and the overlap is too much for it.
    """
    if isinstance(config, LocalizationConfig) or config.tiles is None:
        return None
    overlap, size = config.tiles.overlap, config.tiles.size or (height, width)
    if overlap < 1:  # a side of one pixel or two has no room for the fraction, rounded
        overlaps = [min(round(overlap * side), side - 1) for side in size]
    elif overlap <= MAX_OVERLAP * min(size):
        overlaps = [int(overlap)] * 2
    else:
        raise ModelError(f"model {config.model!r}: {_too_much_overlap(overlap, size)}")
    return Tiling(*size, *overlaps)


# The result's columns a task fills: two models of one job may not fill the same one.
TASK_COLUMNS: dict[str, tuple[str, ...]] = {
    "classification": ("labels",),
    "segmentation": ("mask", "mask_areas"),
    "detection": ("boxes",),
    "localization": ("labels", "boxes"),
}


class PatienceConfig(Section):
    """How long a store is waited for; Google's client keeps limits of its own."""

    request_timeout_s: float = Field(60.0, ge=1, le=3600)  # without a byte: the request is lost
    retry_budget_s: float = Field(60.0, ge=0)  # lost over one request before the job stops


class RunConfig(PatienceConfig):
    """How the work is done; of these only engine and precision change the rows."""

    batch_size: int = Field(32, ge=1, le=4096)
    chunk_images: int = Field(512, ge=1, le=100_000)
    chunk_bytes: int = Field(256 << 20, ge=1)
    max_failure_fraction: Fraction = 0.01
    engine: Literal["auto", "litert", "tensorflow"] = "auto"
    arrangement: Literal["auto", "fused", "streaming"] = "auto"
    actors: Annotated[int | None, Field(ge=1), Auto] = None
    cpus_per_actor: float = Field(1.0, gt=0)
    gpus_per_actor: Annotated[float | None, Field(ge=0), Auto] = None
    actor_memory_bytes: Annotated[int | None, Field(ge=1), Auto] = None
    image_timeout_s: float = Field(60.0, gt=0)  # that decoding one image may take
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"

    @model_validator(mode="after")
    def _precision_needs_tensorflow(self) -> RunConfig:
        if self.engine == "litert" and self.precision != "float32":
            raise ValueError(
                f"precision {self.precision} needs engine: tensorflow; litert computes in float32"
            )
        return self


class JobConfig(Section):
    """A prediction job."""

    source: SourceConfig
    sink: SinkConfig
    models: list[ModelConfig] = Field(min_length=1)
    run: RunConfig = RunConfig()

    @property
    def has_tiles(self) -> bool:
        """Say whether a model cuts the images into tiles."""
        return any(getattr(config, "tiles", None) is not None for config in self.models)

    @model_validator(mode="after")
    def _columns_differ(self) -> JobConfig:
        filled: dict[str, str] = {}
        for config in self.models:
            for column in TASK_COLUMNS[config.task]:
                if column in filled:
                    raise ValueError(
                        f"the {config.task} model {config.model!r} and the {filled[column]} would "
                        f"both fill the column {column!r}: run one of them as a job with its own "
                        "sink"
                    )
                filled[column] = f"{config.task} model {config.model!r}"
        return self


def fingerprint(job: JobConfig, model_identities: Sequence[str], engine: str) -> str:
    """Return the SHA-256 (hex) of all that changes the rows.

    model_identities: for each model what it is beyond its name (the hash of its file, its
    class names), in the job's order. engine: the one that runs, never "auto".
    """
    models = []
    for config, identity in zip(job.models, model_identities, strict=True):
        said = config.model_dump(mode="json", exclude={"model", "weights", "sha256", "classes"})
        # what is not said is left out: a key that a later version adds changes no fingerprint
        options = {key: value for key, value in said.items() if value is not None}
        models.append({**options, "identity": identity})
    rows = {
        "schema": SCHEMA_VERSION,
        "models": models,
        "source": job.source.model_dump(
            mode="json", include={"max_bytes", "max_pixels", "reduced_jpeg"}
        ),
        "engine": engine,
        "precision": job.run.precision,
    }
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
