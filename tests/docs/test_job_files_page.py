"""The reference of docs/job-files.md is that of the schemas, and every key has a meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from cvbatch.cli.job_files import JOB_KINDS, json_schema
from cvbatch.config.base import Section
from tests.docs.job_file_reference import PAGE, page_with_reference

TEXT = PAGE.read_text(encoding="utf-8")


def sections(annotation: Any) -> Iterator[type[Section]]:
    """Yield the sections of a type, those of their keys too."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections(field.annotation)
    for part in get_args(annotation):
        yield from sections(part)


def test_the_page_has_the_reference_of_the_schemas() -> None:
    assert page_with_reference(TEXT) == TEXT, "run python -m tests.docs.job_file_reference"


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_every_key_has_a_meaning_in_the_schema_and_on_the_page(kind: str) -> None:
    schema = json.loads(json_schema(kind))
    names = set()
    for section in sections(JOB_KINDS[kind]):
        is_job = section is JOB_KINDS[kind]
        keys = (schema if is_job else schema["$defs"][section.__name__])["properties"]
        assert set(keys) == set(section.model_fields)
        for key, value in keys.items():
            names.add(key)
            meaning = value.get("description", "")
            assert meaning.endswith((".", "...")), f"{section.__name__}.{key} has no docstring"
            assert meaning in TEXT
            assert is_job or key == "task" or f"{key}` |" in TEXT
    assert {"uri", "request_timeout_s"} <= names


@pytest.mark.parametrize(
    ("kind", "key", "word"),
    [("predict", "actors", "auto"), ("explain", "layers", "all"), ("explain", "classes", "top")],
)
def test_a_word_for_null_is_in_the_schema_and_in_the_reference(
    kind: str, key: str, word: str
) -> None:
    definitions = json.loads(json_schema(kind))["$defs"].values()
    values = [section["properties"][key] for section in definitions if key in section["properties"]]
    assert any({"const": word, "type": "string"} in value.get("anyOf", ()) for value in values)
    assert f"| `{key}` | `{word}` or " in TEXT
