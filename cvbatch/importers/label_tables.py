"""Tables of the import formats for docs/inputs.md, from the tables of the code.

`python -m cvbatch.importers.label_tables` writes them into the page, between their markers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from cvbatch.importers.coco_layouts import LAYOUTS
from cvbatch.importers.rules import (
    FORMAT_DESCRIPTIONS,
    ISSUE_KINDS,
    RULE_OF,
    actions_by_kind,
)

PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"


def tables() -> dict[str, str]:
    """Return the tables as Markdown, by the name of their marker."""
    return {
        "label formats": _table(("format", "data set"), _format_rows()),
        "COCO layouts": _table(("written by", "annotation files", "images"), _layout_rows()),
        "label oddities": _table(("oddity", "unit", "default", "flag", "formats"), _issue_rows()),
    }


def with_tables(text: str) -> str:
    """Return a page with the tables between `<!-- NAME -->` and `<!-- end NAME -->`.

    Raises:
        ValueError: a marker is missing.
    """
    for name, table in tables().items():
        start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        before, found_start, rest = text.partition(start)
        _, found_end, after = rest.partition(end)
        if not (found_start and found_end):
            raise ValueError(f"the page has no markers {start.strip()} and {end}; add them")
        text = f"{before}{start}{table}{end}{after}"
    return text


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(titles)
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _format_rows() -> Iterator[list[str]]:
    for name, description in FORMAT_DESCRIPTIONS.items():
        yield [f"`{name}`", description]


def _layout_rows() -> Iterator[list[str]]:
    for layout in LAYOUTS:
        file = layout.file.replace(r"\.", ".").replace("([^/]+)", "NAME")
        folders = [f"`{folder}/{file}`" if folder else f"`{file}`" for folder in layout.folders]
        images = [f"`{path.format(name='NAME', folder='FOLDER')}`" for path in layout.images]
        yield [layout.tools, ", ".join(folders), ", ".join(images)]


def _issue_rows() -> Iterator[list[str]]:
    actions = actions_by_kind({})
    for kind, issue in ISSUE_KINDS.items():
        rule = RULE_OF.get(kind)
        choices = "\\|".join(rule.actions) if rule else ""
        flag = f"`--{rule.flag} {choices}`" if rule else ""
        formats = ", ".join(rule.formats) if rule else ""
        yield [issue.description, issue.unit, actions[kind], flag, formats]


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
