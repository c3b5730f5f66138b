"""The explanation job's file: what of a network is shown, with every fault told at the door."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from cvbatch.config.base import Auto, Fraction, Name, RetryConfig, Section, SinkConfig
from cvbatch.config.loader import load, parse
from cvbatch.config.models import ModelConfig
from cvbatch.config.predict import SourceConfig
from cvbatch.core.errors import ConfigError
from cvbatch.core.tasks import TASKS

EXPLANATION_VERSION = 1
IMAGE_SECTIONS = ("activations", "gradcam", "dream")  # the sections that need a source
MODEL_ONLY_SECTIONS = ("patterns", "weights")
# `all` in the file is None here, as is `auto`: one branch, so that faults name the key.
All = BeforeValidator(lambda value: None if value == "all" else value)
# A section with nothing below its name is there, with its defaults.
Given = BeforeValidator(lambda value: {} if value is None else value)
Layers = Annotated[list[Name] | None, Field(min_length=1)]
_FOREIGN_OPTIONS = ("tiles", "heatmap")  # of a prediction's model


class ActivationsConfig(Section):
    """What layers make of an image: every channel, as a grid."""

    layers: Annotated[Layers, All] = None  # None: every convolution and pooling
    max_channels: int | None = Field(None, ge=1)  # of a layer; None: all


class PatternsConfig(Section):
    """What each filter of a layer answers to most, by gradient ascent from noise."""

    layers: Annotated[Layers, Auto] = None  # None: one of each size of map, the last convolution
    filters: int = Field(64, ge=1, le=65_536)  # of a layer, the first ones
    steps: int = Field(30, ge=1, le=100_000)
    step: float = Field(10.0, gt=0)  # the length of one, where pixels go from 0 to 1
    crop: int = Field(25, ge=0)  # pixels a side, and never more than a quarter of the picture
    batch_size: int = Field(16, ge=1, le=1024)
    seed: int = Field(0, ge=0, lt=2**31)


class WeightsConfig(Section):
    """The kernels themselves."""

    layers: Annotated[Layers, All] = None  # None: every convolution


class DreamConfig(Section):
    """DeepDream: what layers see in an image, made more of."""

    layers: dict[Name, float] = Field(min_length=1)  # with the weight of each
    octaves: int = Field(3, ge=1, le=20)
    octave_scale: float = Field(1.4, gt=1, le=4)
    steps: int = Field(30, ge=1, le=100_000)  # of each octave
    step: float = Field(10.0, gt=0)  # the length of one, where pixels go from 0 to 1
    jitter: int = Field(8, ge=0)  # pixels by which the image is shifted round before a step
    seed: int = Field(0, ge=0, lt=2**31)


class GradcamConfig(Section):
    """Where in an image a class has its score from."""

    layer: Name = "auto"
    classes: Annotated[
        list[Name] | None,
        Field(min_length=1),
        BeforeValidator(lambda value: None if value == "top" else value),
    ] = None  # None: the best top_k of each image
    top_k: int = Field(1, ge=1, le=100)
    score: Literal["probability", "logit"] = "probability"  # of a classifier
    # x_min, y_min, x_max, y_max as fractions of the upright image: the region of a segmenter's
    # score, the place of a detector's box. None: the class's predicted region; its best box.
    box: tuple[Fraction, Fraction, Fraction, Fraction] | None = None

    @field_validator("box")
    @classmethod
    def _has_an_area(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and not (value[0] < value[2] and value[1] < value[3]):
            raise ValueError(
                "a box is [x_min, y_min, x_max, y_max] in fractions of the image, each minimum "
                "below its maximum"
            )
        return value


class ExplainRunConfig(RetryConfig):
    """How the work is done; it changes no picture."""

    workers: Annotated[int | None, Field(ge=1), Auto] = None
    batch_size: int = Field(8, ge=1, le=64)
    chunk_images: int = Field(8, ge=1, le=1024)
    max_failure_fraction: Fraction = 0.01
    image_timeout_s: float = Field(60.0, gt=0)  # that decoding one image may take


class ExplainJob(Section):
    """An explanation job: sections that are absent are not computed."""

    model: ModelConfig
    source: SourceConfig | None = None
    sink: SinkConfig
    activations: Annotated[ActivationsConfig | None, Given] = None
    patterns: Annotated[PatternsConfig | None, Given] = None
    weights: Annotated[WeightsConfig | None, Given] = None
    dream: Annotated[DreamConfig | None, Given] = None
    gradcam: Annotated[GradcamConfig | None, Given] = None
    run: ExplainRunConfig = ExplainRunConfig()

    @property
    def needs_images(self) -> bool:
        """Say whether anything is asked that is about images."""
        return any(getattr(self, name) is not None for name in IMAGE_SECTIONS)


def load_explanation(path: str | Path, overrides: Sequence[str] = ()) -> ExplainJob:
    """Return the explanation job in a YAML file, `key=value` overrides and `${NAME}` resolved.

    Raises:
        ConfigError: the file cannot be read, or anything in it is wrong; all faults at once.
    """
    return _checked(load(ExplainJob, path, overrides), str(path))


def parse_explanation(raw: object, overrides: Sequence[str] = (), name: str = "job") -> ExplainJob:
    """Return the explanation job in plain values as YAML gives them.

    Raises:
        ConfigError: with one line for each fault.
    """
    return _checked(parse(ExplainJob, raw, overrides, name), name)


def _checked(job: ExplainJob, name: str) -> ExplainJob:
    faults = [
        f"model.{option}: it belongs to a prediction, here the section gradcam says what is shown; "
        "leave it out"
        for option in _FOREIGN_OPTIONS
        if getattr(job.model, option, None) is not None
    ]
    sections = (*IMAGE_SECTIONS, *MODEL_ONLY_SECTIONS)
    if all(getattr(job, section) is None for section in sections):
        faults.append(f"nothing is asked for; add at least one section of {', '.join(sections)}")
    if job.needs_images and job.source is None:
        asked = next(section for section in IMAGE_SECTIONS if getattr(job, section) is not None)
        faults.append(f"source: missing; {asked} is about images, say which")
    if job.gradcam and job.gradcam.box and TASKS[job.model.task].is_whole_image:
        faults.append(f"gradcam.box: a {job.model.task} model scores the whole image; leave it out")
    if faults:
        raise ConfigError(f"{name}: " + "\n  ".join(faults))
    return job


def fingerprint(job: ExplainJob, model_identity: str) -> str:
    """Return the SHA-256 (hex) of all that changes what is left in the sink.

    model_identity: what the model is beyond its name.
    """
    model = job.model.model_dump(mode="json", exclude={"model", "weights", "sha256", "classes"})
    sections: dict[str, Any] = {
        name: section.model_dump(mode="json") if section else None
        for name in (*IMAGE_SECTIONS, *MODEL_ONLY_SECTIONS)
        for section in [getattr(job, name)]
    }
    source = job.source and job.source.model_dump(
        mode="json", include={"max_bytes", "max_pixels", "reduced_jpeg"}
    )
    said = {
        "version": EXPLANATION_VERSION,
        "model": {key: value for key, value in model.items() if value is not None},
        "identity": model_identity,
        "source": source,
        "sections": sections,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
