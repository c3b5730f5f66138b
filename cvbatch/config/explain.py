"""Schema and fingerprint of an explanation job: activations, Grad-CAM, DeepDream, filters."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cvbatch.config.base import Auto, Fraction, Name, NullAs, RetryConfig, Section, SinkConfig
from cvbatch.config.decoding import DECODING_KEYS
from cvbatch.config.loader import parse
from cvbatch.config.models import ModelConfig
from cvbatch.config.predict import SourceConfig
from cvbatch.core.model_formats import not_keras_error
from cvbatch.core.tasks import TASKS

EXPLANATION_VERSION = 1
IMAGE_SECTIONS = ("activations", "gradcam", "dream")  # these sections need a source
MODEL_ONLY_SECTIONS = ("patterns", "weights")
All = NullAs("all")
# An empty section (`patterns:`) is requested, with its defaults.
EmptyMeansDefaults = BeforeValidator(lambda value: {} if value is None else value)
Layers = Annotated[list[Name] | None, Field(min_length=1)]
_WithWeights = BeforeValidator(
    lambda value: dict.fromkeys(value, 1.0) if isinstance(value, list) else value,
    dict[Name, float] | list[Name],
)
_PREDICTION_OPTIONS = ("tiles", "heatmap")  # model options that only prediction jobs accept


class ActivationsConfig(Section):
    """Activations of layers for an image: every channel, as a grid."""

    layers: Annotated[Layers, All] = None
    """Names of layers; all: every convolution and pooling."""
    max_channels: int | None = Field(None, ge=1)
    """First channels of each layer; null: all."""


class PatternsConfig(Section):
    """Images that maximise each filter of a layer, by gradient ascent from noise."""

    layers: Annotated[Layers, Auto] = None
    """Names of layers; auto: the last convolution of each feature map size."""
    filters: int = Field(64, ge=1, le=65_536)
    """Number of filters of a layer, the first ones."""
    steps: int = Field(30, ge=1, le=100_000)
    """Steps of gradient ascent."""
    step: float = Field(10.0, gt=0)
    """Length of one step, for pixels in 0..1."""
    crop: int = Field(25, ge=0)
    """Pixels cut off each side; at most a quarter of the picture."""
    batch_size: int = Field(16, ge=1, le=1024)
    """Filters computed together."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the noise."""


class WeightsConfig(Section):
    """Images of the convolution kernels."""

    layers: Annotated[Layers, All] = None
    """Names of layers; all: every convolution."""


class DreamConfig(Section):
    """DeepDream: gradient ascent on layer activations, over several octaves."""

    layers: Annotated[dict[Name, float], Field(min_length=1), _WithWeights]
    """Layer: weight of its activations; of a list of layers, all weights are 1."""
    octaves: int = Field(3, ge=1, le=20)
    """Number of image sizes."""
    octave_scale: float = Field(1.4, gt=1, le=4)
    """Factor between the sizes of neighbouring octaves."""
    steps: int = Field(30, ge=1, le=100_000)
    """Steps of gradient ascent per octave."""
    step: float = Field(10.0, gt=0)
    """Length of one step, for pixels in 0..1."""
    jitter: int = Field(8, ge=0)
    """Maximum random shift of the image before each step, in pixels."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the shifts."""


