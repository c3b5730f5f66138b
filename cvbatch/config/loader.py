"""Load a job file: YAML, `key=value` overrides, `${NAME}` variables; report all errors at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cvbatch.config.locations import relative_to, with_sections
from cvbatch.config.model_outputs import Place, expand_outputs
from cvbatch.config.models import MODEL_SECTIONS
from cvbatch.config.predict import JobConfig
from cvbatch.core.errors import ConfigError
from cvbatch.core.redaction import has_credentials, is_secret_variable, redact
from cvbatch.core.suggestions import closest_names

MAX_FILE_BYTES = 1 << 20
Job = TypeVar("Job", bound=BaseModel)


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> JobConfig:
    """Load a prediction job from a YAML file.

    Args:
        overrides: `a.b.0.c=value`, with the value in YAML; they replace values of the file.

    Raises:
        ConfigError: the file cannot be read or is invalid; the message lists all errors.
    """
    return parse_job(read_job_file(path), overrides, str(path))


def parse_job(raw: object, overrides: Sequence[str] = (), name: str = "job") -> JobConfig:
    """Validate a prediction job given as plain values, as parsed from YAML.

    Args:
        name: of the job in error messages.

    Raises:
        ConfigError: one line per error: the key, the value, what is allowed.
    """
    return parse(JobConfig, raw, overrides, name)


def load(kind: type[Job], path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Load a job of any kind from a YAML file, like `load_job`."""
    return parse(kind, read_job_file(path), overrides, str(path))


def parse(kind: type[Job], raw: object, overrides: Sequence[str] = (), name: str = "job") -> Job:
    """Validate a job of any kind, like `parse_job`."""
    raw = with_sections(raw)
    if not isinstance(raw, dict):
        *first, last = [key for key, field in kind.model_fields.items() if field.is_required()]
        raise ConfigError(
            f"{name}: a job file must be a mapping with {', '.join(first)} and {last}"
        )
    set_values(raw, overrides)
    errors: list[str] = []
    resolved = _resolve(raw, os.environ, "", errors)
    places: list[Place] = []
    if isinstance(resolved.get("models"), list):
        resolved["models"], places = expand_outputs(resolved["models"], errors)
    if isinstance(resolved.get("model"), dict) and "outputs" in resolved["model"]:
        errors.append("model.outputs: only prediction jobs have it; set task and output instead")
    try:
        job = kind.model_validate(resolved)
    except ValidationError as error:
        errors += [_error_line(item, kind, places) for item in error.errors()]
    if errors:
        raise ConfigError(f"{name}: " + "\n  ".join(dict.fromkeys(errors)))
    return job


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML loader that rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int)) and key in keys:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: the key {key!r} occurs twice")
            if isinstance(key, (str, int)):
                keys.add(key)
        return super().construct_mapping(node, deep)


def read_job_file(file: str | Path) -> object:
    """Return the values of a YAML file: relative paths below its folder, sections written out.

    Raises:
        ConfigError: the file cannot be read or is not YAML.
    """
    path = Path(file)
    return relative_to(with_sections(_read_yaml(path)), str(path.parent))


