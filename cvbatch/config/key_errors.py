"""What a job file allows where it is wrong: the closest key, and the rule of a value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from cvbatch.config.models import MODEL_SECTIONS
from cvbatch.core.suggestions import closest_names, did_you_mean

_RULES = {  # type of pydantic's error: rule, with the values of its context
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text; put it in quotes",
    "list_type": "must be a list, such as [a, b]",
    "tuple_type": "must be a list, such as [1, 2]",
    "dict_type": "must be keys with values, such as {{a: b}}",
    "model_type": "must be a section with keys of its own",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
}
_OTHER_NAMES = {  # what other tools, or other kinds of job files, call a key
    "actors": "workers",
    "batch": "batch_size",
    "checkpoint": "weights",
    "conf": "score_threshold",
    "confidence": "score_threshold",
    "device": "engine",
    "images": "source",
    "imgsz": "image_size",
    "input": "source",
    "labels": "classes",
    "lr": "learning_rate",
    "output_dir": "sink",
    "path": "uri",
    "threshold": "score_threshold",
    "workers": "actors",
}


def rule(error: Mapping[str, Any]) -> str:
    """Return the rule that a value breaks, and for a misspelled word the closest one.

    Args:
        error: one of the errors of a ValidationError.
    """
    if error["type"] not in _RULES:
        message = str(error["msg"]).removeprefix("Value error, ")
        return message[:1].lower() + message[1:]
    text = _RULES[error["type"]].format(**error.get("ctx", {}))
    known = re.findall(r"'([^']*)'", text)
    question = did_you_mean(closest_names(str(error["input"]), known))
    return f"{text}; {question}" if question else text


def key_suggestion(location: Sequence[str | int], kind: type[BaseModel]) -> str:
    """Return the place that an unknown key has elsewhere, or the closest key, or all keys.

    Args:
        location: pydantic's, of the key.
        kind: of the job.
    """
    name = str(location[-1])
    known = list(_section_at(location[:-1], kind).model_fields)
    if _OTHER_NAMES.get(name) in known:
        return f"did you mean {_OTHER_NAMES[name]}?"
    parts = {part: key for key in known for part in key.split("_")} | {key: key for key in known}
    close = [parts[part] for part in closest_names(name, parts, cutoff=0.6)]
    if not closest_names(name, close, cutoff=0.8):
        places = dict.fromkeys(path for path in _paths(kind) if path.endswith(f".{name}"))
        close = list(places)[:3] or close
    return did_you_mean(close) or f"known keys are {', '.join(known)}"


def _paths(kind: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield the paths of all keys of a job file, such as run.batch_size and models[0].top_k."""
    for key, field in kind.model_fields.items():
        below = f"{path}.{key}".lstrip(".")
        yield below
        for section in _sections_of(field.annotation):
            yield from _paths(section, f"{below}[0]" if key == "models" else below)


def _section_at(location: Sequence[str | int], kind: type[BaseModel]) -> type[BaseModel]:
    section = kind
    for part in location:  # an index, a key, or the task of a model section
        if part in MODEL_SECTIONS:
            section = MODEL_SECTIONS[part]
        elif part in section.model_fields:
            section = _sections_of(section.model_fields[str(part)].annotation)[0]
    return section


def _sections_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the section classes inside an annotation such as `HeatmapConfig | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for option in get_args(annotation) for section in _sections_of(option)]
