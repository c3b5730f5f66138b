"""The job file: what may stand in it, what is wrong with it, and what of it changes the rows.

Everything that can be wrong is found here and told at once, before Ray or TensorFlow start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import (
    Field,
    model_validator,
)

from cvbatch.config.base import (
    Auto,
    Fraction,
    Name,
    RetryConfig,
    Section,
    SinkConfig,
    Uris,
)
from cvbatch.config.models import ModelConfig
from cvbatch.core.tasks import TASKS

SCHEMA_VERSION = 1


class SourceConfig(Section):
    """What is read."""

    uri: Uris
    format: Literal["auto", "images", "parquet", "webdataset", "manifest"] = "auto"
    image_column: Name = "image"
    max_bytes: int = Field(256 << 20, ge=1)
    max_pixels: int = Field(100_000_000, ge=1)
    reduced_jpeg: bool = True


class RunConfig(RetryConfig):
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
            for column in TASKS[config.task].columns:
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