def _read_yaml(path: Path) -> object:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the job file {path} cannot be read: {error.strerror}") from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: the job file is larger than {MAX_FILE_BYTES:,} bytes")
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())[:300]}") from None


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Parse `key=value` arguments, with the values in YAML.

    Raises:
        ConfigError: an argument has another form.
    """
    raw: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not key or not equals:
            raise ConfigError(f"{option!r}: must be key=value, such as width=16")
        raw[key] = _value(text, option)
    return raw


def _value(text: str, option: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError:
        raise ConfigError(f"{option}: the value is not valid YAML; quote it") from None


def set_values(raw: dict[str, Any], overrides: Iterable[str]) -> None:
    """Apply `a.b.0.c=value` to the values of a job file, in place; the value is YAML.

    Raises:
        ConfigError: an override has another form, or there is no such place.
    """
    for override in overrides:
        _set_value(raw, override)


def _set_value(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: must be key=value, such as run.batch_size=16")
    value = _value(text, f"--set {override}")
    parent: Any = raw
    for key in keys[:-1]:
        parent = _child(parent, key, override)
    if isinstance(parent, list):
        parent[_index(parent, keys[-1], override)] = value
    elif isinstance(parent, dict):
        parent[keys[-1]] = value
    else:
        raise ConfigError(f"--set {override}: {'.'.join(keys[:-1])} is a value without keys")


def _child(parent: Any, key: str, override: str) -> Any:
    if isinstance(parent, list):
        return parent[_index(parent, key, override)]
    if not isinstance(parent, dict):
        raise ConfigError(f"--set {override}: there are no keys above {key!r}")
    if parent.get(key) is None:
        parent[key] = {}
    return parent[key]


def _index(items: list[Any], key: str, override: str) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        raise ConfigError(
            f"--set {override}: {key!r} is no index (from 0) of a list of {len(items)} items"
        )
    return int(key)


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _resolve(value: Any, environ: Mapping[str, str], path: str, errors: list[str]) -> Any:
    """Return the value with every `${NAME}` replaced; append to `errors` what is not allowed."""
    if isinstance(value, dict):
        return {
            key: _resolve(item, environ, f"{path}.{key}".lstrip("."), errors)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_resolve(item, environ, f"{path}[{i}]", errors) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    names = _VARIABLE.findall(value)
    if secrets := [name for name in names if is_secret_variable(name)]:
        errors.append(
            f"{path}: {secrets[0]} is a secret, which results and logs would contain; remove it, "
            "because the storage reads its credentials from the environment itself"
        )
        return value
    for name in names:
        if name not in environ:
            errors.append(f"{path}: the environment variable {name} is not set; export it")
    text = _VARIABLE.sub(lambda match: environ.get(match[1], match[0]), value)
    if has_credentials(text):
        errors.append(
            f"{path}: the value contains credentials; remove them and set environment variables "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), which the storage reads itself"
        )
        return redact(text)
    return text


def _error_line(error: Any, kind: type[BaseModel], places: Sequence[Place]) -> str:
    """Return one line for an error of pydantic: key, value, rule, remedy.

    Args:
        error: one of the errors of a ValidationError.
        kind: of the job.
        places: of its models in the file.
    """
    location = error["loc"]
    path = _without_tags(location)
    if not path and "models" in kind.model_fields:
        path = "models"  # the only rule of a whole job with several models is about them
    if places and location[:1] == ("models",) and len(location) > 1:
        section = f"models[{location[1]}]"
        key = path.removeprefix(section).lstrip(".").split(".")[0].split("[")[0]
        path = places[location[1]].path(key) + path.removeprefix(section)
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], kind)
        return f"{path}: unknown key; {_suggestion(str(location[-1]), known, 'known keys are ')}"
    if error["type"] == "missing":
        return f"{path}: missing; this key is required"
    if error["type"] == "union_tag_not_found":
        return f"{path}.task: missing; must be one of {', '.join(MODEL_SECTIONS)}"
    if error["type"] == "union_tag_invalid":
        task = error["ctx"]["tag"]
        remedy = _suggestion(task, MODEL_SECTIONS, "must be one of ")
        return f"{path}.task: {task!r} is not a task; {remedy}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = "" if isinstance(error["input"], (dict, BaseModel)) else f"{error['input']!r}: "
    return f"{path}: {value[:200]}{message}" if path else message


def _suggestion(name: str, known: Iterable[str], introduction: str) -> str:
    """Return the closest known name as a question, or all names if none is close."""
    close = closest_names(name, known)
    return f"did you mean {close[0]}?" if close else f"{introduction}{', '.join(known)}"


def _without_tags(location: Sequence[str | int]) -> str:
    """Return `models[0].top_k` for pydantic's location (models, 0, classification, top_k)."""
    path = ""
    for i, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif not _is_tag(location, i):
            path += f".{part}"
    return path.lstrip(".")


def _is_tag(location: Sequence[str | int], i: int) -> bool:
    """Return whether pydantic added this part for a branch of a union; it is no key of the file."""
    part = str(location[i])
    is_task = (i == 2 and location[0] == "models") or (
        i == 1 and location[0] == "model" and part in MODEL_SECTIONS
    )
    return is_task or part in {"list[str]", "constrained-str", "text", "by_name", "by_class"}


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
