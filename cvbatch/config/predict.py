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
    """A file, folder or pattern, or a list of them; s3://, gs://, file:// or a path."""
    format: Literal["auto", "images", "parquet", "webdataset", "zip", "manifest"] = "auto"
    """Format of the files; auto: by their suffixes."""
    image_column: Name = "image"
    """Of Parquet: column with the images; a field of a struct as data.image."""
    members: Names = Field(default_factory=list)
    """Of tars and zips: suffixes of the members to read, such as jpg or seg.png; empty: all
    images."""
    id_column: Name | None = None
    """Of Parquet: column whose values are the keys of the image ids; null: the row number."""
    keep_columns: Names = Field(default_factory=list)
    """Of Parquet: columns that are copied to the result."""
    unreadable: Literal["skip", "fail"] = "skip"
    """Raw photographs, videos and other pictures that are not read: count them, or make them
    failed rows."""
    max_bytes: int = Field(256 << 20, ge=1)
    """Maximum size of one encoded image; a larger one is a failed row (too_large)."""
    max_pixels: int = Field(100_000_000, ge=1)
    """Maximum pixels of one image, checked before it is decoded; a larger one is a failed row."""
    reduced_jpeg: bool = True
    """Decode large JPEGs at 1/2, 1/4 or 1/8, never below the input size."""

    @property
    def options(self) -> SourceOptions:
        """Return the options that choose the images."""
        members = tuple(suffix.lower().lstrip(".") for suffix in self.members)
        return SourceOptions(members, self.id_column, tuple(self.keep_columns), self.unreadable)


class RunConfig(RetryConfig):
    """Resources and limits; only engine and precision change the rows of the result."""

    batch_size: int = Field(32, ge=1, le=4096)
    """Images per call of a model."""
    chunk_images: int = Field(512, ge=1, le=100_000)
    """Maximum images per chunk; each chunk is committed as one file."""
    chunk_bytes: int = Field(256 << 20, ge=1)
    """Maximum encoded bytes per chunk."""
    max_failure_fraction: Fraction = 0.01
    """Fraction of failed images above which the job ends with exit status 3."""
    engine: Literal["auto", "litert", "tensorflow"] = "auto"
    """Runtime of Keras networks; auto: litert on CPUs, tensorflow on GPUs."""
    arrangement: Literal["auto", "fused", "streaming"] = "auto"
    """Division of the work; auto: fused on CPUs, streaming (decode tasks, then actors) on GPUs."""
    actors: Annotated[int | None, Field(ge=1), Auto] = None
    """Number of workers; auto: as many as fit."""
    cpus_per_actor: float = Field(1.0, gt=0)
    """CPUs of one worker."""
    gpus_per_actor: Annotated[float | None, Field(ge=0), Auto] = None
    """GPUs of one worker, may be a fraction; auto: 1 if the cluster has GPUs."""
    actor_memory_bytes: Annotated[int | None, Field(ge=1), Auto] = None
    """Memory of one worker for its models; auto: its share of the node or GPU."""
    image_timeout_s: float = Field(60.0, gt=0)
    """Maximum seconds to decode one image."""
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    """Precision of engine tensorflow; litert computes in float32."""

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
    """Input images."""
    sink: SinkConfig
    """Where the result is written."""
    models: list[ModelConfig] = Field(min_length=1)
    """Networks to run, at most one for each column of the result."""
    run: RunConfig = RunConfig()
    """Resources and limits."""

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
