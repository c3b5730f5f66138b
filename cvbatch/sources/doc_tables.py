"""Tables of docs/inputs.md, from the tables of the code: formats, layouts, kinds, junk.

`python -m cvbatch.sources.doc_tables` prints them; a test compares them with the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cvbatch.sources.file_kinds import FILE_KINDS
from cvbatch.sources.format_choice import LAYOUTS
from cvbatch.sources.formats import INPUT_FORMATS
from cvbatch.storage.junk import JUNK_NAMES

_KEYS = {"": "", "row": "`#` row", "member": "`#` name of the member"}


def format_table() -> str:
    """Return the input formats: suffixes by which `auto` recognises them, ids, options."""
    rows = (
        (
            f"`{key}`",
            _code(value.suffixes) or "never chosen by `auto`",
            f"path below the source{_KEYS[value.key] and ', ' + _KEYS[value.key]}",
            _code(f"source.{name}" for name in value.accepts),
        )
        for key, value in INPUT_FORMATS.items()
    )
    return _table(("format", "suffixes", "image id", "options"), rows)


def layout_table() -> str:
    """Return the mixtures of formats that `auto` recognises."""
    rows = ((layout.tool, f"`{layout.chosen}`", f"`{layout.kind}`") for layout in LAYOUTS)
    return _table(("folder", "read as", "the other files count as"), rows)


def kind_table() -> str:
    """Return the kinds of files that are not read."""
    rows = (
        (f"`{kind}`", _code(info.suffixes.split()), "failed row" if info.is_picture else "")
        for kind, info in FILE_KINDS.items()
    )
    return _table(("kind", "suffixes", "with `unreadable: fail`"), rows)


def junk_table() -> str:
    """Return the names that are skipped as junk, as regular expressions."""
    rows = ((tool, f"`{names}`".replace("|", "\\|")) for tool, names in JUNK_NAMES.items())
    return _table(("left by", "names (regular expression)"), rows)


# Marker in the page → its table.
TABLES = {
    "source formats": format_table,
    "source layouts": layout_table,
    "source kinds": kind_table,
    "source junk": junk_table,
}


def _code(names: Iterable[str]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for marker, table in TABLES.items():
        print(f"<!-- {marker} -->\n{table()}\n<!-- end {marker} -->\n")  # noqa: T201
