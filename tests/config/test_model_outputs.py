"""`outputs` of an entry of `models`: sections of the job, and errors with the path in the file."""

from __future__ import annotations

from typing import Any

import pytest

from cvbatch.config.explain import parse_explanation
from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ConfigError

FILES = {"source": {"uri": "in"}, "sink": {"uri": "out"}}
NETWORK = {"model": "a.keras", "image_size": [8, 9], "preprocessing": "tf"}
OUTPUTS: list[dict[str, Any]] = [
    {"task": "regression", "output": "age", "names": ["age"]},
    {"task": "classification", "output": "gender", "top_k": 2},
]


def job(*models: Any, overrides: tuple[str, ...] = ()) -> Any:
    return parse_job({**FILES, "models": list(models)}, overrides)


def test_an_entry_with_outputs_is_one_section_for_each() -> None:
    other = {"task": "detection", "model": "b.keras"}
    expanded = job(other, {**NETWORK, "outputs": OUTPUTS})
    assert expanded == job(other, *(NETWORK | output for output in OUTPUTS))
    assert parse_job(expanded.model_dump(mode="json")) == expanded


def test_outputs_are_overridden_by_position() -> None:
    entry = {**NETWORK, "outputs": [dict(output) for output in OUTPUTS]}
    assert job(entry, overrides=("models.0.outputs.1.top_k=7",)).models[1].top_k == 7


@pytest.mark.parametrize(
    ("change", "outputs", "message"),
    [
        ({}, [], r"models\[1\].outputs: must be a list with a task in each item"),
        ({}, {"task": "regression"}, r"models\[1\].outputs: must be a list"),
        ({"top_k": 3}, OUTPUTS, r"models\[1\].top_k: is about one output; move it into an item"),
        ({"task": "embedding"}, OUTPUTS, r"models\[1\].task: is about one output"),
        (
            {},
            [{"image_size": 4, **OUTPUTS[0]}],
            r"models\[1\].outputs\[0\].image_size: the outputs",
        ),
        ({}, [*OUTPUTS, {"layer": "a"}], r"models\[1\].outputs\[2\].task: missing"),
        ({}, [*OUTPUTS, {"task": "poem"}], r"models\[1\].outputs\[2\].task: 'poem' is not a task"),
        ({}, [OUTPUTS[0], {**OUTPUTS[1], "top_k": 0}], r"models\[1\].outputs\[1\].top_k: 0: "),
        ({}, [{**OUTPUTS[0], "nams": "a"}], r"models\[1\].outputs\[0\].nams: unknown key; did you"),
        ({"resize": "fit"}, OUTPUTS, r"job: models\[1\].resize: 'fit': [^\n]*$"),
        ({}, [OUTPUTS[0], OUTPUTS[0]], "both fill the column 'values'"),
    ],
)
def test_errors_name_the_key_in_the_file(change: Any, outputs: Any, message: str) -> None:
    first = {"task": "detection", "model": "b.keras"}
    with pytest.raises(ConfigError, match=message):
        job(first, {**NETWORK, **change, "outputs": outputs})


def test_other_jobs_have_one_output() -> None:
    raw = {**FILES, "model": {**NETWORK, "outputs": OUTPUTS}, "weights": {}}
    with pytest.raises(ConfigError, match=r"model.outputs: only prediction jobs have it"):
        parse_explanation(raw)
    raw["model"] = {**NETWORK, "task": "embedding"}
    with pytest.raises(ConfigError, match="embedding has no class scores to explain"):
        parse_explanation(raw)
