"""Jobs of the command line: job file, options, defaults; templates and schemas of job files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cvbatch.cli.job_options import EXAMPLES, JOB_OPTIONS, REQUIRED, JobOption
from cvbatch.config.evaluate import EvaluateJob
from cvbatch.config.explain import IMAGE_SECTIONS, MODEL_ONLY_SECTIONS, ExplainJob
from cvbatch.config.loader import read_job_file, set_values
from cvbatch.config.locations import LOCATED_SECTIONS, relative_to
from cvbatch.config.model_outputs import NETWORK_KEYS
from cvbatch.config.models import MODEL_SECTIONS
from cvbatch.config.predict import JobConfig
from cvbatch.config.train import TrainJob
from cvbatch.core.errors import ConfigError
from cvbatch.models.job_defaults import complete_model

JOB_KINDS: dict[str, type[Any]] = {
    "predict": JobConfig,
    "train": TrainJob,
    "evaluate": EvaluateJob,
    "explain": ExplainJob,
}
WRITTEN_FILE = "_cvbatch/job.yaml"  # below the sink: the job that was run
_TEMPLATES = Path(__file__).with_name("templates")


class JobFile(NamedTuple):
    """A job as values of YAML, complete.

    Attributes:
        name: of the job in error messages.
        values: as parsed from YAML.
        notes: what was assumed, a sentence each.
    """

    name: str
    values: Any
    notes: tuple[str, ...]


def read_job(command: str, arguments: argparse.Namespace) -> JobFile:
    """Return the job of a command: its job file, changed by the options, with what they leave out.

    Args:
        command: a key of JOB_OPTIONS.
        arguments: parsed by the command's parser.

    Raises:
        ConfigError: the job file cannot be read, or an option does not fit it.
        ModelError: a model file cannot be read.
    """
    values = read_job_file(arguments.config) if arguments.config else {}
    if not isinstance(values, dict):
        return JobFile(arguments.config, values, ())  # refused when it is validated
    for option in JOB_OPTIONS[command]:
        value = getattr(arguments, option.attribute)
        if value not in (None, []):
            _apply(values, option, value)
    set_values(values, arguments.overrides)
    _check_complete(command, arguments.config, values)
    _add_defaults(command, values)
    notes = _complete_models(values)
    return JobFile(arguments.config or "command line", values, notes)


def _check_complete(command: str, file: str | None, values: dict[str, Any]) -> None:
    """Refuse a command line without images or model, and a job file of another command."""
    keys = set(values)
    if file:
        kinds = {
            kind
            for kind, job in JOB_KINDS.items()
            if keys <= job.model_fields.keys() and REQUIRED[kind].keys() <= keys
        }
        if len(kinds) == 1 and command not in kinds:
            (kind,) = kinds
            raise ConfigError(
                f"{file} is a job file of {kind}, not of {command}; run cvbatch {kind} --config "
                f"{file}"
            )
        return
    source = values.get("source")
    uris = source.get("uri") if isinstance(source, dict) else None
    first = uris[0] if isinstance(uris, list) and uris else uris
    if isinstance(first, str) and first.endswith((".yaml", ".yml")):
        raise ConfigError(f"{first} is a job file; run cvbatch {command} --config {first}")
    missing = [text for key, text in REQUIRED[command].items() if key not in keys]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} missing; as in `cvbatch {EXAMPLES[command]}`, or write a job "
            f"file with `cvbatch init {command} job.yaml` and set --config job.yaml"
        )


def _apply(values: dict[str, Any], option: JobOption, value: Any) -> None:
    if option.key == "models":
        values["models"] = [{"model": name} for name in value]
        return
    section, *rest = option.key.split(".")
    if rest[0] == "*":
        _apply_to_models(values.get(section) or [], option, rest[1], value)
        return
    if not isinstance(values.get(section), dict):
        values[section] = {}
    values[section][rest[0]] = value[0] if isinstance(value, list) and len(value) == 1 else value


def _apply_to_models(models: list[Any], option: JobOption, key: str, value: Any) -> None:
    """Set a key of every model: to one value for all, or to one value each."""
    if not models:
        raise ConfigError(f"{option.name} is an option of a model; add --model NAME_OR_FILE")
    each = value if isinstance(value, list) else [value]
    if len(each) == 1:
        each = each * len(models)
    if len(each) != len(models):
        raise ConfigError(
            f"{option.name} is given {len(each)} times for {len(models)} models; give it once for "
            "all of them, or once for each --model"
        )
    for model, item in zip(models, each, strict=True):
        if isinstance(model, dict):
            model[key] = dict(item) if isinstance(item, dict) else item


def _add_defaults(command: str, values: dict[str, Any]) -> None:
    """Add the sink, and for explanations the section gradcam if no section is present."""
    predictions = values.get("predictions")
    result = str(predictions.get("uri", "")) if isinstance(predictions, dict) else ""
    sinks = {
        "predict": "result",
        "train": "trained",
        "evaluate": f"{result.rstrip('/')}-evaluation",
        "explain": "explained",
    }
    values.setdefault("sink", {"uri": sinks[command]})
    if command == "explain" and not {*IMAGE_SECTIONS, *MODEL_ONLY_SECTIONS} & set(values):
        values["gradcam"] = {}


def _complete_models(values: dict[str, Any]) -> tuple[str, ...]:
    """Add tasks and weights to the model sections, in place; return what was assumed."""
    notes = []
    if isinstance(values.get("model"), dict):
        values["model"], note = complete_model(values["model"])
        notes.append(note)
    for i, model in enumerate(values.get("models") or []):
        if isinstance(model, dict):
            values["models"][i], note = complete_model(model)
            notes.append(note)
    return tuple(note for note in notes if note)


def write_job(command: str, sink: str, job: JobFile) -> None:
    """Write the job that was run below its sink, with absolute paths."""
    from cvbatch.storage import store  # with pyarrow

    uri = store.join(store.absolute(sink), WRITTEN_FILE)
    values = relative_to(job.values, str(Path.cwd()))
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    store.Storage().put_bytes(uri, f"# cvbatch {command} --config {uri}\n{text}".encode())


def template(kind: str) -> str:
    """Return the text of a minimal job file with comments."""
    return (_TEMPLATES / f"{kind}.yaml").read_text(encoding="utf-8")


def json_schema(kind: str) -> str:
    """Return the JSON Schema of a kind of job file, as text."""
    schema: dict[str, Any] = JOB_KINDS[kind].model_json_schema()
    sections = schema["properties"]
    for name in LOCATED_SECTIONS & sections.keys():
        sections[name] = _or_uri(sections[name], schema["$defs"])
    if "models" in sections:
        items = _or_name(sections["models"]["items"])
        items["anyOf"].append(_entry_with_outputs(schema["$defs"]))
        sections["models"]["items"] = items
    if "model" in sections:
        sections["model"] = _or_name(sections["model"])
    for section in schema["$defs"].values():
        if "task" in section.get("required", ()):  # `complete_model` adds it
            section["required"].remove("task")
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps({**dialect, **schema}, indent=1) + "\n"


def _or_uri(section: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a section, or of its short form, the value of its key uri."""
    meaning = {"description": section.pop("description")}
    options = section.get("anyOf", [section])
    reference = next(option["$ref"] for option in options if "$ref" in option)
    uri = definitions[reference.rpartition("/")[2]]["properties"]["uri"]
    return {"anyOf": [{key: uri[key] for key in uri if key != "title"}, *options], **meaning}


