"""Relative paths and short forms of a job file."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from cvbatch.config.base import NAMED_CLASSES, NAMED_WEIGHTS
from cvbatch.core.model_formats import format_of

Change = Callable[[str], str]
_SECTIONS_OF_FILES = ("source", "sink", "predictions", "truth")  # their key uri, or the section
_SECTIONS_OF_MODELS = ("model", "models")


def relative_to(raw: Any, folder: str) -> Any:
    """Return a job as parsed from YAML, with its relative paths below `folder`.

    URIs, absolute paths, and values that begin with a variable, such as `${ARCHIVE}/`, stay.

    Args:
        folder: of the job file; "" or "." changes nothing.
    """
    if not isinstance(raw, dict) or folder in ("", "."):
        return raw

    def below(path: str) -> str:
        if not path or "://" in path or path.startswith(("/", "~", "${")):
            return path
        joined = os.path.normpath(f"{folder}/{path}")
        return joined + "/" * (path.endswith("/") and joined != "/")

    changed = dict(raw)
    for name in _SECTIONS_OF_FILES:
        if name in raw:
            changed[name] = _located(raw[name], below)
    for name in _SECTIONS_OF_MODELS:
        if name in raw:
            changed[name] = _model(raw[name], below)
    return changed


def _located(section: Any, change: Change) -> Any:
    """Change a section that has the key uri, or its short form, a URI or a list of them."""
    if isinstance(section, str):
        return change(section)
    if isinstance(section, list):
        return [_located(item, change) for item in section]
    if isinstance(section, dict) and "uri" in section:
        return {**section, "uri": _located(section["uri"], change)}
    return section


def _model(section: Any, change: Change) -> Any:
    """Change the files of a model section, of its short form, or of a list of them."""
    if isinstance(section, list):
        return [_model(item, change) for item in section]
    if isinstance(section, str):
        return change(section) if _is_path(section) else section
    if not isinstance(section, dict):
        return section
    changed = dict(section)
    for key, named in (("model", ()), ("weights", NAMED_WEIGHTS), ("classes", NAMED_CLASSES)):
        value = section.get(key)
        if isinstance(value, str) and value not in named and (key != "model" or _is_path(value)):
            changed[key] = change(value)
    if isinstance(section.get("outputs"), list):
        changed["outputs"] = _model(section["outputs"], change)
    return changed


def _is_path(model: str) -> bool:
    return format_of(model).key not in ("zoo", "hub")


def with_sections(values: Any) -> Any:
    """Return a job as parsed from YAML, with the short forms of its sections written out.

    `source: photos/` becomes `source: {uri: photos/}`, and a model's name its section.
    """
    if not isinstance(values, dict):
        return values
    long = dict(values)
    for name in _SECTIONS_OF_FILES:
        if isinstance(values.get(name), str | list):
            long[name] = {"uri": values[name]}
    if isinstance(values.get("model"), str):
        long["model"] = {"model": values["model"]}
    models = values.get("models")
    if isinstance(models, str | list):
        listed = [models] if isinstance(models, str) else models
        long["models"] = [{"model": item} if isinstance(item, str) else item for item in listed]
    return long
