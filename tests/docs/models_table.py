"""Write the table of docs/models.md from the tests marked `runs(what, how)`.

`how` begins with "no: " where a model does not run and the refusal is tested.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "models.md"
_HEAD = "| --- | --- | --- |\n"


def marked_rows() -> Iterator[tuple[str, str]]:
    """Yield (what, how) of every test with the mark, in the order of files and lines."""
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.runs(" not in text:
            continue
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        for call in sorted(calls, key=lambda node: node.lineno):
            if ast.unparse(call.func) == "pytest.mark.runs":
                what, how = (ast.literal_eval(argument) for argument in call.args)
                yield what, how


def as_table() -> str:
    """Return the rows in Markdown, sorted by what the user has."""
    rows = []
    for what, how in sorted(set(marked_rows()), key=lambda row: row[0].lower()):
        runs = "no" if how.startswith("no: ") else "yes"
        rows.append(f"| {what} | {runs} | {how.removeprefix('no: ')} |\n")
    return "".join(rows)


def page_with_table(page: str) -> str:
    """Return the page with the table replaced."""
    before, after = page.split(_HEAD)
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("|"):
        rest.pop(0)
    return before + _HEAD + as_table() + "".join(rest)


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
