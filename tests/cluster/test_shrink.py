"""A schema made smaller takes what the whole one took of the manifests, and nothing else."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.cluster.shrink import of_definition, shrink

WHOLE = {
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


def small(*values):
    return shrink(WHOLE, values, lambda address: INNER)


def accepts(schema, value):
    try:
        Draft202012Validator(schema).validate(value)
    except ValidationError:
        return False
    return True


def test_of_nothing_only_what_is_required_is_left():
    assert small() == {
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
def test_what_it_was_made_from_is_accepted(value):
    assert accepts(small(value), value)


@pytest.mark.parametrize(
    "spoilt",
    [
        {},
        {"name": 3},
        {"name": None},
        {"name": "n", "nmae": "n"},
        {"name": "n", "kind": "c"},
        {"name": "n", "size": "three"},
        {"name": "n", "inner": {"x": 1, "z": 3}},
        {"name": "n", "inner": {"y": 1}},  # in the whole schema, but nobody uses it
        {"name": "n", "many": [{"x": "1"}]},
        {"name": "n", "labels": {"any": 3}},
    ],
)
def test_what_is_wrong_is_refused(spoilt):
    used = {
        "name": "n",
        "kind": "a",
        "size": 1,
        "inner": {"x": 1},
        "many": [{"x": 1}],
        "labels": {"l": "t"},
    }
    assert accepts(small(used), used)
    assert not accepts(small(used), spoilt)


def test_of_a_custom_resource_the_pods_are_kubernetes_own():
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
    (made,) = of_definition(definition, [thing]).items()
    assert made[0] == "g.io/v1/Thing"
    assert made[1]["properties"]["spec"]["properties"] == {"template": {"$ref": "PodTemplateSpec"}}
