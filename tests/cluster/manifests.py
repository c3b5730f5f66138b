"""Reads the manifests and the schemas they are held against, and applies overlays to them."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "cluster/kuberay"
VM = ROOT / "cluster/vm"
SCHEMAS = Path(__file__).parent / "schemas"
FOLDERS = [
    str(path.parent.relative_to(KUBERAY))
    for path in sorted(KUBERAY.rglob("kustomization.yaml"))
    if "kind: Component" not in path.read_text()
]


@cache
def documents() -> dict[str, list[Any]]:
    """Return all that is applied, as written: path below `cluster/kuberay` → documents."""
    return {
        str(path.relative_to(KUBERAY)): list(yaml.safe_load_all(path.read_text()))
        for path in sorted(KUBERAY.rglob("*.yaml"))
        if path.name != "kustomization.yaml"
    }


def key_of(document: dict[str, Any]) -> str:
    """Return apiVersion/Kind."""
    return f"{document['apiVersion']}/{document['kind']}"


def pod_templates(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the pod templates at any depth of a document."""
    if isinstance(value, list):
        for one in value:
            yield from pod_templates(one)
    elif isinstance(value, dict):
        if "containers" in value.get("spec", ()):
            yield value
        else:
            for one in value.values():
                yield from pod_templates(one)


@cache
def schemas() -> dict[str, Any]:
    """Return the schemas by apiVersion/Kind, and of pod templates."""
    held: dict[str, Any] = {}
    for path in SCHEMAS.iterdir():
        text = path.read_text()
        held |= (json.loads(text) if path.suffix == ".json" else yaml.safe_load(text))["schemas"]
    return held


@cache
def _registry() -> Registry[Any]:
    pods = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return Registry().with_resource(
        "PodTemplateSpec", Resource.from_contents(pods | schemas()["PodTemplateSpec"])
    )


def faults(document: dict[str, Any]) -> list[str]:
    """Return what its schema says against a document."""
    schema = schemas().get(key_of(document))
    if schema is None:
        return [f"no schema of {key_of(document)}"]
    found = Draft202012Validator(schema, registry=_registry()).iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def render(folder: str) -> list[Any]:
    """Return what kustomize makes of a folder. Raises FileNotFoundError where there is none."""
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    done = subprocess.run(
        [*command, str(KUBERAY / folder)], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:
        raise FileNotFoundError(done.stderr)
    return list(yaml.safe_load_all(done.stdout))


def assemble(folder: str, *components: str) -> list[Any]:
    """Return what a folder comes to by our own, much smaller reading of kustomize."""
    held: list[Any] = []
    for place in (folder, *components):
        _accumulate(KUBERAY / place, held)
    return held


def _accumulate(place: Path, held: list[Any]) -> None:
    """Add what a folder has to what is held already, which a component also changes."""
    said = yaml.safe_load((place / "kustomization.yaml").read_text())
    for name in said.get("resources", ()):
        if (place / name).is_dir():
            held += assemble(str((place / name).resolve().relative_to(KUBERAY)))
        else:
            held += copy.deepcopy(list(yaml.safe_load_all((place / name).read_text())))
    for name in said.get("components", ()):
        _accumulate(place / name, held)
    for patch in said.get("patches", ()):
        targets = [one for one in held if one["kind"] == patch["target"]["kind"]]
        if not targets:
            raise LookupError(f"{place}: there is no {patch['target']['kind']} to patch")
        for target in targets:
            for step in yaml.safe_load(patch["patch"]):
                _apply(step, target)
    for image in said.get("images", ()):
        _rename(held, image)


def _apply(step: dict[str, Any], document: Any) -> None:
    """Apply one step of a JSON patch (RFC 6902: test, add, remove)."""
    *above, last = [
        part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]
    ]
    for part in above:
        document = document[int(part) if isinstance(document, list) else part]
    at: Any = int(last) if isinstance(document, list) and last != "-" else last
    if step["op"] == "test" and document[at] != step["value"]:
        raise LookupError(f"{step['path']} is {document[at]!r}, not {step['value']!r}")
    if step["op"] == "remove":
        del document[at]
    if step["op"] == "add":
        if isinstance(document, list):
            document.insert(len(document) if at == "-" else at, step["value"])
        else:
            document[at] = step["value"]


def _rename(held: Any, image: dict[str, str]) -> None:
    for document in held:
        for pod in pod_templates(document):
            for container in pod["spec"]["containers"]:
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