class GradcamConfig(Section):
    """Grad-CAM: which regions of an image the score of a class depends on."""

    layer: Name = "auto"
    """Name or path of the layer; auto: the last feature map."""
    classes: Annotated[
        list[Name] | None,
        Field(min_length=1),
        NullAs("top"),
    ] = None
    """Names of classes; top: the `top_k` best classes of each image."""
    top_k: int = Field(1, ge=1, le=100)
    """Number of classes of each image."""
    score: Literal["probability", "logit"] = "probability"
    """Score of a classifier that is differentiated: after the activation, or before it (logit)."""
    box: tuple[Fraction, Fraction, Fraction, Fraction] | None = None
    """[x_min, y_min, x_max, y_max] as fractions of the upright image: the region whose score is
    explained (segmentation), or the box (detection); null: the predicted region, the best
    box."""

    @field_validator("box")
    @classmethod
    def _check_box(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and not (value[0] < value[2] and value[1] < value[3]):
            raise ValueError(
                "must be [x_min, y_min, x_max, y_max] in fractions of the image, each minimum "
                "below its maximum"
            )
        return value


class ExplainRunConfig(RetryConfig):
    """Resources and limits; they do not change the results."""

    workers: Annotated[int | None, Field(ge=1), Auto] = None
    """Parallel tasks; auto: one per CPU, or one process for a few images."""
    batch_size: int = Field(8, ge=1, le=64)
    """Images per call of the model."""
    chunk_images: int = Field(8, ge=1, le=1024)
    """Images per chunk, which is committed as one file."""
    max_failure_fraction: Fraction = 0.01
    """Fraction of failed images above which the job ends with exit status 3."""
    image_timeout_s: float = Field(60.0, gt=0)
    """Maximum seconds to decode one image."""


class ExplainJob(Section):
    """An explanation job; only the sections that are present are computed."""

    model: ModelConfig
    """Network to explain, as one of a prediction's models."""
    source: SourceConfig | None = None
    """Images; not needed for patterns and weights."""
    sink: SinkConfig
    """Where pictures and arrays are written."""
    activations: Annotated[ActivationsConfig | None, EmptyMeansDefaults] = None
    """Activations of layers; absent: not computed; empty: defaults. Likewise the next four."""
    patterns: Annotated[PatternsConfig | None, EmptyMeansDefaults] = None
    """Filter patterns."""
    weights: Annotated[WeightsConfig | None, EmptyMeansDefaults] = None
    """Convolution kernels."""
    dream: Annotated[DreamConfig | None, EmptyMeansDefaults] = None
    """DeepDream."""
    gradcam: Annotated[GradcamConfig | None, EmptyMeansDefaults] = None
    """Grad-CAM overlays."""
    run: ExplainRunConfig = ExplainRunConfig()
    """Resources and limits."""

    @property
    def needs_images(self) -> bool:
        """Return whether a section is present that needs images."""
        return any(getattr(self, name) is not None for name in IMAGE_SECTIONS)

    @model_validator(mode="after")
    def _check(self) -> ExplainJob:
        task = self.model.task
        errors = [
            f"model.{option}: only prediction jobs have it; remove it (the section gradcam sets "
            "the heatmaps of an explanation job)"
            for option in _PREDICTION_OPTIONS
            if getattr(self.model, option, None) is not None
        ]
        if message := not_keras_error(self.model.model):
            errors.append(message)
        sections = (*IMAGE_SECTIONS, *MODEL_ONLY_SECTIONS)
        present = [name for name in sections if getattr(self, name) is not None]
        if not present:
            errors.append(
                f"no section is present; add at least one section of {', '.join(sections)}"
            )
        if self.needs_images and self.source is None:
            errors.append(f"source: missing; the section {present[0]} needs images; set source.uri")
        if not TASKS[task].label_column:
            errors.append(
                f"model.task: {task} has no class scores to explain; for activations, patterns, "
                "weights and dream set task: classification, which gives the same for any network"
            )
        if self.gradcam and self.gradcam.box and TASKS[task].is_whole_image:
            errors.append(f"gradcam.box: a {task} model scores the whole image; remove it")
        if errors:
            raise ValueError("\n  ".join(errors))
        return self


parse_explanation = partial(parse, ExplainJob)


def fingerprint(job: ExplainJob, model_identity: str) -> str:
    """Return the SHA-256 (hex) of everything that changes the results.

    Args:
        model_identity: the content of the model: the hash of its file and its class names.
    """
    model = job.model.model_dump(mode="json", exclude={"model", "weights", "sha256", "classes"})
    sections: dict[str, Any] = {
        name: section.model_dump(mode="json") if section else None
        for name in (*IMAGE_SECTIONS, *MODEL_ONLY_SECTIONS)
        for section in [getattr(job, name)]
    }
    payload = {
        "version": EXPLANATION_VERSION,
        "model": {key: value for key, value in model.items() if value is not None},
        "identity": model_identity,
        "source": job.source and job.source.model_dump(mode="json", include=DECODING_KEYS),
        "sections": sections,
    }
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
