"""Load a job file: YAML, `key=value` overrides, `${NAME}` variables; report all errors at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cvbatch.config.key_errors import key_suggestion, rule
from cvbatch.config.locations import relative_to, with_sections
from cvbatch.config.model_outputs import Place, expand_outputs
from cvbatch.config.models import MODEL_SECTIONS
from cvbatch.config.predict import JobConfig
from cvbatch.core.errors import ConfigError
from cvbatch.core.redaction import has_credentials, is_secret_variable, redact
from cvbatch.core.suggestions import hint, hint_for_path

MAX_FILE_BYTES = 1 << 20
Job = TypeVar("Job", bound=BaseModel)


def load(kind: type[Job], path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Load a job from a YAML file.

    Args:
        kind: of the job, such as JobConfig.
        overrides: `a.b.0.c=value`, with the value in YAML; they replace values of the file.

    Raises:
        ConfigError: the file cannot be read or is invalid; the message lists all errors.
    """
    return parse(kind, read_job_file(path), overrides, str(path))


def parse(kind: type[Job], raw: object, overrides: Sequence[str] = (), name: str = "job") -> Job:
    """Validate a job given as plain values, as parsed from YAML.

    Args:
        kind: of the job, such as JobConfig.
        overrides: as of `load`.
        name: of the job in error messages.

    Raises:
        ConfigError: one line per error: the key, the value, what is allowed.
    """
    raw = with_sections(raw)
    if not isinstance(raw, dict):
        *first, last = [key for key, field in kind.model_fields.items() if field.is_required()]
        raise ConfigError(
            f"{name}: a job file must be a mapping with {', '.join(first)} and {last}; `cvbatch "
            "init` writes one to start from"
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
        errors += [_error_line(item, resolved, kind, places) for item in error.errors()]
    if errors:
        raise ConfigError(f"{name}: " + "\n  ".join(dict.fromkeys(errors)))
    return job


parse_job = partial(parse, JobConfig)


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
    except FileNotFoundError:
        remedy = hint_for_path(str(path.absolute()))
        raise ConfigError(
            f"the job file {path} does not exist; {remedy} (`cvbatch init` writes a job file)"
        ) from None
    except OSError as error:
        raise ConfigError(f"the job file {path} cannot be read: {error.strerror}") from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: the job file is larger than {MAX_FILE_BYTES:,} bytes")
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {_yaml_problem(error)}") from None


def _yaml_problem(error: Exception) -> str:
    """Return the line of a YAML error, what is wrong there, and what to do."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())[:300]
    line = f"line {error.problem_mark.line + 1}"
    if "'\\t'" in str(error.problem):
        return f"{line} contains a tab; indent with spaces"
    start = error.context_mark
    context = f" ({error.context}, from line {start.line + 1})" if start else ""
    return (
        f"{line}: {error.problem}{context}; check the indentation and the brackets, and quote "
        "values that contain : or #"
    )


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
        raise ConfigError(
            f"{option}: the value is not YAML; check its quotes and brackets"
        ) from None


def set_values(raw: dict[str, Any], overrides: Iterable[str]) -> None:
    """Apply `a.b.0.c=value` to the values of a job file, in place; the value is YAML.

    Raises:
        ConfigError: an override has another form, or there is no such place.
    """
    for override in overrides:
        _set_value(raw, override)


def _set_value(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = re.sub(r"\[(\d+)\]", r".\1", path.strip()).split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {override}: must be key=value, such as --set run.batch_size=16; put quotes "
            "around a value with spaces"
        )
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
    if not key.isdecimal():
        raise ConfigError(
            f"--set {override}: {key!r} is no index of the list; write --set "
            f"{override.replace(key, f'0.{key}', 1)} for its first item"
        )
    if int(key) >= len(items):
        raise ConfigError(
            f"--set {override}: the list has {len(items)} items, and the first has the index 0"
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


def _error_line(error: Any, values: Any, kind: type[BaseModel], places: Sequence[Place]) -> str:
    """Return one line for an error of pydantic: key, value, rule, remedy.

    Args:
        error: one of the errors of a ValidationError.
        values: that were validated.
        kind: of the job.
        places: of its models in the file.
    """
    location = error["loc"]
    path = _path(error, values)
    if not path and "models" in kind.model_fields:
        path = "models"  # the only rule of a whole job with several models is about them
    if places and location[:1] == ("models",) and len(location) > 1:
        section = f"models[{location[1]}]"
        key = path.removeprefix(section).lstrip(".").split(".")[0].split("[")[0]
        path = places[location[1]].path(key) + path.removeprefix(section)
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key; {key_suggestion(location, kind)}"
    if error["type"] == "missing":
        return f"{path}: missing; this key is required"
    if error["type"] == "union_tag_not_found":
        return f"{path}.task: missing; must be one of {', '.join(MODEL_SECTIONS)}"
    if error["type"] == "union_tag_invalid":
        task = error["ctx"]["tag"]
        return f"{path}.task: {task!r} is not a task; {hint(str(task), MODEL_SECTIONS)}"
    message = rule(error)
    value = "" if isinstance(error["input"], (dict, BaseModel)) else f"{error['input']!r}: "
    return f"{path}: {value[:200]}{message}" if path else message


def _path(error: Any, values: Any) -> str:
    """Return `models[0].top_k` for pydantic's location (models, 0, classification, top_k).

    Names that are not in the values are branches of a union, except the first one, whose section
    may have its default, and the last one of a missing key.
    """
    location = error["loc"]
    keys = {0, len(location) - 1} if error["type"] == "missing" else {0}
    path = ""
    for i, part in enumerate(location):
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            if isinstance(part, str) and i not in keys:
                continue
            values = None
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".")
