"""A reduced schema accepts the values it was reduced for, and no other fields."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.cluster.shrink import of_definition, shrink

COMPLETE = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": ["string", "null"], "description": "prose"},
        "size": {"anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": "^[0-9]+$"},
        "kind": {"type": "string", "enum": ["a", "b"]},
        "inner": {"$ref": "#/inner"},
        "many": {"type": "array", "items": {"$ref": "#/inner"}},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
INNER = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}}
POD = {"properties": {"spec": {"properties": {"containers": {"type": "array"}}}}}


def reduced(*values):
    return shrink(COMPLETE, values, lambda address: INNER)


def accepts(schema, value):
    try:
        Draft202012Validator(schema).validate(value)
    except ValidationError:
        return False
    return True


def test_without_values_only_required_fields_remain():
    assert reduced() == {
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "additionalProperties": False,
        "required": ["name"],
    }


@pytest.mark.parametrize(
    "value",
    [
        {"name": "n"},
        {"name": "n", "size": 3},
        {"name": "n", "size": "3"},
        {"name": "n", "inner": {"x": 1}, "many": [{"x": 1}, {"y": 2}], "labels": {"any": "text"}},
    ],
)
def test_the_values_it_was_reduced_for_are_accepted(value):
    assert accepts(reduced(value), value)


@pytest.mark.parametrize(
    "invalid",
    [
        {},
        {"name": 3},
        {"name": None},
        {"name": "n", "nmae": "n"},
        {"name": "n", "kind": "c"},
        {"name": "n", "size": "three"},
        {"name": "n", "inner": {"x": 1, "z": 3}},
        {"name": "n", "inner": {"y": 1}},  # in the complete schema, but unused
        {"name": "n", "many": [{"x": "1"}]},
        {"name": "n", "labels": {"any": 3}},
    ],
)
def test_invalid_values_are_refused(invalid):
    used = {
        "name": "n",
        "kind": "a",
        "size": 1,
        "inner": {"x": 1},
        "many": [{"x": 1}],
        "labels": {"l": "t"},
    }
    assert accepts(reduced(used), used)
    assert not accepts(reduced(used), invalid)


def test_pods_of_a_custom_resource_are_a_reference():
    spec = {"type": "object", "properties": {"template": POD, "replicas": {"type": "integer"}}}
    definition = {
        "spec": {
            "group": "g.io",
            "names": {"kind": "Thing"},
            "versions": [
                {"name": version, "schema": {"openAPIV3Schema": {"properties": {"spec": spec}}}}
                for version in ("v1", "v2")
            ],
        }
    }
    thing = {"apiVersion": "g.io/v1", "kind": "Thing", "spec": {"template": {"spec": {}}}}
    ((key, schema),) = of_definition(definition, [thing]).items()
    assert key == "g.io/v1/Thing"
    assert schema["properties"]["spec"]["properties"] == {"template": {"$ref": "PodTemplateSpec"}}
