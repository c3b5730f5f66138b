"""docs/inputs.md lists exactly the formats, layouts and oddities that the code has."""

import re

import pytest

from cvbatch.importers.coco_layouts import LAYOUTS
from cvbatch.importers.label_tables import PAGE, with_tables
from cvbatch.importers.rules import FORMAT_DESCRIPTIONS, ISSUE_KINDS, RULES, actions_by_kind


def rows(marker):
    text = PAGE.read_text(encoding="utf-8")
    section = text.split(f"<!-- {marker} -->")[1].split(f"<!-- end {marker} -->")[0]
    lines = section.strip().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_page_has_the_tables_of_the_code():
    text = PAGE.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run python -m cvbatch.importers.label_tables"
    with pytest.raises(ValueError, match="has no markers"):
        with_tables("# Inputs\n")


def test_every_format_layout_and_oddity_is_listed_once():
    assert [row[0].strip("`") for row in rows("label formats")] == list(FORMAT_DESCRIPTIONS)
    assert [row[0] for row in rows("COCO layouts")] == [layout.tools for layout in LAYOUTS]
    oddities = rows("label oddities")
    descriptions = [kind.description for kind in ISSUE_KINDS.values()]
    assert [row[0] for row in oddities] == descriptions
    assert len(set(descriptions)) == len(descriptions)
    actions = actions_by_kind({})
    assert [row[2] for row in oddities] == [actions[kind] for kind in ISSUE_KINDS]
    flags = {re.match(r"`--([a-z-]+) ", row[3])[1] for row in oddities if row[3]}
    assert flags == {rule.flag for rule in RULES}
