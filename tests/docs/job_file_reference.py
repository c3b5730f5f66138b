"""Write the reference of docs/job-files.md from the JSON Schemas of the job files.

`cvbatch schema KIND` prints the same schemas, so that the page and editors say the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cvbatch.cli.job_files import json_schema

Schema = dict[str, Any]
PAGE = Path(__file__).parents[2] / "docs" / "job-files.md"
BEGIN, END = "<!-- reference -->\n", "<!-- end reference -->\n"
WORDS = ("auto", "all", "top")  # each becomes null
_TITLES = {
    "predict": "Prediction",
    "train": "Training",
    "evaluate": "Evaluation",
    "explain": "Explanation",
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class Reference:
    """The tables of one kind of job file."""

    def __init__(self, kind: str) -> None:
        self.schema: Schema = json.loads(json_schema(kind))

    def sections(self, name: str) -> list[tuple[str, Schema]]:
        """Return the sections that a key of the job file may have: (name in $defs, schema)."""
        return self._sections(self.schema["properties"][name])

    def _sections(self, value: Schema) -> list[tuple[str, Schema]]:
        options = [value, *value.get("anyOf", ()), *value.get("oneOf", ())]
        options += value.get("items", {}).get("anyOf", ())
        names = [option["$ref"].rpartition("/")[2] for option in options if "$ref" in option]
        return [(name, self.schema["$defs"][name]) for name in dict.fromkeys(names)]

    def rows(self, name: str, keys: set[str], prefix: str = "") -> Iterator[tuple[str, ...]]:
        """Yield (key, type, default, meaning) of a section, those of nested sections below."""
        section = self.schema["$defs"][name]
        for key, value in section["properties"].items():
            if not prefix and key not in keys:
                continue
            required = key in section.get("required", ())
            nested = self._sections(value)
            default = "required" if required else default_text(value, bool(nested))
            yield prefix + key, self._type(value), default, value["description"]
            for inner, _ in nested:
                yield from self.rows(inner, set(), f"{prefix}{key}.")

    def _type(self, value: Schema) -> str:
        """Return the type of a value in words; empty if the schema does not have it."""
        if "enum" in value or "const" in value:
            return ", ".join(f"`{item}`" for item in value.get("enum", [value.get("const")]))
        if "$ref" in value:
            target = self.schema["$defs"].get(value["$ref"].rpartition("/")[2], {})
            return self._type(target) if "enum" in target else "section"
        if "anyOf" in value or "oneOf" in value:
            types = [self._type(item) for item in value.get("anyOf", value.get("oneOf"))]
            return " or ".join(dict.fromkeys(kind for kind in types if kind))
        if "prefixItems" in value:
            return f"{len(value['prefixItems'])} × {self._type(value['prefixItems'][0])}"
        kind = value.get("type", "")
        if kind == "array":
            return f"list of {self._type(value.get('items', {})) or 'values'}"
        if kind == "object":
            inner = value.get("additionalProperties")
            return f"mapping to {self._type(inner)}" if isinstance(inner, dict) else "mapping"
        words = {"string": "text", "boolean": "`true`, `false`", "null": ""}
        return f"{words.get(kind, kind)} {limits(value)}".strip()


def limits(value: Schema) -> str:
    """Return the limits of a number in words; empty without any."""
    if {"minimum", "maximum"} <= value.keys():
        return f"{value['minimum']}..{value['maximum']}"
    return ", ".join(f"{sign} {value[bound]}" for bound, sign in _BOUNDS.items() if bound in value)


def default_text(value: Schema, is_section: bool) -> str:
    """Return the default of a key as it is written in a job file."""
    if "default" not in value:  # the list of a factory, or a task
        return "that of the network" if "enum" in value or "$ref" in value else "`[]`"
    default = value["default"]
    if default is None:
        words = [option.get("const") for option in value.get("anyOf", ())]
        return f"`{next((word for word in words if word in WORDS), 'null')}`"
    if is_section and isinstance(default, dict):
        return ""
    text = yaml.safe_dump(default, default_flow_style=True, width=1000)
    return f"`{text.splitlines()[0]}`"


def table(rows: Iterator[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, *cells in rows:
        lines.append(
            "| " + " | ".join([f"`{key}`", *(c.replace("|", "\\|") for c in cells)]) + " |"
        )
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Return the reference of all kinds of job files in Markdown."""
    parts: list[str] = []
    places: dict[str, str] = {}  # section in $defs → heading where it is described
    for kind, title in _TITLES.items():
        tables = Reference(kind)
        parts.append(f"## {title}\n\nFor `cvbatch {kind}`.\n")
        for name, value in tables.schema["properties"].items():
            heading = f"{kind}: {name}"
            sections = tables.sections(name)
            first = sections[0][0]
            required = name in tables.schema.get("required", ())
            text = f"### {heading}\n\n{value['description']}{' Required.' if required else ''}\n"
            if first in places:
                target = places[first]
                parts.append(f"{text}\nThe keys are those of [{target}](#{anchor(target)}).\n")
                continue
            places[first] = heading
            shared = set.intersection(*(set(section["properties"]) for _, section in sections))
            if len(sections) > 1:
                shared -= {"task"}
            parts.append(f"{text}\n{table(tables.rows(first, shared))}")
            for section_name, section in sections if len(sections) > 1 else ():
                task = section["properties"]["task"]
                text = f"#### {name}, task: {task['const']}\n\n{task['description']}\n"
                own = set(section["properties"]) - shared - {"task"}
                parts.append(f"{text}\n{table(tables.rows(section_name, own))}")
    return "\n".join(parts)


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def page_with_reference(page: str) -> str:
    """Return the page with the reference replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{reference()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_reference(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
