"""The tables of "Sources" in docs/inputs.md are those of the code, and its options exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cvbatch.config.predict import SourceConfig
from cvbatch.sources.doc_tables import TABLES

PAGE = (Path(__file__).parents[2] / "docs" / "inputs.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("marker", TABLES)
def test_a_table_lists_exactly_what_the_code_has(marker: str) -> None:
    (text,) = re.findall(rf"<!-- {marker} -->\n(.*?)\n<!-- end {marker} -->", PAGE, re.DOTALL)
    assert text == TABLES[marker]()


def test_the_options_of_the_page_exist() -> None:
    section = PAGE.partition("## Sources")[2].partition("\n## ")[0]
    options = set(re.findall(r"`source\.(\w+)", section))
    assert options <= set(SourceConfig.model_fields)
    assert {"members", "id_column", "keep_columns", "unreadable"} <= options
