"""A key means the same in every job file: each form of its value is accepted everywhere."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from cvbatch.cli.job_files import json_schema
from cvbatch.cli.job_options import JOB_OPTIONS
from cvbatch.config.base import index_of_class
from cvbatch.config.evaluate import EvaluationConfig, TruthConfig
from cvbatch.config.explain import DreamConfig
from cvbatch.config.train import TrainingConfig
from cvbatch.core.errors import ConfigError
from tests.docs.job_file_reference import WORDS

# Keys that two sections have with two meanings, since version 0.1.0.
OTHER_MEANING = {
    "anchors": "training: number of anchors that are fitted; prediction: the grid of a RetinaNet",
    "splits": "training: what each split is for; evaluation: the splits that are evaluated",
    "weights": "of a model: its weights; section of an explanation: pictures of the kernels",
}


def accepted_types(schema: dict[str, Any], definitions: dict[str, Any]) -> set[str]:
    """Return the JSON types of the values that a schema accepts, but null; {} accepts all."""
    if "$ref" in schema:
        return accepted_types(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return set().union(*(accepted_types(option, definitions) for option in options))
    if schema.get("const") in WORDS:
        return set()  # stands for null
    if "const" in schema or "enum" in schema:
        return {"string"}
    kind = schema.get("type", "any")
    return set() if kind == "null" else {"number"} if kind == "integer" else {kind}


def occurrences() -> Iterator[tuple[str, str, set[str]]]:
    """Yield (key, its section, accepted types) of all keys of all job files."""
    for kind in JOB_OPTIONS:
        schema = json.loads(json_schema(kind))
        for name, section in {**schema["$defs"], "job": schema}.items():
            for key, value in section["properties"].items():
                yield key, f"{kind}: {name}", accepted_types(value, schema["$defs"])


def test_a_form_of_a_value_is_accepted_wherever_the_key_occurs() -> None:
    types: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for key, place, accepted in occurrences():
        if "any" not in accepted:
            types[key][place] = accepted
    assert len(types) > 80
    differing = {}
    for key, places in types.items():
        widest = max(places.values(), key=len)
        if any(not accepted <= widest for accepted in places.values()):
            differing[key] = places
    assert differing.keys() == OTHER_MEANING.keys(), differing


@pytest.mark.parametrize(("value", "index"), [("sky", 1), (1, 1), (None, None)])
def test_an_ignored_class_is_a_name_or_an_index_in_training_and_evaluation(
    value: str | int | None, index: int | None
) -> None:
    for section in (TrainingConfig, EvaluationConfig):
        ignored = section(ignored_class=value).ignored_class
        assert ignored == value
        if ignored is not None:
            assert index_of_class(ignored, ("sea", "sky"), "ignored_class") == index


@pytest.mark.parametrize("value", [-1, 255, "", [1]])
def test_other_values_of_an_ignored_class_are_refused_in_both(value: object) -> None:
    for section in (TrainingConfig, EvaluationConfig):
        with pytest.raises(ValidationError):
            section(ignored_class=value)


@pytest.mark.parametrize("reference", ["sk", 2])
def test_a_class_that_does_not_exist_is_refused_with_the_closest(reference: str | int) -> None:
    with pytest.raises(ConfigError, match=r"key: the data has no class .*; (did you mean|use one)"):
        index_of_class(reference, ("sea", "sky"), "key")


def test_short_forms_are_the_long_ones() -> None:
    assert EvaluationConfig(top_k=3) == EvaluationConfig(top_k=[3])
    assert TruthConfig(uri="a", splits="test") == TruthConfig(uri=["a"], splits=["test"])
    assert DreamConfig(layers=["a", "b"]) == DreamConfig(layers={"a": 1.0, "b": 1.0})
