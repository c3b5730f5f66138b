"""Reduce a JSON schema to the fields that the manifests use, with unknown fields as errors.

    pip download --no-deps kubernetes-validate && unzip kubernetes_validate-*.whl
    python -m tests.cluster.shrink kubernetes \\
        kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict/all.json

    python -m tests.cluster.shrink crd ray.io_rayjobs.yaml kueue.x-k8s.io_clusterqueues.yaml ...

    pip download --no-deps google-api-python-client && unzip google_api_python_client-*.whl
    python -m tests.cluster.shrink compute \\
        googleapiclient/discovery_cache/documents/compute.v1.json

The first command writes `schemas/kubernetes.json`, the third `schemas/compute.json`. The second
prints the schemas of custom resources from the definitions in an operator's release, to be compared
with `schemas/ray.yaml` and `schemas/kueue.yaml`; the pod templates in those definitions become a
reference.

A field that no manifest uses is then an error, like a misspelt one: to use a new field, run these
commands again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.manifests import FOLDERS, SCHEMAS, VM, assemble, documents, key_of, pod_templates

COPIED_KEYS = (
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "pattern",
)
POD_TEMPLATE = {"$ref": "PodTemplateSpec"}
Resolve = Callable[[str], dict[str, Any]]


def shrink(schema: dict[str, Any], values: Sequence[Any], resolve: Resolve) -> dict[str, Any]:
    """Return the part of a schema that some values use; other keys are errors in it.

    Args:
        schema: the complete schema.
        values: the values.
        resolve: returns the schema of a `$ref`.
    """
    if schema == POD_TEMPLATE:
        return schema
    while "$ref" in schema:
        schema = resolve(schema["$ref"])
    small = {key: schema[key] for key in COPIED_KEYS if key in schema}
    if types := _types(schema):
        small["type"] = types[0] if len(types) == 1 else types
    objects = [value for value in values if isinstance(value, dict)]
    if "properties" in schema:
        used = {key for value in objects for key in value} | set(schema.get("required", ()))
        properties = {
            key: shrink(inner, [value[key] for value in objects if key in value], resolve)
            for key, inner in sorted(schema["properties"].items())
            if key in used
        }
        small |= {"properties": properties, "additionalProperties": False}
        if "required" in schema:
            small["required"] = schema["required"]
    elif isinstance(inner := schema.get("additionalProperties"), dict):
        items = [item for value in objects for item in value.values()]
        small["additionalProperties"] = shrink(inner, items, resolve)
    if "items" in schema:
        items = [item for value in values if isinstance(value, list) for item in value]
        small["items"] = shrink(schema["items"], items, resolve)
    return small


def _types(schema: dict[str, Any]) -> list[str]:
    """Return the allowed types of a value, without null: the manifests omit such fields."""
    alternatives = [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())]
    types = [schema["type"] for schema in alternatives if "type" in schema]
    names = {name for type_ in types for name in ([type_] if isinstance(type_, str) else type_)}
    return sorted(names - {"null"})


def of_definition(definition: dict[str, Any], manifests: Iterable[Any]) -> dict[str, Any]:
    """Return the small schemas of a CustomResourceDefinition, by apiVersion/Kind."""
    spec = definition["spec"]
    schemas = {}
    for version in spec["versions"]:
        key = f"{spec['group']}/{version['name']}/{spec['names']['kind']}"
        instances = [manifest for manifest in manifests if key_of(manifest) == key]
        if instances:
            complete = _without_pods(version["schema"]["openAPIV3Schema"])
            complete["properties"]["metadata"] = _METADATA
            schemas[key] = shrink(complete, instances, {}.__getitem__)  # it has no references
    return schemas


_METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def _without_pods(schema: Any) -> Any:
    """Return the schema with its pod templates replaced by a reference to those of Kubernetes."""
    if isinstance(schema, list):
        return [_without_pods(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "containers" in schema.get("properties", {}).get("spec", {}).get("properties", {}):
        return POD_TEMPLATE
    return {key: _without_pods(item) for key, item in schema.items()}


def _manifests() -> list[Any]:
    """Return all documents, as written and as assembled."""
    groups = [*documents().values(), *map(assemble, FOLDERS)]
    return [document for group in groups for document in group]


def _kubernetes(all_schemas: Path) -> None:
    folder = all_schemas.parent
    definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]

    def resolve(address: str) -> dict[str, Any]:
        schema: dict[str, Any] = definitions[address.rsplit("/", 1)[1]]
        return schema

    manifests = _manifests()
    kinds = {
        "v1/ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
        "v1/ConfigMap": "io.k8s.api.core.v1.ConfigMap",
        "networking.k8s.io/v1/NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
        "batch/v1/CronJob": "io.k8s.api.batch.v1.CronJob",
    }
    schemas = {
        key: shrink(
            definitions[name],
            [manifest for manifest in manifests if key_of(manifest) == key],
            resolve,
        )
        for key, name in kinds.items()
    }
    pods = [pod for manifest in manifests for pod in pod_templates(manifest)]
    schemas["PodTemplateSpec"] = shrink(
        definitions["io.k8s.api.core.v1.PodTemplateSpec"], pods, resolve
    )
    text = {
        "source": "Kubernetes' API (Apache-2.0), as the package kubernetes-validate 1.37.0 has it",
        "version": folder.name,
        "schemas": schemas,
    }
    (SCHEMAS / "kubernetes.json").write_text(json.dumps(text, indent=1) + "\n")


def _compute(discovery: Path) -> None:
    document = json.loads(discovery.read_text())
    machines = yaml.safe_load((VM / "gcp.yaml").read_text())["available_node_types"].values()
    schema = shrink(
        {"$ref": "Instance"},
        [machine["node_config"] for machine in machines],
        document["schemas"].__getitem__,
    )
    text = {
        "source": "Google's Compute Engine API, as google-api-python-client (Apache-2.0) has it",
        "version": f"{document['version']}, revision {document['revision']}",
        "schemas": {"compute/v1/Instance": schema},
    }
    (SCHEMAS / "compute.json").write_text(json.dumps(text, indent=1) + "\n")


def main(arguments: Sequence[str]) -> int:
    kind, *paths = arguments
    if kind in ("kubernetes", "compute"):
        {"kubernetes": _kubernetes, "compute": _compute}[kind](Path(paths[0]))
        return 0
    for path in paths:
        definition = yaml.safe_load(Path(path).read_text())
        print(yaml.safe_dump(of_definition(definition, _manifests())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
