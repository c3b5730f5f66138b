"""The evaluation job's file: what may stand in it, with every fault told before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from cvbatch.config.base import Auto, Fraction, Name, RetryConfig, Section, SinkConfig, Uris
from cvbatch.config.loader import load, parse

EVALUATION_VERSION = 1
Join = Literal["image_id", "row", "name"]


class PredictionsConfig(Section):
    """The sink of a prediction."""

    uri: Name


class TruthConfig(Section):
    """Labelled Parquet, as `cvbatch import` writes it."""

    uri: Uris
    splits: Annotated[list[Name] | None, Field(min_length=1)] = None  # None: all


class HeatmapsConfig(Section):
    """How faithful the result's heatmaps are, over a sample of its images."""

    sample: int = Field(200, ge=1, le=100_000)  # images
    steps: int = Field(20, ge=1, le=1000)  # of the insertion and the deletion curve
    box_threshold: float = Field(0.15, gt=0, le=1)  # of a map's maximum
    class_map: dict[Name, Name | None] | None = None  # None: that of evaluation


class EvaluationConfig(Section):
    """What is compared with what, and which figures are formed."""

    join: Annotated[Join | None, Auto] = None  # what of an image tells which truth is its own
    class_map: dict[Name, Name | None] = Field({})  # predicted class: true one; null: not counted
    ignored_class: Name | None = None  # of the true masks: its pixels are not counted
    top_k: Annotated[list[Annotated[int, Field(ge=1)]] | None, Field(min_length=1)] = None
    score_threshold: Fraction = 0.5  # of precision, recall and F1 of boxes and of several labels
    iou_threshold: float = 0.5  # of precision, recall and F1 of boxes
    bootstrap: int = Field(200, ge=0, le=10_000)  # replicates; 0: no intervals
    seed: int = Field(0, ge=0, lt=2**31)
    heatmaps: HeatmapsConfig | None = None  # None: they are not looked at

    @field_validator("iou_threshold")
    @classmethod
    def _one_of_coco(cls, value: float) -> float:
        if not any(abs(value - step / 100) < 1e-9 for step in range(50, 100, 5)):
            raise ValueError("it must be one of COCO's thresholds: 0.50, 0.55, 0.60, ..., 0.95")
        return value

    @field_validator("top_k")
    @classmethod
    def _in_order(cls, value: list[int] | None) -> list[int] | None:
        return None if value is None else sorted(set(value))


class EvaluationRunConfig(RetryConfig):
    """Where the work is done; it changes no figure."""

    workers: Annotated[int | None, Field(ge=1), Auto] = None


class EvaluateJob(Section):
    """An evaluation job."""

    predictions: PredictionsConfig
    truth: TruthConfig | None = None
    sink: SinkConfig
    evaluation: EvaluationConfig = Field(EvaluationConfig(), validate_default=True)
    run: EvaluationRunConfig = EvaluationRunConfig()

    @field_validator("evaluation")
    @classmethod
    def _has_something_to_do(
        cls, value: EvaluationConfig, info: ValidationInfo
    ) -> EvaluationConfig:
        if value.heatmaps is None and info.data.get("truth", value) is None:
            raise ValueError(
                "there is no truth to compare with; name truth.uri, or ask for heatmaps, which can "
                "be looked at without"
            )
        return value


# As `load_job` and `parse_job` of cvbatch.config.loader, which say what is refused.
load_evaluation = partial(load, EvaluateJob)
parse_evaluation = partial(parse, EvaluateJob)


def fingerprint(job: EvaluateJob, identities: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of all that changes the figures.

    identities: of the predictions and, where there is one, of the truth, beyond their names.
    """
    unsaid = {"heatmaps"} if job.evaluation.heatmaps is None else None  # as before there were any
    said = {
        "version": EVALUATION_VERSION,
        "splits": job.truth.splits if job.truth else None,
        "evaluation": job.evaluation.model_dump(mode="json", exclude=unsaid),
        "identities": list(identities),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
