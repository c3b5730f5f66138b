"""Read manifests and their JSON schemas, and apply kustomize overlays."""

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
    """Return the manifests as written: path below `cluster/kuberay` → documents."""
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
        for item in value:
            yield from pod_templates(item)
    elif isinstance(value, dict):
        if "containers" in value.get("spec", ()):
            yield value
        else:
            for item in value.values():
                yield from pod_templates(item)


@cache
def schemas() -> dict[str, Any]:
    """Return the schemas by apiVersion/Kind, and the one of PodTemplateSpec."""
    by_key: dict[str, Any] = {}
    for path in SCHEMAS.iterdir():
        text = path.read_text()
        by_key |= (json.loads(text) if path.suffix == ".json" else yaml.safe_load(text))["schemas"]
    return by_key


@cache
def _registry() -> Registry[Any]:
    pods = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return Registry().with_resource(
        "PodTemplateSpec", Resource.from_contents(pods | schemas()["PodTemplateSpec"])
    )


def schema_errors(document: dict[str, Any]) -> list[str]:
    """Return the errors of a document against its schema; no schema is an error, too."""
    schema = schemas().get(key_of(document))
    if schema is None:
        return [f"no schema of {key_of(document)}"]
    errors = Draft202012Validator(schema, registry=_registry()).iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def render(folder: str) -> list[Any]:
    """Return the output of kustomize for a folder. Raises FileNotFoundError if it fails."""
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    done = subprocess.run(
        [*command, str(KUBERAY / folder)], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:
        raise FileNotFoundError(done.stderr)
    return list(yaml.safe_load_all(done.stdout))


def assemble(folder: str, *components: str) -> list[Any]:
    """Return the documents of a folder by a small reimplementation of kustomize."""
    assembled: list[Any] = []
    for name in (folder, *components):
        _accumulate(KUBERAY / name, assembled)
    return assembled


def _accumulate(folder: Path, assembled: list[Any]) -> None:
    """Add the resources of a folder to the assembled documents, and apply its patches to all."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    for name in kustomization.get("resources", ()):
        if (folder / name).is_dir():
            assembled += assemble(str((folder / name).resolve().relative_to(KUBERAY)))
        else:
            assembled += copy.deepcopy(list(yaml.safe_load_all((folder / name).read_text())))
    for name in kustomization.get("components", ()):
        _accumulate(folder / name, assembled)
    for patch in kustomization.get("patches", ()):
        kind = patch["target"]["kind"]
        targets = [document for document in assembled if document["kind"] == kind]
        if not targets:
            raise LookupError(f"{folder}: there is no {kind} to patch")
        for target in targets:
            for step in yaml.safe_load(patch["patch"]):
                _apply(step, target)
    for image in kustomization.get("images", ()):
        _set_image(assembled, image)


def _apply(step: dict[str, Any], document: Any) -> None:
    """Apply one step of a JSON patch (RFC 6902: test, add, remove)."""
    *parents, last = [
        part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]
    ]
    for part in parents:
        document = document[int(part) if isinstance(document, list) else part]
    key: Any = int(last) if isinstance(document, list) and last != "-" else last
    if step["op"] == "test" and document[key] != step["value"]:
        raise LookupError(f"{step['path']} is {document[key]!r}, not {step['value']!r}")
    if step["op"] == "remove":
        del document[key]
    if step["op"] == "add":
        if isinstance(document, list):
            document.insert(len(document) if key == "-" else key, step["value"])
        else:
            document[key] = step["value"]


def _set_image(assembled: Any, image: dict[str, str]) -> None:
    for document in assembled:
        for pod in pod_templates(document):
            for container in pod["spec"]["containers"]:
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
