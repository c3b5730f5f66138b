"""Keys of decoding: what they accept, and the fingerprints of job files without them."""

from __future__ import annotations

from typing import Any

import pytest

from cvbatch.config import explain, predict, train
from cvbatch.config.explain import parse_explanation
from cvbatch.config.loader import parse_job
from cvbatch.config.train import parse_training
from cvbatch.core.errors import ConfigError
from cvbatch.images.options import Limits

MODEL = {"model": "a.keras"}
TASK_MODEL = {"task": "classification", **MODEL}


def predict_job(**source: Any) -> Any:
    return parse_job(
        {"source": {"uri": "in", **source}, "sink": {"uri": "out"}, "models": [TASK_MODEL]}
    )


def train_job(**source: Any) -> Any:
    return parse_training(
        {
            "source": {"uri": "in", **source},
            "sink": {"uri": "out"},
            "model": TASK_MODEL,
            "training": {"recipe": "scratch"},
        }
    )


def explain_job(**source: Any) -> Any:
    return parse_explanation(
        {
            "model": TASK_MODEL,
            "source": {"uri": "in", **source},
            "sink": {"uri": "out"},
            "gradcam": {},
        }
    )


# Computed by the version before these keys
OLD_FINGERPRINTS = {
    "predict": "952a3b3535b983477df515d079c68295095747058cdbdc9d8a5c077426dd5510",
    "train": "c0679692bae2eb253783a093b89a245254007c39f813a585e53807aff9855f05",
    "explain": "655f488f8856fbd1c7a0a07d657105890059c5f684618ce187181839da903f0d",
}
JOBS: dict[str, Any] = {
    "predict": (predict_job, lambda job: predict.fingerprint(job, ["x"], "litert")),
    "train": (train_job, lambda job: train.fingerprint(job, ["x"])),
    "explain": (explain_job, lambda job: explain.fingerprint(job, "x")),
}
OPTIONS: list[dict[str, Any]] = [
    {"bit_depth": "percentile"},
    {"bit_depth": {"min": 0, "max": 4095}},
    {"bit_depth": {"min": 0, "max": 4096}},
    {"color": "ignore"},
]


@pytest.mark.parametrize("name", JOBS)
def test_defaults_keep_the_fingerprints_of_earlier_versions(name: str) -> None:
    make, fingerprint = JOBS[name]
    assert fingerprint(make()) == OLD_FINGERPRINTS[name]
    assert fingerprint(make(bit_depth="high_byte", color="convert")) == OLD_FINGERPRINTS[name]


@pytest.mark.parametrize("name", JOBS)
def test_every_other_value_has_its_own_fingerprint(name: str) -> None:
    make, fingerprint = JOBS[name]
    prints = {fingerprint(make(**options)) for options in OPTIONS}
    assert len(prints | {OLD_FINGERPRINTS[name]}) == len(OPTIONS) + 1


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize(
    "value",
    ["low_byte", 8, None, [0, 255], {}, {"min": 1}, {"min": 5, "max": 5}, {"min": 2, "max": 1},
     {"min": 0, "max": 1, "step": 2}, {"min": "a", "max": 1}, {"min": 0, "max": float("inf")},
     {"min": float("nan"), "max": 1}],
)  # fmt: skip
def test_other_bit_depths_are_refused_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        JOBS[name][0](bit_depth=value)
    message = str(caught.value)
    assert "source.bit_depth: " in message
    assert "must be one of high_byte, percentile, or {min: X, max: Y}" in message
    assert "\n" not in message


def test_other_colours_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"source.color: 'keep'.*'convert' or 'ignore'"):
        predict_job(color="keep")


@pytest.mark.parametrize("name", JOBS)
def test_the_decoder_gets_what_the_job_file_says(name: str) -> None:
    options = {"max_bytes": 10, "max_pixels": 20, "color": "ignore"}
    job = JOBS[name][0](**options, bit_depth={"min": -3, "max": 7.5})
    stored = job.model_dump(mode="json")["source"]  # as in job.json of a result
    for source in (job.source.model_dump(), stored):
        limits = Limits.from_source(source)
        assert limits == Limits(10, 20, color="ignore", bit_depth=(-3.0, 7.5))


def test_a_job_file_of_an_earlier_version_has_the_defaults() -> None:
    assert Limits.from_source({"max_bytes": 7}) == Limits(max_bytes=7)
    assert Limits.from_source({}) == Limits()
