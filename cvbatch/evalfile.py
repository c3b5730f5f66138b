"""The evaluation job's file: what may stand in it, with every fault told before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from cvbatch.config import Auto, Fraction, Name, PatienceConfig, Section, SinkConfig, Uris
from cvbatch.jobfile import load, parse

EVALUATION_VERSION = 1
Join = Literal["image_id", "row", "name"]


class PredictionsConfig(Section):
    """The sink of a prediction."""

    uri: Name


class TruthConfig(Section):
    """Labelled Parquet, as `cvbatch import` writes it."""

    uri: Uris
    splits: Annotated[list[Name] | None, Field(min_length=1)] = None  # None: all


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


class EvaluationRunConfig(PatienceConfig):
    """Where the work is done; it changes no figure."""

    workers: Annotated[int | None, Field(ge=1), Auto] = None


class EvaluateJob(Section):
    """An evaluation job."""

    predictions: PredictionsConfig
    truth: TruthConfig
    sink: SinkConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    run: EvaluationRunConfig = EvaluationRunConfig()


def load_evaluation(path: str | Path, overrides: Sequence[str] = ()) -> EvaluateJob:
    """Return the evaluation job in a YAML file, with `key=value` overrides and `${NAME}` resolved.

    Raises:
        ConfigError: the file cannot be read, or anything in it is wrong; all faults at once.
    """
    return load(EvaluateJob, path, overrides)


def parse_evaluation(raw: object, overrides: Sequence[str] = (), name: str = "job") -> EvaluateJob:
    """Return the evaluation job in plain values as YAML gives them.

    Raises:
        ConfigError: with one line for each fault.
    """
    return parse(EvaluateJob, raw, overrides, name)


def fingerprint(job: EvaluateJob, identities: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of all that changes the figures.

    identities: of the predictions and of the truth, beyond their names.
    """
    said = {
        "version": EVALUATION_VERSION,
        "splits": job.truth.splits,
        "evaluation": job.evaluation.model_dump(mode="json"),
        "identities": list(identities),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
