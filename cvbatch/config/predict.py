"""Schema and fingerprint of a prediction job.

The job file is validated as a whole before Ray or TensorFlow start, and all errors are reported
together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import (
    Field,
    model_validator,
)

from cvbatch.config.base import (
    Auto,
    Fraction,
    Name,
    Names,
    RetryConfig,
    Section,
    SinkConfig,
    Uris,
)
from cvbatch.config.decoding import DECODING_KEYS, DecodingConfig
from cvbatch.config.models import ModelConfig
from cvbatch.core.model_formats import format_of
from cvbatch.core.tasks import TASKS
from cvbatch.core.types import SourceOptions

SCHEMA_VERSION = 1


class SourceConfig(DecodingConfig):
    """The input images."""

    added_keys: ClassVar[tuple[str, ...]] = (
        *DecodingConfig.added_keys,
        *("members", "id_column", "keep_columns", "unreadable"),
    )

    uri: Uris
    format: Literal["auto", "images", "parquet", "webdataset", "zip", "manifest"] = "auto"
    image_column: Name = "image"  # of Parquet; a field of a struct as data.image
    members: Names = Field(default_factory=list)  # of tars and zips: jpg, seg.png
    id_column: Name | None = None  # of Parquet: its values are the keys of the image ids
    keep_columns: Names = Field(default_factory=list)  # of Parquet, to the result
    unreadable: Literal["skip", "fail"] = "skip"  # what raw photographs become
    max_bytes: int = Field(256 << 20, ge=1)  # of one encoded image
    max_pixels: int = Field(100_000_000, ge=1)  # of one decoded image
    reduced_jpeg: bool = True  # decode large JPEGs at 1/2, 1/4 or 1/8, never below input size

    @property
    def options(self) -> SourceOptions:
        """Return the options that choose the images."""
        members = tuple(suffix.lower().lstrip(".") for suffix in self.members)
        return SourceOptions(members, self.id_column, tuple(self.keep_columns), self.unreadable)


class RunConfig(RetryConfig):
    """Resources and limits; only engine and precision change the rows of the result."""

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
    image_timeout_s: float = Field(60.0, gt=0)  # maximum seconds to decode one image
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"

    @model_validator(mode="after")
    def _check_precision(self) -> RunConfig:
        if self.engine == "litert" and self.precision != "float32":
            raise ValueError(
                f"precision {self.precision} needs engine: tensorflow, because litert computes in "
                "float32; set engine: tensorflow or precision: float32"
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
        """Return whether a model cuts images into tiles."""
        return any(getattr(config, "tiles", None) is not None for config in self.models)

    @property
    def computes_on_cpus(self) -> bool:
        """Return whether every model is of a format whose runtime computes on CPUs."""
        return all(format_of(config.model).has_own_runtime for config in self.models)

    @model_validator(mode="after")
    def _check_own_runtimes(self) -> JobConfig:
        run = self.run
        keys = {
            "engine: tensorflow": run.engine == "tensorflow",
            f"precision: {run.precision}": run.precision != "float32",
            f"gpus_per_actor: {run.gpus_per_actor or 0:g}": bool(run.gpus_per_actor),
        }
        is_set = next((key for key, value in keys.items() if value), None)
        if is_set and self.computes_on_cpus:
            raise ValueError(
                f"run.{is_set} is only for Keras networks: ONNX and TFLite files run as they are, "
                "on CPUs; remove it"
            )
        return self

    @model_validator(mode="after")
    def _check_columns(self) -> JobConfig:
        filled: dict[str, str] = {}
        for config in self.models:
            for column in TASKS[config.task].columns:
                if column in filled:
                    raise ValueError(
                        f"the {config.task} model {config.model!r} and the {filled[column]} would "
                        f"both fill the column {column!r}; run one of them as a job with its own "
                        "sink"
                    )
                filled[column] = f"{config.task} model {config.model!r}"
        return self


def fingerprint(job: JobConfig, model_identities: Sequence[str], engine: str) -> str:
    """Return the SHA-256 (hex) of everything that changes the rows of the result.

    Args:
        model_identities: for each model, in the order of the job, its content: the hash of its
            file and its class names.
        engine: the engine that runs, never "auto".
    """
    models = []
    for config, identity in zip(job.models, model_identities, strict=True):
        values = config.model_dump(mode="json", exclude={"model", "weights", "sha256", "classes"})
        # None is left out, so that a key added by a later version does not change fingerprints.
        options = {key: value for key, value in values.items() if value is not None}
        models.append({**options, **config.revision, "identity": identity})
    payload = {
        "schema": SCHEMA_VERSION,
        "models": models,
        "source": job.source.model_dump(mode="json", include={*DECODING_KEYS, "keep_columns"}),
        "engine": engine,
        "precision": job.run.precision,
    }
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
