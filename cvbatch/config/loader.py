"""Reads a job file: YAML, overrides, environment variables, and every fault told at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cvbatch.config.models import MODEL_SECTIONS
from cvbatch.config.predict import JobConfig
from cvbatch.core.errors import ConfigError
from cvbatch.core.redaction import has_credentials, is_secret_variable, redact
from cvbatch.core.suggestions import closest_names

MAX_FILE_BYTES = 1 << 20
Job = TypeVar("Job", bound=BaseModel)


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> JobConfig:
    """Return the job in a YAML file, with `key=value` overrides and `${NAME}` resolved.

    Raises:
        ConfigError: the file cannot be read, or anything in it is wrong; all faults at once.
    """
    return parse_job(_read_yaml(Path(path)), overrides, str(path))


def parse_job(raw: object, overrides: Sequence[str] = (), name: str = "job") -> JobConfig:
    """Return the job in plain values as YAML gives them.

    Raises:
        ConfigError: with one line for each fault.
    """
    return parse(JobConfig, raw, overrides, name)


def load(kind: type[Job], path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Return the job of any kind that a YAML file holds, as `load_job`. Raises ConfigError."""
    return parse(kind, _read_yaml(Path(path)), overrides, str(path))


def parse(kind: type[Job], raw: object, overrides: Sequence[str] = (), name: str = "job") -> Job:
    """Return the job of any kind in plain values, as `parse_job`. Raises ConfigError."""
    if not isinstance(raw, dict):
        *first, last = [key for key, field in kind.model_fields.items() if field.is_required()]
        raise ConfigError(f"{name}: a job file is a mapping with {', '.join(first)} and {last}")
    for override in overrides:
        _override(raw, override)
    faults: list[str] = []
    resolved = _resolve(raw, os.environ, "", faults)
    try:
        job = kind.model_validate(resolved)
    except ValidationError as error:
        faults += [_fault(item, kind) for item in error.errors()]
    if faults:
        raise ConfigError(f"{name}: " + "\n  ".join(faults))
    return job


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error, not a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int)) and key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: the key {key!r} is given twice")
            if isinstance(key, (str, int)):
                seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> object:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the job file {path} cannot be read: {error.strerror}") from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: a job file is at most {MAX_FILE_BYTES:,} bytes")
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())[:300]}") from None


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Return `key=value` words as a dict; a value is read as YAML.

    Raises:
        ConfigError: a word is not of that form.
    """
    raw: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not key or not equals:
            raise ConfigError(f"{option!r}: write it as key=value, such as width=16")
        raw[key] = _value(text, option)
    return raw


def _value(text: str, option: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError:
        raise ConfigError(f"{option}: the value is not YAML; quote it") from None


def _override(raw: dict[str, Any], override: str) -> None:
    """Set `a.b.0.c=value` in place; the value is read as YAML."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: write it as key=value, such as run.batch_size=16")
    value = _value(text, f"--set {override}")
    place: Any = raw
    for key in keys[:-1]:
        place = _child(place, key, override)
    if isinstance(place, list):
        place[_index(place, keys[-1], override)] = value
    elif isinstance(place, dict):
        place[keys[-1]] = value
    else:
        raise ConfigError(f"--set {override}: {'.'.join(keys[:-1])} is a value, it has no keys")


def _child(place: Any, key: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, override)]
    if not isinstance(place, dict):
        raise ConfigError(f"--set {override}: there is nothing below {key!r}")
    if place.get(key) is None:
        place[key] = {}
    return place[key]


def _index(place: list[Any], key: str, override: str) -> int:
    if not key.isdecimal() or int(key) >= len(place):
        raise ConfigError(
            f"--set {override}: {key!r} must be a position in a list of {len(place)}, from 0"
        )
    return int(key)


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _resolve(value: Any, environ: Mapping[str, str], where: str, faults: list[str]) -> Any:
    """Return the value with every `${NAME}` replaced; add a fault for each that is not set."""
    if isinstance(value, dict):
        return {
            key: _resolve(item, environ, f"{where}.{key}".lstrip("."), faults)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_resolve(item, environ, f"{where}[{i}]", faults) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    names = _VARIABLE.findall(value)
    if secrets := [name for name in names if is_secret_variable(name)]:
        faults.append(
            f"{where}: {secrets[0]} holds a secret, and no value of a job file may: what stands "
            "here goes into results and logs; the store reads its credentials from the environment "
            "itself, so leave them out"
        )
        return value
    for name in names:
        if name not in environ:
            faults.append(f"{where}: the environment variable {name} is not set; export it")
    text = _VARIABLE.sub(lambda match: environ.get(match[1], match[0]), value)
    if has_credentials(text):
        faults.append(
            f"{where}: it carries credentials; take them out and put them into the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), from where the store reads them itself"
        )
        return redact(text)
    return text


def _fault(error: Any, kind: type[BaseModel]) -> str:
    """Return one line: where, what was found, the rule, the remedy."""
    location = error["loc"]
    where = _without_tags(location) or "models"  # the one rule about the whole is about them
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], kind)
        near = closest_names(str(location[-1]), known)
        remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return f"{where}: unknown key; {remedy}"
    if error["type"] == "missing":
        return f"{where}: missing"
    if error["type"] == "union_tag_not_found":
        return f"{where}.task: missing; one of {', '.join(MODEL_SECTIONS)}"
    if error["type"] == "union_tag_invalid":
        found = error["ctx"]["tag"]
        near = closest_names(found, MODEL_SECTIONS)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(MODEL_SECTIONS)}"
        return f"{where}.task: {found!r} is not a task; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    found = "" if isinstance(error["input"], (dict, BaseModel)) else f"{error['input']!r}: "
    return f"{where}: {found[:200]}{message}"


def _without_tags(location: Sequence[str | int]) -> str:
    """Return models[0].top_k for pydantic's (models, 0, classification, top_k)."""
    where = ""
    for i, part in enumerate(location):
        if isinstance(part, int):
            where += f"[{part}]"
        elif not _is_tag(location, i):
            where += f".{part}"
    return where.lstrip(".")


def _is_tag(location: Sequence[str | int], i: int) -> bool:
    """Say whether pydantic put this part in for a union's branch; the user never wrote it."""
    part = str(location[i])
    is_task = (i == 2 and location[0] == "models") or (
        i == 1 and location[0] == "model" and part in MODEL_SECTIONS
    )
    return is_task or part in {"list[str]", "constrained-str"}


def _known_keys(location: Sequence[str | int], kind: type[BaseModel]) -> list[str]:
    section: Any = kind
    for part in location:
        if isinstance(part, int):
            continue
        if part in MODEL_SECTIONS:
            section = MODEL_SECTIONS[part]
        elif part != "models":
            section = _section_of(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_of(annotation: Any) -> Any:
    """Return the section class inside an annotation such as `HeatmapConfig | None`."""
    options = get_args(annotation) or (annotation,)
    return next(option for option in options if hasattr(option, "model_fields"))