def _or_name(model: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a model section, or of its short form, the model's name."""
    meaning = {"description": model.pop("description")} if "description" in model else {}
    return {"anyOf": [{"type": "string"}, *model.get("oneOf", [model])], **meaning}


def _entry_with_outputs(definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an entry of `models` with several outputs of one network."""
    network: dict[str, Any] = {}
    outputs = []
    for section in (definitions[kind.__name__] for kind in MODEL_SECTIONS.values()):
        keys = section["properties"]
        network |= {key: keys[key] for key in keys if key in NETWORK_KEYS}
        of_output = {key: keys[key] for key in keys if key not in NETWORK_KEYS}
        outputs.append({**section, "properties": of_output, "required": ["task"]})
    items = {"type": "array", "minItems": 1, "items": {"anyOf": outputs}}
    return {
        "additionalProperties": False,
        "properties": {**network, "outputs": items},
        "required": ["model", "outputs"],
        "type": "object",
    }


def init_job(kind: str, file: str) -> tuple[str, str]:
    """Write a minimal job file, and the schema that editors use next to it.

    Args:
        kind: a key of JOB_KINDS.
        file: to write.

    Returns:
        The two files.

    Raises:
        ConfigError: the file exists, or cannot be written.
    """
    path = Path(file)
    schema = path.with_name(f"{kind}.schema.json")
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(template(kind))
        schema.write_text(json_schema(kind), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}; choose another name"
        ) from None
    return str(path), str(schema)
