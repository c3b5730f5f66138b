"""Schema and fingerprint of an evaluation job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from cvbatch.config.base import (
    Auto,
    ClassRef,
    Fraction,
    Name,
    Names,
    RetryConfig,
    Section,
    SinkConfig,
    Uris,
)
from cvbatch.config.loader import parse

EVALUATION_VERSION = 1
_Rank = Annotated[int, Field(ge=1)]
_AsList = BeforeValidator(
    lambda value: [value] if isinstance(value, int) else value, int | list[int] | None
)
Join = Literal["image_id", "row", "name"]


class PredictionsConfig(Section):
    """The predictions to evaluate."""

    uri: Name
    """Sink of `cvbatch predict`."""


class TruthConfig(Section):
    """Ground truth: labelled Parquet, as written by `cvbatch import`."""

    uri: Uris
    """Labelled Parquet, as written by `cvbatch import`: a folder, a file, or a list of them."""
    splits: Annotated[Names | None, Field(min_length=1)] = None
    """Names of the splits to evaluate; null: all."""


class HeatmapsConfig(Section):
    """Faithfulness metrics of the stored heatmaps, over a sample of the images."""

    sample: int = Field(200, ge=1, le=100_000)
    """Number of images."""
    steps: int = Field(20, ge=1, le=1000)
    """Points of the insertion and of the deletion curve."""
    box_threshold: float = Field(0.15, gt=0, le=1)
    """Fraction of the maximum of a heatmap, above which pixels belong to its box."""
    class_map: dict[Name, Name | None] | None = None
    """As `evaluation.class_map`, for the classes of the heatmaps; null: that one."""


class EvaluationConfig(Section):
    """How predictions are matched with ground truth, and which metrics are computed."""

    join: Annotated[Join | None, Auto] = None
    """Key that matches an image with its ground truth; auto: chosen from the data."""
    class_map: dict[Name, Name | None] = Field({})
    """Predicted class: true class; null: its predictions are not counted."""
    ignored_class: ClassRef | None = None
    """Class of the true masks whose pixels are not counted: its name or index."""
    top_k: Annotated[list[_Rank] | None, Field(min_length=1), _AsList] = None
    """Number k of top-k accuracy, or a list; null: 1, and 5 if the result has so many labels."""
    score_threshold: Fraction = 0.5
    """Minimum score for precision, recall and F1 of boxes and of multi-label."""
    iou_threshold: float = 0.5
    """Minimum IoU for precision, recall and F1 of boxes: 0.50, 0.55, ..., 0.95."""
    bootstrap: int = Field(200, ge=0, le=10_000)
    """Replicates for the confidence intervals; 0: none."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the replicates and of the sample of heatmaps."""
    heatmaps: HeatmapsConfig | None = None
    """Faithfulness of the stored heatmaps; null: not evaluated."""

    @field_validator("iou_threshold")
    @classmethod
    def _check_coco_threshold(cls, value: float) -> float:
        if not any(abs(value - step / 100) < 1e-9 for step in range(50, 100, 5)):
            raise ValueError("must be one of COCO's thresholds: 0.50, 0.55, 0.60, ..., 0.95")
        return value

    @field_validator("top_k")
    @classmethod
    def _sort_unique(cls, value: list[int] | None) -> list[int] | None:
        return None if value is None else sorted(set(value))


class EvaluationRunConfig(RetryConfig):
    """Resources of the job; they do not change the metrics."""

    workers: Annotated[int | None, Field(ge=1), Auto] = None
    """Parallel tasks; auto: one per CPU, or one process for few files."""


class EvaluateJob(Section):
    """An evaluation job."""

    predictions: PredictionsConfig
    """Predictions to evaluate."""
    truth: TruthConfig | None = None
    """Ground truth; null: only heatmaps are evaluated."""
    sink: SinkConfig
    """Where metrics and plots are written."""
    evaluation: EvaluationConfig = Field(EvaluationConfig(), validate_default=True)
    """Matching, thresholds and metrics."""
    run: EvaluationRunConfig = EvaluationRunConfig()
    """Resources and limits."""

    @field_validator("evaluation")
    @classmethod
    def _check_ground_truth(cls, value: EvaluationConfig, info: ValidationInfo) -> EvaluationConfig:
        if value.heatmaps is None and info.data.get("truth", value) is None:
            raise ValueError(
                "there is no ground truth; set truth.uri (LABELS on the command line), or "
                "evaluation.heatmaps, which needs none"
            )
        return value


parse_evaluation = partial(parse, EvaluateJob)


def fingerprint(job: EvaluateJob, identities: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of everything that changes the metrics.

    Args:
        identities: content hashes of the predictions and, if there is one, of the ground truth.
    """
    # Without heatmaps the key is left out: results of versions without it keep their fingerprint.
    excluded = {"heatmaps"} if job.evaluation.heatmaps is None else None
    payload = {
        "version": EVALUATION_VERSION,
        "splits": job.truth.splits if job.truth else None,
        "evaluation": job.evaluation.model_dump(mode="json", exclude=excluded),
        "identities": list(identities),
    }
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
