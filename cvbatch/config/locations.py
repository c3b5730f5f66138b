"""Short forms and relative paths of a job file."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

from cvbatch.config.base import NAMED_CLASSES, NAMED_WEIGHTS
from cvbatch.core.model_formats import format_of

LOCATED_SECTIONS = {"source", "sink", "predictions", "truth"}  # with the key uri


def with_sections(values: Any) -> Any:
    """Return a job as parsed from YAML, with the short forms of its sections written out.

    `source: photos/` becomes `source: {uri: photos/}`, and a model's name its section.
    """
    if not isinstance(values, dict):
        return values
    long = dict(values)
    for name in LOCATED_SECTIONS:
        if isinstance(values.get(name), str | list):
            long[name] = {"uri": values[name]}
    if isinstance(values.get("model"), str):
        long["model"] = {"model": values["model"]}
    models = values.get("models")
    if isinstance(models, str | list):
        listed = [models] if isinstance(models, str) else models
        long["models"] = [{"model": item} if isinstance(item, str) else item for item in listed]
    return long


def relative_to(values: Any, folder: str) -> Any:
    """Return a job as `with_sections` returns it, with its relative paths below `folder`.

    URIs, absolute paths, and values that begin with a variable, such as `${ARCHIVE}/`, stay.

    Args:
        folder: of the job file; "" or "." changes nothing.
    """
    if not isinstance(values, dict) or folder in ("", "."):
        return values

    def below(path: str) -> str:
        if not path or "://" in path or path.startswith(("/", "~", "${")):
            return path
        joined = os.path.normpath(f"{folder}/{path}")
        return joined + "/" * (path.endswith("/") and joined != "/")

    changed = copy.deepcopy(values)
    for section, key in _paths(changed):
        value = section[key]
        if isinstance(value, list):
            section[key] = [below(item) if isinstance(item, str) else item for item in value]
        elif isinstance(value, str):
            section[key] = below(value)
    return changed


def _paths(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the places of paths: a section and its key."""
    for name in LOCATED_SECTIONS:
        if isinstance(section := values.get(name), dict) and "uri" in section:
            yield section, "uri"
    pending = [values.get("model"), values.get("models")]
    while pending:
        model = pending.pop()
        if isinstance(model, list):
            pending += model
        if not isinstance(model, dict):
            continue
        pending.append(model.get("outputs"))
        if format_of(str(model.get("model"))).key not in ("zoo", "hub"):
            yield model, "model"
        for key, named in (("weights", NAMED_WEIGHTS), ("classes", NAMED_CLASSES)):
            if isinstance(value := model.get(key), str) and value not in named:
                yield model, key
